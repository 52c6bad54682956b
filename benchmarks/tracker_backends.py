"""Time of the memory tracker for an object and frame, on each runtime beside upstream's.

    python benchmarks/tracker_backends.py --upstream CHECKOUT --turns 5

Each turn starts one process for each row. A process fills the memories of its objects, seven frames
and sixteen pointers, and then times the next frame: memory attention, masks and new memories. The
image encoder is not part of it. Exports are those of ``benchmarks/backends.py``, and are made
where they are missing. Times do not depend on the weights, which are untrained.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from backends import busy_process, export_all, untrained
from report import say

EXPORTS = (("openvino", "float32", "exact"), ("openvino", "bfloat16", "exact"))
PYTORCH = ("PyTorch float32", "PyTorch best")
FRAMES = 17
"""Frames after which all memories are full."""


def fill_upstream(tracker: Any, count: int) -> tuple[Any, Any]:
    """Upstream's tracker with full memories, and a function that tracks the next frame.

    Args:
        tracker: Upstream's tracker.
        count: Number of objects in one batch, as upstream tracks objects of one frame.
    """
    import torch

    sizes = [(288, 288), (144, 144), (72, 72)]
    generator = torch.Generator().manual_seed(0)
    features = [
        torch.randn(h * w, 1, c, generator=generator).expand(-1, count, -1)
        for (h, w), c in zip(sizes, (32, 64, 256), strict=True)
    ]
    positions = [
        torch.randn(h * w, 1, 256, generator=generator).expand(-1, count, -1) for h, w in sizes
    ]
    outputs: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}

    def step(frame: int, masks: Any = None) -> Any:
        return tracker.track_step(
            frame_idx=frame,
            is_init_cond_frame=masks is not None,
            current_vision_feats=features,
            current_vision_pos_embeds=positions,
            feat_sizes=sizes,
            image=None,
            point_inputs=None,
            mask_inputs=masks,
            output_dict=outputs,
            num_frames=FRAMES + 1,
        )

    given = torch.zeros(count, 1, 1008, 1008)
    given[:, :, 300:600, 300:600] = 1
    outputs["cond_frame_outputs"][0] = step(0, given)
    second = step(1)
    # Untrained weights are unsure of every frame, and would select none.
    second["eff_iou_score"] = torch.ones(())
    for frame in range(1, FRAMES):
        outputs["non_cond_frame_outputs"][frame] = second
    return outputs, lambda: step(FRAMES)


def child_upstream(arguments: argparse.Namespace) -> float:
    """Seconds of a frame in upstream's code.

    Args:
        arguments: The command's arguments.
    """
    import torch
    from video_upstream import build

    with contextlib.redirect_stdout(io.StringIO()), torch.inference_mode():
        tracker = build(Path(arguments.upstream)).tracker.eval()
        outputs, step = fill_upstream(tracker, arguments.objects)
        read = len(outputs["non_cond_frame_outputs"])
        if read != FRAMES - 1:
            sys.exit(f"{read} frames are remembered, not {FRAMES - 1}")
        return median(step, arguments.repeat)


def child_ours(arguments: argparse.Namespace, row: str) -> float:
    """Seconds of a frame in our code.

    Args:
        arguments: The command's arguments.
        row: Name of the row.
    """
    import torch
    from video import full_tracker

    import efficientsam3 as es3

    if row in PYTORCH:
        dtype = None if row.endswith("best") else "float32"
        model: Any = es3.load(arguments.model, checkpoint=arguments.checkpoint, dtype=dtype)
    else:
        model = es3.load(str(arguments.folder / row.replace(" ", "-")))
    with torch.inference_mode():
        tracker, features = full_tracker(model, arguments.objects, frames=FRAMES)

        def step() -> None:
            features.attention_input = None  # what depends on the frame alone counts too
            tracker.remember(FRAMES, features, tracker.propagate(FRAMES, features))

        return median(step, arguments.repeat)


def median(step: Any, repeat: int) -> float:
    """Seconds of a call, after a first one.

    Args:
        step: What is called.
        repeat: Calls, whose median is taken.
    """
    step()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def run(arguments: argparse.Namespace, row: str) -> float:
    """Seconds of a frame, in a process of its own.

    Args:
        arguments: The command's arguments.
        row: Name of the row.
    """
    command = [sys.executable, __file__, arguments.model, "--child", row]
    command += ["--checkpoint", str(arguments.checkpoint), "--repeat", str(arguments.repeat)]
    command += ["--folder", str(arguments.folder), "--objects", str(arguments.objects)]
    if arguments.upstream:
        command += ["--upstream", arguments.upstream]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="efficientsam3-tinyvit-11m")
    parser.add_argument("--checkpoint", help="weights in upstream's layout; default: untrained")
    parser.add_argument("--upstream", help="a checkout of upstream, to time beside ours")
    parser.add_argument("--folder", type=Path, default=Path("out/benchmarks/backends"))
    parser.add_argument("--objects", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--busy", action="store_true", help="beside a busy process")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        upstream = arguments.child == "upstream"
        found = child_upstream(arguments) if upstream else child_ours(arguments, arguments.child)
        print(json.dumps(found))
        return
    if arguments.checkpoint is None:
        arguments.checkpoint = untrained(arguments.model, arguments.folder)
    export_all(arguments.model, arguments.checkpoint, arguments.folder, list(EXPORTS))
    if arguments.turns < 1:  # the exports alone
        return
    rows = ["upstream"] if arguments.upstream else []
    rows += [*PYTORCH, *(" ".join(row) for row in EXPORTS)]
    times: dict[str, list[float]] = {row: [] for row in rows}
    with busy_process(arguments.busy):
        for turn in range(arguments.turns):
            for row in rows:
                times[row].append(run(arguments, row))
            say(f"turn {turn + 1} of {arguments.turns}")
    medians = {row: statistics.median(values) / arguments.objects for row, values in times.items()}
    print("| | ms an object and frame |", "|---|---|", sep="\n")
    for row, seconds in medians.items():
        factor = ""
        if arguments.upstream and row != "upstream":
            factor = f" ({medians['upstream'] / seconds:.1f}x)"
        print(f"| {row} | {1000 * seconds:.0f}{factor} |")


if __name__ == "__main__":
    main()
