"""`efficientsam3 track`: a video in; a video to look at, and tracks for other tools, out."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ..options import Dtype, Speed

if TYPE_CHECKING:
    from .concepts import TrackedFrame
    from .frames import VideoInfo
    from .journal import Journal
    from .run import Pictures

OUT = Path("out")


class Tracker(str, Enum):
    auto = "auto"
    memory = "memory"
    masks = "masks"


class Outputs(NamedTuple):
    """Files that are asked for; None: not wanted."""

    video: Path | None
    mot: Path | None
    coco: Path | None
    veval: Path | None
    sheet: Path | None


class Targets(NamedTuple):
    """All files of a run."""

    journal: Path
    outputs: Outputs


def track(
    source: Annotated[
        str,
        typer.Argument(
            help="A video file, a folder of images, a pattern in quotes, an address, or the number "
            "of a camera."
        ),
    ],
    concept: Annotated[
        list[str] | None, typer.Option("--concept", "-c", help="What to follow; again for more.")
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            help="X0,Y0,X1,Y1 in pixels of the first frame: like this. With one --concept, or "
            "alone; again for more."
        ),
    ] = None,
    not_box: Annotated[
        list[str] | None, typer.Option(help="X0,Y0,X1,Y1 in pixels: not like this.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="A video to look at: .mp4, .mov, .mkv. out/<name>.mp4 if omitted."
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Where the frames go as they are done, a line of JSON each (.jsonl); beside the "
            "first output if omitted.",
        ),
    ] = None,
    mot: Annotated[Path | None, typer.Option(help="MOT challenge's text.")] = None,
    coco: Annotated[
        Path | None, typer.Option(help="COCO-VID JSON, as YouTube-VIS has it, with masks.")
    ] = None,
    veval: Annotated[Path | None, typer.Option(help="Predictions for SA-Co/VEval, JSON.")] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            help="With --veval: the file that has the numbers of video and concepts.", exists=True
        ),
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="A picture of a dozen frames.")] = None,
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="A name of `efficientsam3 models`, or a saved folder."),
    ] = "efficientsam3-tinyvit-11m",
    checkpoint: Annotated[
        Path | None, typer.Option(help="A local weight file instead of the hub's.", exists=True)
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="A second file, for parts that the first lacks.", exists=True),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Another text encoder, which is in the file or in --base.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of a phrase: 16, 32 or 77.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best here if omitted.")
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="The best here if omitted.")] = None,
    speed: Annotated[
        Speed, typer.Option(help="fast: pooled keys and values, slightly other masks.")
    ] = Speed.exact,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Detections score more than this.")
    ] = 0.5,
    tracker: Annotated[
        Tracker,
        typer.Option(
            help="memory: by the model's video memory. masks: by overlap of detections. auto: "
            "memory where the weights have one."
        ),
    ] = Tracker.auto,
    every: Annotated[int, typer.Option(min=1, help="The detector runs on every n-th frame.")] = 1,
    start: Annotated[int, typer.Option(min=0, help="First frame, from 0.")] = 0,
    stop: Annotated[
        int | None, typer.Option(min=0, help="Frame to end before; the end if omitted.")
    ] = None,
    stride: Annotated[int, typer.Option(min=1, help="Take every n-th frame only.")] = 1,
    rate: Annotated[
        float | None, typer.Option(help="Frames a second, for images, which have no times.")
    ] = None,
    newest: Annotated[
        bool | None,
        typer.Option(
            "--newest/--every-frame",
            help="Pass over frames that come while one is worked on: so cameras and broadcasts "
            "are read if nothing is said, and files whole.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Go on with a run that was stopped.")
    ] = True,
) -> None:
    """Follow concepts through a video; write an overlay video, MOT, COCO-VID or VEval files.

    Ctrl-C ends it with all files of what is done until then; the same command goes on from there.
    The tracker then watches 32 frames before the stop again, to know who is who.

    Boxes need no words, where the weights have a video memory. A run with boxes that was stopped
    is followed from its first frame again, where they are.

    Example: efficientsam3 track clip.mp4 -c person --out out.mp4 --mot out.txt
    """
    from .. import __version__, cli
    from ..prompts import read_boxes
    from .forms import check_truth
    from .frames import read_frames
    from .journal import Journal
    from .run import first_frame, run, stoppable
    from .track import track as track_frames

    concepts = [c.strip() for c in concept or ()]
    boxes = [_corners(text) for text in (*(box or ()), *(not_box or ()))]
    signs = [1] * len(box or ()) + [0] * len(not_box or ())
    if not concepts and not box:
        raise cli.UsageError("nothing to follow: name it with --concept, or show it with --box")
    if boxes and len(concepts) > 1:
        raise cli.UsageError(
            f"boxes show one concept; got {len(concepts)}: {', '.join(concepts)}. Follow each with "
            "a command of its own"
        )
    if not all(concepts):
        raise cli.UsageError("a concept is a phrase such as 'person'; got an empty one")
    if truth is not None and veval is None:
        raise cli.UsageError("--truth has the numbers for --veval, which is not asked for")
    # The reader tells what it could not read, and it is said at the end.
    logging.getLogger("efficientsam3.video.frames").addHandler(logging.NullHandler())
    place: Any = int(source) if source.isdecimal() and not Path(source).exists() else source
    read = partial(read_frames, place, stop=stop, stride=stride, rate=rate, newest=newest)
    reader = read(start=start)
    info, total = reader.info, reader.expected
    if boxes and info.size is not None:
        read_boxes(boxes, info.size)  # before the model is loaded
    targets = _targets(info, json_file, Outputs(out, mot, coco, veval, sheet))
    if truth is not None:
        check_truth(info.name, concepts, truth)
    identity = {
        "efficientsam3": __version__,
        "source": _identity(source, info),
        "concepts": concepts,
        **({"boxes": boxes, "box_labels": signs} if boxes else {}),
        "model": cli._known(model),
        "weights": cli._weights(model, checkpoint, base),
        "text": text,
        "context": context,
        "dtype": dtype.value if dtype else None,
        "speed": speed.value,
        "threshold": threshold,
        "tracker": tracker.value,
        "every": every,
        "start": start,
        "stride": stride,
        "rate": rate,
        "newest": newest,
    }
    video = {"name": info.name, "rate": info.rate, "frames": info.frames, "concepts": concepts}
    with stoppable(), ExitStack() as files:
        files.push(lambda *_: reader.close())
        journal = files.enter_context(Journal(targets.journal, identity, video, restart=not resume))
        if info.live and journal.count:
            raise cli.UsageError(
                f"{targets.journal} has frames of {info.name}, which cannot be seen again: name "
                "other files, or --restart"
            )
        whole = journal.is_whole(stop)
        if journal.count:
            cli._say(f"{cli._count(journal.count, 'frame')} done before")
        follow = None
        pictures = _pictures(targets, info.rate, whole)
        stopped = False
        try:
            if not whole:
                loaded = cli._load(model, checkpoint, base, text, context, device, dtype, speed)
                follow = partial(
                    track_frames,
                    loaded,
                    concepts=concepts or None,
                    boxes=boxes or None,
                    box_labels=signs or None,
                    tracker=tracker.value,
                    threshold=threshold,
                    every=every,
                )
            first = first_frame(journal, start, stride, every, bool(pictures or boxes))
            if first != start:
                reader.close()
                reader = read(start=first)
            if follow is not None or pictures:
                with _bar(info.name, total, journal.count) as progress:
                    run(
                        reader,
                        journal,
                        follow,
                        pictures,
                        start=start,
                        stop=stop,
                        every=every,
                        anew=bool(boxes),
                        progress=progress,
                    )
        except KeyboardInterrupt:
            stopped = True
        finally:
            pictures.close()
        if reader.passed:
            passed = cli._count(reader.passed, "frame")
            cli._say(f"{passed} came while others were worked on, and were passed over")
        for sentence in reader.trouble:
            cli._say(sentence, "yellow")
        _say_done(journal, _write(targets, truth))
    if stopped:
        cli._say("stopped. What is done is kept: run the same command again to go on", "yellow")
        raise typer.Exit(cli.STOPPED)


def _corners(text: str) -> list[float]:
    """A box as it is typed."""
    from .. import cli

    try:
        corners = [float(part) for part in text.split(",")]
    except ValueError:
        corners = []
    if len(corners) != 4:
        raise cli.UsageError(f"a box is X0,Y0,X1,Y1 in pixels, as 120,80,260,310; got {text!r}")
    return corners


def _targets(info: VideoInfo, journal: Path | None, wanted: Outputs) -> Targets:
    """The files to write, after a look at their names."""
    from .. import cli
    from .overlay import check_suffix

    if not any((journal, *wanted)):
        wanted = wanted._replace(video=OUT / f"{_plain(info.name)}.mp4")
    if wanted.video is not None:
        check_suffix(wanted.video)
    if journal is None:
        first = next(path for path in wanted if path is not None)
        journal = first.with_suffix(".tracks.jsonl")
    names = [path.absolute() for path in (journal, *wanted) if path is not None]
    if len(set(names)) < len(names):
        raise cli.UsageError("each output needs a file of its own")
    return Targets(journal, wanted)


def _plain(name: str) -> str:
    """A file's name from that of a source, which can be an address or a camera."""
    return re.sub(r"[^\w.-]+", "-", Path(name).stem).strip("-") or "video"


def _identity(source: str, info: VideoInfo) -> list[Any]:
    """What tells whether a source is still the same."""
    path = Path(source).expanduser()
    if info.live or not path.exists():
        return [source]
    if path.is_dir():
        return [str(path.absolute()), info.frames]
    stat = path.stat()
    return [str(path.absolute()), stat.st_size, stat.st_mtime_ns]


def _pictures(targets: Targets, rate: float | None, whole: bool) -> Pictures:
    """Who draws; nobody where the tracks are whole and drawn already."""
    from .overlay import OverlayVideo
    from .run import Pictures
    from .sheet import ContactSheet

    video, sheet = targets.outputs.video, targets.outputs.sheet
    if whole:
        video, sheet = (
            None if path is None or _is_newer(path, targets.journal) else path
            for path in (video, sheet)
        )
    return Pictures(
        None if video is None else OverlayVideo(video, rate),
        None if sheet is None else ContactSheet(sheet),
    )


def _is_newer(path: Path, other: Path) -> bool:
    return path.exists() and path.stat().st_mtime_ns >= other.stat().st_mtime_ns


def _write(targets: Targets, truth: Path | None) -> list[Path]:
    """Write the forms; gives all files that are there."""
    from .forms import write_coco, write_mot, write_veval

    _, (video, mot, coco, veval, sheet) = targets
    written = [path for path in (video, sheet) if path is not None and path.exists()]
    if mot is not None:
        written += write_mot(targets.journal, mot)
    if coco is not None:
        write_coco(targets.journal, coco)
        written.append(coco)
    if veval is not None:
        write_veval(targets.journal, veval, truth)
        written.append(veval)
    return [*written, targets.journal]


def _say_done(journal: Journal, written: list[Path]) -> None:
    from .. import cli

    frames, tracks = cli._count(journal.count, "frame"), cli._count(journal.ids, "track")
    cli._say(f"{frames} with {tracks} in {', '.join(map(str, written))}", "green")


@contextmanager
def _bar(name: str, total: int | None, done: int) -> Iterator[Callable[[TrackedFrame, bool], None]]:
    """A progress bar with objects in sight, and the time that is left where the end is known."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from .. import cli

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns, console=cli._errors()) as bar:
        task = bar.add_task(name, total=total, completed=done, said="")

        def show(tracked: TrackedFrame, drawn: bool) -> None:
            if drawn:  # again: it was done before
                bar.update(task, said=f"drawing frame {tracked.index}")
            else:
                said = cli._count(len(tracked.instances), "object")
                bar.update(task, advance=1, said=said)

        yield show
