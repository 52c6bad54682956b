"""The command ``efficientsam3 track``: concepts through a video, into files."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ..errors import join_names
from .common import (
    EXIT_FAILED,
    ProgressBar,
    UsageError,
    exit_stopped,
    parse_boxes,
    pluralize,
    print_status,
)
from .concept_options import (
    ClassAgnosticOption,
    ConceptOption,
    ConceptsFileOption,
    NmsOption,
    OverlapMetric,
    OverlapMetricOption,
    parse_concepts,
)
from .example_options import (
    ExampleOption,
    NotExampleOption,
    Presence,
    PresenceOption,
    parse_examples,
)
from .model_options import ModelOptions, with_model_options
from .object_options import ObjectOption, parse_objects
from .polygon_options import CocoMasks, PolygonsOption, ToleranceOption, read_coco_masks

if TYPE_CHECKING:
    from ..video.run import Renderers
    from ..video.types import TrackedFrame

OUT = Path("out")


class Tracker(str, Enum):
    """What objects are tracked by; see ``efficientsam3.track``."""

    auto = "auto"
    memory = "memory"
    iou = "iou"


class _Outputs(NamedTuple):
    """Files to write; None: not asked for."""

    video: Path | None
    mot: Path | None
    coco: Path | None
    veval: Path | None
    sheet: Path | None


@with_model_options()
def track(
    *,
    source: Annotated[
        str,
        typer.Argument(
            help="A video file, a folder of images, a pattern in quotes, an address, or the number "
            "of a camera."
        ),
    ],
    concept: ConceptOption = None,
    concepts_file: ConceptsFileOption = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            help="x0,y0,x1,y1 in pixels: a positive exemplar on the first frame, with one "
            "--concept or alone; repeat it for several."
        ),
    ] = None,
    not_box: Annotated[
        list[str] | None, typer.Option(help="x0,y0,x1,y1 in pixels: a negative exemplar.")
    ] = None,
    objects: ObjectOption = None,
    example: ExampleOption = None,
    not_example: NotExampleOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="A video with the objects drawn: .mp4, .mov, .m4v or .mkv. out/<name>.mp4 if no "
            "output is named.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="The run file, a line of JSON a frame (.jsonl); beside the first output if "
            "omitted.",
        ),
    ] = None,
    mot: Annotated[Path | None, typer.Option(help="MOT challenge text.")] = None,
    coco: Annotated[
        Path | None, typer.Option(help="COCO-VID JSON as YouTube-VIS has it, with masks.")
    ] = None,
    polygons: PolygonsOption = False,
    tolerance: ToleranceOption = 0.0,
    veval: Annotated[
        Path | None, typer.Option(help="Predictions for SA-Co/VEval, as JSON.")
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            help="With --veval: the SA-Co/VEval file with the identities of video and concepts.",
            exists=True,
        ),
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="A picture of a dozen frames.")] = None,
    options: ModelOptions,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Score above which detections are used; 0.5 if omitted, 0.4 with SAM3.1.",
        ),
    ] = None,
    presence: PresenceOption = Presence.multiply,
    nms: NmsOption = None,
    class_agnostic: ClassAgnosticOption = False,
    overlap_metric: OverlapMetricOption = OverlapMetric.iou,
    tracker: Annotated[
        Tracker,
        typer.Option(
            help="memory: by the model's video memory. iou: by overlap of detections. auto: "
            "memory where the model has one."
        ),
    ] = Tracker.auto,
    detect_every: Annotated[
        int, typer.Option(min=1, help="The detector runs on every n-th frame.")
    ] = 1,
    cuts: Annotated[
        bool,
        typer.Option(
            "--cuts/--no-cuts",
            help="End all tracks where a frame begins another scene.",
        ),
    ] = True,
    value_range: Annotated[
        str | None,
        typer.Option(
            help="BLACK,WHITE: the range of values, for images that have not 8 bits.",
            metavar="RANGE",
        ),
    ] = None,
    reconnect: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds for which a camera or an address that goes away is waited for. If "
            "omitted, 30 for cameras and broadcasts, and 0 for others, whose films have an end.",
        ),
    ] = None,
    start: Annotated[int, typer.Option(min=0, help="First frame, from 0.")] = 0,
    stop: Annotated[
        int | None, typer.Option(min=0, help="Frame to end before; the end if omitted.")
    ] = None,
    stride: Annotated[int, typer.Option(min=1, help="Take every n-th frame.")] = 1,
    rate: Annotated[
        float | None, typer.Option(help="Frames per second, for images, which have no times.")
    ] = None,
    latest_only: Annotated[
        bool | None,
        typer.Option(
            "--latest-only/--every-frame",
            help="Skip frames that arrive while one is processed. If omitted, this is done for "
            "cameras and broadcasts, and other sources are read completely.",
            show_default=False,
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start again instead of continuing a stopped run.")
    ] = False,
) -> None:
    """Track concepts through a video; write a video, MOT, COCO-VID or SA-Co/VEval files.

    After Ctrl-C all files hold what is done until then, and the same command continues. The last
    32 frames before the stop are then tracked again, to give objects their earlier identities.

    Boxes and objects need no concept where the model has a video memory. A stopped run with boxes
    or objects is tracked from its first frame again, because they are drawn on earlier frames.

    Example: efficientsam3 track clip.mp4 -c person --out out.mp4 --mot out.txt
    """
    from .. import __version__
    from ..io.frames import read_frames
    from ..io.identity import identity
    from ..masks.extent import describe_left_out
    from ..prompts import read_boxes
    from ..segmenter import VISUAL
    from ..video.objects import check_objects
    from ..video.run import run
    from ..video.settings import CutSettings, TrackSettings
    from ..video.track import track as track_frames
    from ..video.track_file import TrackFile
    from ..video.track_writers import check_truth

    concepts = parse_concepts(concept, concepts_file)
    classes = list(concepts or ())
    form = read_coco_masks(polygons, tolerance)
    if polygons and coco is None:
        raise UsageError("--polygons is for the file of --coco, which is not asked for")
    boxes, box_labels = parse_boxes(box, not_box)
    examples = parse_examples(example, not_example)
    if not classes and not box and not objects and not examples:
        raise UsageError(
            "nothing to track: name it with --concept, show what it is like with --box or "
            "--example, or show objects with --object"
        )
    if (boxes or examples) and len(classes) > 1:
        raise UsageError(
            f"boxes show one concept; got {len(classes)}: {join_names(classes)}. Run the command "
            "once for each"
        )
    if truth is not None and veval is None:
        raise UsageError("--truth has the identities for --veval, which is not asked for")
    place: Any = int(source) if source.isdecimal() and not Path(source).exists() else source
    reader = read_frames(
        place,
        start=start,
        stop=stop,
        stride=stride,
        rate=rate,
        latest_only=latest_only,
        value_range=value_range.split(",") if value_range else None,
        reconnect=reconnect,
    )
    info = reader.info
    if boxes and info.size is not None:
        read_boxes(boxes, info.size)  # an error is raised before the model is loaded
    shown = parse_objects(objects, info.file_names)
    ends = [end for end in (stop, info.frames) if end is not None]
    check_objects(shown, start, min(ends, default=None), stride, info.size)
    labels = classes or ([VISUAL] if examples else [])
    labels = list(dict.fromkeys([*labels, *(one.label for one in shown)]))
    path, outputs = _choose_files(info.name, json_file, _Outputs(out, mot, coco, veval, sheet))
    if truth is not None:
        check_truth(info.name, classes, truth)
    asked = {
        "efficientsam3": __version__,
        "source": _source_identity(source, info.live),
        "concepts": concepts,
        "boxes": boxes,
        "box_labels": box_labels,
        "exemplars": [{**one, "image": identity(Path(one["image"]))} for one in examples],
        "objects": [_object_identity(value) for value in objects or ()],
        **options.identity(),
        "threshold": threshold,
        "presence": presence.value,
        "nms": nms,
        "class_agnostic": class_agnostic,
        "overlap_metric": overlap_metric.value,
        "tracker": tracker.value,
        "detect_every": detect_every,
        "start": start,
        "stride": stride,
        "rate": rate,
        "latest_only": latest_only,
        "cuts": cuts,
        "value_range": value_range,
    }
    video = {
        "name": info.name,
        "rate": info.rate,
        "frames": info.frames,
        "concepts": labels,
        "file_names": info.file_names,
    }
    changes: dict[str, Any] = {
        "detection_threshold": threshold,
        "presence": presence.value,
        "nms": nms,
        "class_agnostic": class_agnostic,
        "overlap_metric": None if overlap_metric is OverlapMetric.iou else overlap_metric.value,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    TrackSettings(**changes)  # an error is raised before the model is loaded
    with _sigterm_as_interrupt(), ExitStack() as files:
        files.callback(reader.close)
        file = files.enter_context(TrackFile(path, asked, video, restart=restart))
        if info.live and file.count:
            raise UsageError(
                f"{path} has frames of {info.name}, which cannot be read again: name other files, "
                "or --restart"
            )
        complete = file.is_complete(stop)
        if file.count:
            print_status(f"{pluralize(file.count, 'frame')} done before")
        renderers = _renderers(path, outputs, info.rate, complete)
        stopped = False
        try:
            track_all = None
            if not complete:
                model = options.load()
                track_all = partial(
                    track_frames,
                    model,
                    concepts=concepts,
                    boxes=boxes or None,
                    box_labels=box_labels or None,
                    exemplars=[model.exemplar(**one) for one in examples] or None,
                    objects=shown or None,
                    tracker=tracker.value,
                    settings=TrackSettings.of(
                        model, cuts=CutSettings() if cuts else None, **changes
                    ),
                    detect_every=detect_every,
                    keep_images=bool(renderers),
                )
            if not complete or renderers:
                with ProgressBar(info.name, reader.expected, file.count) as bar:
                    run(
                        reader,
                        file,
                        track_all,
                        renderers,
                        detect_every=detect_every,
                        from_start=bool(boxes or shown),
                        progress=partial(_show_progress, bar),
                    )
        except KeyboardInterrupt:
            stopped = True
        finally:
            renderers.close()
        if reader.skipped:
            skipped = pluralize(reader.skipped, "frame")
            print_status(f"{skipped} arrived while others were processed, and were skipped")
        written = _write_formats(path, outputs, truth, form)
        frames, tracks = pluralize(file.count, "frame"), pluralize(file.next_id, "track")
        print_status(f"{frames} with {tracks} in {', '.join(map(str, written))}", "green")
        if file.left_out:
            print_status(describe_left_out(file.left_out))
        left_out = max(reader.left_out, file.left_out if file.is_complete(stop) else 0)
    if stopped:
        exit_stopped()
    if left_out:
        print_status(f"{pluralize(left_out, 'frame')} could not be read", "red")
        raise typer.Exit(EXIT_FAILED)


def _choose_files(name: str, run_file: Path | None, outputs: _Outputs) -> tuple[Path, _Outputs]:
    """The run file and the outputs, with defaults, after a check of their names."""
    from ..viz.video_writer import check_suffix

    if not any((run_file, *outputs)):
        # The name of a source can be an address.
        stem = re.sub(r"[^\w.-]+", "-", Path(name).stem).strip("-") or "video"
        outputs = outputs._replace(video=OUT / f"{stem}.mp4")
    if outputs.video is not None:
        check_suffix(outputs.video)
    if run_file is None:
        first = next(path for path in outputs if path is not None)
        run_file = first.with_suffix(".tracks.jsonl")
    paths = [path.absolute() for path in (run_file, *outputs) if path is not None]
    if len(set(paths)) < len(paths):
        raise UsageError("each output needs a file of its own")
    return run_file, outputs


def _source_identity(source: str, live: bool) -> Any:
    """What tells whether a source is still the same."""
    from ..io.frames import find_files
    from ..io.identity import identity

    if live or "://" in source:
        return {"path": source}
    if Path(source).expanduser().is_dir():
        # Only images are frames: files that are written into the folder do not count.
        return {**identity(find_files(source)), "path": str(Path(source).absolute())}
    return identity(source)


def _object_identity(value: str) -> Any:
    """What tells whether the objects of an option are still the same."""
    from ..io.identity import identity

    file = Path(re.sub(r"^\d+:", "", value))
    return {"object": value, **identity(file)} if file.is_file() else value


def _renderers(path: Path, outputs: _Outputs, rate: float | None, complete: bool) -> Renderers:
    """What draws pictures; nothing where all tracks are found and drawn already."""
    from ..video.run import Renderers
    from ..viz.contact_sheet import ContactSheet
    from ..viz.video_writer import OverlayVideo

    def is_due(picture: Path | None) -> bool:
        if picture is None or not complete or not picture.exists():
            return picture is not None
        return picture.stat().st_mtime_ns < path.stat().st_mtime_ns

    return Renderers(
        OverlayVideo(outputs.video, rate) if outputs.video and is_due(outputs.video) else None,
        ContactSheet(outputs.sheet) if outputs.sheet and is_due(outputs.sheet) else None,
    )


def _write_formats(
    path: Path, outputs: _Outputs, truth: Path | None, form: CocoMasks
) -> list[Path]:
    """Write the formats that are asked for; gives all files that exist."""
    from ..video.track_writers import names_path, write_coco, write_mot, write_veval

    pictures = (outputs.video, outputs.sheet)
    written = [picture for picture in pictures if picture is not None and picture.exists()]
    if outputs.mot is not None:
        written += [*write_mot(path, outputs.mot), names_path(outputs.mot, "mot")]
    if outputs.coco is not None:
        write_coco(path, outputs.coco, masks=form.masks, tolerance=form.tolerance)
        written.append(outputs.coco)
    if outputs.veval is not None:
        write_veval(path, outputs.veval, truth)
        written += [outputs.veval, names_path(outputs.veval, "veval")]
    return [*written, path]


def _show_progress(bar: ProgressBar, tracked: TrackedFrame, drawn_again: bool) -> None:
    if drawn_again:
        bar.update(note=f"drawing frame {tracked.index}")
    else:
        bar.advance(pluralize(len(tracked.instances), "object"))


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that files are finished."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
