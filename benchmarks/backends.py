"""Times of each runtime and precision beside upstream's, in processes of their own, in turn.

    python benchmarks/backends.py --upstream CHECKOUT --turns 5 --busy

Each model is exported once, before anything is timed. Each turn starts one process for each row,
which answers one image and one concept, then further ones. 80 concepts are asked in the first turn,
of the rows in half precision and eight bits alone: the others take minutes for them.
Times do not depend on the weights, which are untrained here; the agreement of eight bits is
measured with the packaged model by ``efficientsam3 export --precision int8``. ``--busy`` repeats
the turns beside one busy process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from image import CONCEPTS, photograph
from PIL import Image
from report import say

COLUMNS = ("start", "image", "first concept", "together", "next concept", "80 concepts", "MiB")
EXPORTS = (
    ("openvino", "float32", "exact"),
    ("openvino", "bfloat16", "exact"),
    ("openvino", "bfloat16", "fast"),
    ("openvino", "int8", "fast"),
    ("onnx", "float32", "exact"),
    ("onnx", "int8", "fast"),
)
"""Runtime, precision and speed of the exported models."""
PYTORCH = (("float32", "exact"), ("best", "exact"), ("best", "fast"))
"""Dtype and speed of the models of PyTorch."""
MANY = (
    "PyTorch best exact",
    "PyTorch best fast",
    "openvino bfloat16 exact",
    "openvino bfloat16 fast",
    "openvino int8 fast",
)
"""Rows that are asked for 80 concepts, too."""


def export_all(model: str, checkpoint: Path, folder: Path, rows: list[tuple[str, ...]]) -> None:
    """Export what is missing, each model in a process of its own.

    Args:
        model: Name of the model.
        checkpoint: Its weights.
        folder: Where the exports are written.
        rows: Runtime, precision and speed of each.
    """
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photograph()).save(pictures / "photograph.png")
    for runtime, precision, speed in rows:
        out = folder / f"{runtime}-{precision}-{speed}"
        if (out / "manifest.json").exists():
            continue
        say(f"exporting {out.name}")
        command = [sys.executable, "-m", "efficientsam3", "export", "--model", model]
        command += ["--checkpoint", str(checkpoint), "--to", runtime, "--precision", precision]
        command += ["--speed", speed, "--out", str(out)]
        if precision == "int8":
            command += ["--calibrate", str(pictures), "--calibrate-loss", "1"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def untrained(model: str, folder: Path) -> Path:
    """A file of untrained weights, written where it is missing.

    Args:
        model: Name of the model.
        folder: Its folder, made where it is missing.
    """
    from efficientsam3.checkpoints.save import save_untrained

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "untrained.pt"
    if not file.exists():
        save_untrained(model, file)
    return file


def child_export(folder: str, repeat: int, many: bool) -> dict[str, float]:
    """Times of an exported model, in a process that has not imported torch.

    Args:
        folder: The folder of the export.
        repeat: Runs, whose median is taken.
        many: Whether 80 concepts are asked, too.
    """
    import efficientsam3 as es3

    model = es3.load(folder)
    return timed(model, repeat, many)


def child_pytorch(arguments: argparse.Namespace, dtype: str, speed: str) -> dict[str, float]:
    """Times of a model of PyTorch.

    Args:
        arguments: The command's arguments.
        dtype: Its dtype, or "best".
        speed: "exact" or "fast".
    """
    import efficientsam3 as es3

    chosen = None if dtype == "best" else dtype
    model = es3.load(arguments.model, checkpoint=arguments.checkpoint, dtype=chosen, speed=speed)
    return timed(model, arguments.repeat, arguments.many)


def timed(model: Any, repeat: int, many: bool = True) -> dict[str, float]:
    """Seconds of the columns, and the highest memory of the process after the first image, MiB.

    Args:
        model: The model.
        repeat: Runs, whose median is taken.
        many: Whether 80 concepts are asked, too; if not, their column is missing.
    """
    image = photograph()
    options: dict[str, Any] = {"threshold": 0.0, "max_instances": 20}
    model.segment(image, [CONCEPTS[0]], **options)
    since_start = time.time() - float(os.environ["STARTED"])
    memory = peak()
    clock, runs = time.perf_counter, []
    for _ in range(repeat):
        model._texts.clear()
        times = [clock()]
        encoded = model.encode(image)
        times.append(clock())
        for concept in CONCEPTS:
            model.segment(encoded, [concept], **options)
            times.append(clock())
        steps = (b - a for a, b in itertools.pairwise(times))
        runs.append((*steps, times[2] - times[0]))
    read, first, following, together = (statistics.median(c) for c in zip(*runs, strict=True))
    found = {
        "start": since_start,
        "image": read,
        "first concept": first,
        "together": together,
        "next concept": following,
        "MiB": memory,
    }
    if many:
        start = clock()
        things = [f"thing {i}" for i in range(80)]
        model.segment(encoded, things, threshold=0.5, max_instances=20)
        found["80 concepts"] = clock() - start
    return found


def child_upstream(arguments: argparse.Namespace) -> dict[str, float]:
    """The same questions to upstream's code; 80 concepts are reckoned from the next one.

    Args:
        arguments: The command's arguments.
    """
    from image import child_upstream as answer

    found = answer(arguments, photograph())
    since_start = time.time() - float(os.environ["STARTED"])
    return {
        "start": since_start - arguments.repeat * (found["both"] + found["next concept"]),
        "image": found["image"],
        "first concept": found["first concept"],
        "together": found["both"],
        "next concept": found["next concept"],
        "80 concepts": 80 * found["next concept"],
        "MiB": found["peak MiB"],
    }


def peak() -> float:
    """Highest memory of this process so far, MiB; read without torch."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


@contextmanager
def busy_process(wanted: bool) -> Iterator[None]:
    """One process that computes without end beside what is measured.

    Args:
        wanted: Whether to start it.
    """
    other = None
    if wanted:
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        if other:
            other.kill()
            other.wait()


def run(arguments: argparse.Namespace, row: str, many: bool) -> dict[str, float]:
    """Figures of one process.

    Args:
        arguments: The command's arguments.
        row: Name of the row.
        many: Whether 80 concepts are asked, too.
    """
    command = [sys.executable, __file__, arguments.model, "--child", row]
    command += ["--checkpoint", str(arguments.checkpoint), "--repeat", str(arguments.repeat)]
    command += ["--folder", str(arguments.folder), *(["--many"] if many else [])]
    if arguments.upstream:
        command += ["--upstream", arguments.upstream]
    environment = {**os.environ, "STARTED": str(time.time())}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(rows: dict[str, list[dict[str, float]]]) -> list[str]:
    """Medians of each row as Markdown, with the factors of upstream's where it was timed.

    Args:
        rows: Figures of each turn, by the name of the row.
    """
    medians = {
        name: {
            c: statistics.median(values)
            for c in COLUMNS
            if (values := [turn[c] for turn in turns if c in turn])
        }
        for name, turns in rows.items()
    }
    reference = medians.get("upstream")
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in medians.items():
        cells = []
        for column in COLUMNS:
            if column not in row:
                cells.append("-")
                continue
            value = f"{row[column]:.0f}" if column == "MiB" else f"{row[column]:.2f}"
            if reference and row is not reference and column not in ("MiB", "start"):
                value += f" ({reference[column] / row[column]:.1f}x)"
            cells.append(value)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="efficientsam3-tinyvit-11m")
    parser.add_argument("--checkpoint", help="weights in upstream's layout; default: untrained")
    parser.add_argument("--upstream", help="a checkout of upstream, to time beside ours")
    parser.add_argument("--folder", type=Path, default=Path("out/benchmarks/backends"))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--busy", action="store_true", help="then again beside a busy process")
    parser.add_argument("--busy-only", action="store_true", help="beside a busy process alone")
    parser.add_argument("--rows", nargs="+", help="only these rows")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--many", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, *rest = arguments.child.split()
        if kind == "upstream":
            found = child_upstream(arguments)
        elif kind == "PyTorch":
            found = child_pytorch(arguments, *rest)
        else:
            folder = arguments.folder / "-".join([kind, *rest])
            found = child_export(str(folder), arguments.repeat, arguments.many)
        print(json.dumps(found))
        return
    if arguments.checkpoint is None:
        arguments.checkpoint = untrained(arguments.model, arguments.folder)
    rows = ["upstream"] if arguments.upstream else []
    rows += [" ".join(("PyTorch", *row)) for row in PYTORCH]
    rows += [" ".join(row) for row in EXPORTS]
    rows = [row for row in rows if arguments.rows is None or row in arguments.rows]
    exports = [row for row in EXPORTS if " ".join(row) in rows]
    export_all(arguments.model, arguments.checkpoint, arguments.folder, list(exports))
    quiet_and_busy = (True,) if arguments.busy_only else (False, True)
    for busy in quiet_and_busy if arguments.busy or arguments.busy_only else (False,):
        timed_rows: dict[str, list[dict[str, float]]] = {row: [] for row in rows}
        with busy_process(busy):
            for turn in range(arguments.turns):
                for row in rows:
                    many = turn == 0 and not busy and row in MANY
                    timed_rows[row].append(run(arguments, row, many))
                say(f"turn {turn + 1} of {arguments.turns}{', beside a busy process' * busy}")
                for line in table(timed_rows):
                    print(line, flush=True)


if __name__ == "__main__":
    main()
