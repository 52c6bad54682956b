"""Kinds of command lines: options and arguments of every command."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from typer.testing import CliRunner

from efficientsam3.cli.app import app

from ..conftest import tiny_model
from .files import videos
from .runner import Case, Kind, digest
from .samples import COCO, VEVAL, picture

HANGS = {"--device"}
"""Options that are not varied: a device that this machine lacks is another kind of test."""

WORDS = """
0 1 -1 1.5 nan inf 1e400 999999999999999999999999 x - -- person a,b 1,1,9,9 1,1,9 5,5 photos
photos/a.png photos/*.png clip.mp4 missing truth.json clips.json p.json out out/x.jsonl out/x.json
out/x.mp4 out/x.txt tiny /dev/null loop.steps=1 steps=x = a=b k=[1 stage3 stickers float32 fast
auto ~ .
"""
words = st.sampled_from(["", " ", "\udcff", "\u00e9", *WORDS.split()])


class Commands(Kind):
    name = "command"
    about = "command lines of segment, track, evaluate, distill, convert, models and benchmark"
    slow = True

    def prepare(self, folder: Path) -> None:
        os.chdir(folder)
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["HOME"] = str(folder)
        self.home = folder
        tiny_model().save("tiny")
        Path("photos").mkdir()
        for name in ("a.png", "b.png"):
            Path("photos", name).write_bytes(picture())
        Path("truth.json").write_text(json.dumps(COCO))
        Path("clips.json").write_text(json.dumps(VEVAL))
        Path("p.json").write_text("[]")
        Path("clip.mp4").write_bytes(next(data for suffix, data in videos() if suffix == ".mp4"))
        self.before = digest(folder)

    def strategy(self) -> st.SearchStrategy[Any]:
        import click
        import typer

        group = typer.main.get_command(app)
        assert isinstance(group, click.Group) or hasattr(group, "commands")
        sound = {
            "segment": ["photos", "-c", "person", "-m", "tiny", "--out", "out"],
            "track": [
                "clip.mp4",
                "-c",
                "person",
                "-m",
                "tiny",
                "--json",
                "out/t.jsonl",
                "--stop",
                "2",
            ],
            "evaluate": ["-a", "truth.json", "-i", "photos", "-m", "tiny", "-p", "out/p.jsonl"],
            "distill": ["--list"],
            "convert": ["tiny", "out/converted"],
            "models": [],
            "doctor": [],
            "benchmark": ["tiny"],
            "version": [],
        }
        one: list[st.SearchStrategy[Any]] = []
        for name, arguments in sound.items():
            if name in ("doctor", "benchmark"):
                continue  # they measure this machine, for minutes
            command = group.commands[name]  # type: ignore[attr-defined]
            options = [
                o for p in command.params for o in p.opts if o.startswith("-") and o not in HANGS
            ]
            extra = st.lists(st.one_of(st.sampled_from([*options, "--help"]), words), max_size=4)
            start = st.sampled_from([arguments, arguments, []])
            one.append(st.builds(lambda n, s, e: [n, *s, *e], st.just(name), start, extra))
        one.append(st.lists(words, max_size=3))
        return st.one_of(one)

    def check(self, value: list[str], case: Case) -> None:
        os.chdir(self.home)
        result = CliRunner().invoke(app, value)
        error = result.exception
        line = shlex.join(value)
        assert error is None or isinstance(error, SystemExit), f"{line}: {error!r}"
        assert result.exit_code in (0, 1, 2), f"{line}: exit code {result.exit_code}"
        assert "Traceback" not in result.output, f"{line}: {result.output}"
        assert "This is a defect" not in result.output, f"{line}: {result.output}"
        outputs = [
            p
            for p in self.home.iterdir()
            if p.name not in ("tiny", "photos", "truth.json", "clips.json", "p.json", "clip.mp4")
        ]
        for path in outputs:
            if path.is_dir():
                import shutil

                shutil.rmtree(path)
            else:
                path.unlink()
        assert digest(self.home) == self.before, f"{line} has changed an input"
        assert Path(os.devnull).is_char_device(), f"{line} has replaced {os.devnull}"


KINDS = (Commands,)
