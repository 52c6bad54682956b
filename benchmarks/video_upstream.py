"""What upstream's video predictor keeps of each frame, beside ours: memory against length.

    python benchmarks/video_upstream.py --upstream CHECKOUT --marks 16 24 32 40

--upstream: a checkout of SimonZeng7108/efficientsam3. Its video does not run on a CPU as it is.
What is changed here, none of it to its disadvantage: ``Tensor.cuda`` does nothing, holes are not
filled (its own components fail where there is nothing to fill), the first frame's features stand
for all frames, and detections and masks are those of the squares that both follow, since untrained
weights see nothing. What is kept from frame to frame, it keeps. bfloat16 as on its GPUs; ours is in
float32. Each in a process of its own, the same film, whatever leaves the tracker is let go.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import video
import video_film
from PIL import Image
from rich.table import Table

SURE = 8.0
"""Logit of what is there, as steered."""


def write_frames(folder: Path, frames: int) -> None:
    """The film as pictures: upstream scales those rightly, and MP4 not."""
    for t in range(frames):
        Image.fromarray(video_film.picture(t)).save(folder / f"{t:05d}.jpg", quality=95)


def build(checkout: Path) -> Any:
    """Upstream's TinyViT-11M video model, on a CPU."""
    sys.path.insert(0, str(checkout / "sam3"))
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[assignment,method-assign]
    from sam3.model import sam3_video_base
    from sam3.model_builder import build_efficientsam3_video_model

    sam3_video_base.fill_holes_in_mask_scores = lambda mask, **_: mask
    return build_efficientsam3_video_model(
        device="cpu",
        backbone_type="tinyvit",
        model_name="11m",
        text_encoder_type="MobileCLIP-S0",
        text_encoder_context_length=16,
    )


def steer(model: Any, count: int) -> None:
    """Its detector and its tracker say where the squares are."""
    detect, follow = model.detector.forward_video_grounding_multigpu, model.run_tracker_propagation
    first: dict[str, Any] = {}

    def low(t: int, size: Sequence[int]) -> torch.Tensor:
        there = F.interpolate(video_film.masks(t, count)[None].float(), tuple(size))[0]
        return 2 * SURE * there - SURE

    def detected(*arguments: Any, frame_idx: int, **options: Any) -> tuple[dict[str, Any], Any]:
        if not first:
            first.update(detect(*arguments, frame_idx=frame_idx, **options)[0])
        boxes = torch.tensor(video_film.squares(frame_idx, count), dtype=torch.float32)
        boxes = boxes / torch.tensor([*video.SIZE[::-1], *video.SIZE[::-1]])
        said = {
            "pred_logits": torch.full((1, count, 1), SURE),
            "pred_boxes_xyxy": boxes[None],
            "pred_masks": low(frame_idx, first["pred_masks"].shape[-2:])[None],
        }
        return first | said, None

    def followed(frame_idx: int, *arguments: Any, **options: Any) -> tuple[Any, Any]:
        masks, scores = follow(frame_idx, *arguments, **options)
        if len(masks):
            masks = low(frame_idx, masks.shape[-2:]).to(masks)
            scores = torch.full_like(scores, SURE)
        return masks, scores

    model.detector.forward_video_grounding_multigpu = detected
    model.run_tracker_propagation = followed


def theirs(arguments: argparse.Namespace) -> dict[str, Any]:
    """Memory of upstream after so many frames."""
    with contextlib.redirect_stdout(sys.stderr):
        model = build(arguments.upstream)
        steer(model, arguments.squares)
        rows: list[dict[str, float]] = []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            before = video.in_use()
            state = model.init_state(str(arguments.film), offload_video_to_cpu=True)
            gc.collect()
            held = (video.in_use() - before) / max(arguments.marks)
            model.add_prompt(state, 0, text_str="square")
            done, most = 0, 0
            # What is counted is what was computed: results come out fifteen frames later.
            step = model._run_single_frame_inference

            def counted(*given: Any, **options: Any) -> Any:
                nonlocal done, most
                out = step(*given, **options)
                done, most = done + 1, max(most, len(out["obj_id_to_mask"]))
                if done in arguments.marks:
                    gc.collect()
                    rows.append({"frames": done, "in use MiB": video.in_use()})
                    print(rows[-1], file=sys.stderr)
                return out

            model._run_single_frame_inference = counted
            for _ in model.propagate_in_video(state, 0, max(arguments.marks)):
                pass
    return {"rows": rows, "held": held, "objects": most}


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upstream", type=Path, required=True, help="a checkout")
    parser.add_argument("--marks", type=int, nargs="+", default=[16, 24, 32, 40], help="frames")
    parser.add_argument("--squares", type=int, default=1, help="objects to follow")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--film", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    torch.set_num_threads(arguments.threads)
    if arguments.film is not None:  # the process that is measured
        print(json.dumps(theirs(arguments)))
        return
    if not (arguments.upstream / "sam3" / "sam3").is_dir():
        sys.exit(f"--upstream {arguments.upstream} is no checkout: it has no folder sam3/sam3")
    common = ["--marks", *map(str, arguments.marks), "--squares", str(arguments.squares)]
    threads = ["--threads", str(arguments.threads)]
    with tempfile.TemporaryDirectory() as folder:
        frames, film = Path(folder, "frames"), Path(folder, "film.mp4")
        frames.mkdir()
        write_frames(frames, max(arguments.marks))
        video_film.write_film(film, max(arguments.marks))
        upstream = ["--upstream", str(arguments.upstream), "--film", str(frames)]
        told = {"upstream": video.child([__file__, *upstream, *threads, *common])}
        ours = ["memory", "--film", str(film), "--model", "efficientsam3-tinyvit-11m"]
        told["ours"] = video.child([video.__file__, *threads, *ours, "--no-pictures", *common])
    table = Table(title=f"TinyViT-11M at 1008 px, {arguments.squares} objects: MiB in use")
    for title in ("frames", *told):
        table.add_column(title, justify="right")
    for rows in zip(*(one["rows"] for one in told.values()), strict=True):
        table.add_row(str(rows[0]["frames"]), *(f"{row['in use MiB']:,.1f}" for row in rows))
    for name, one in told.items():
        if one["objects"] != arguments.squares:
            sys.exit(f"{name} followed {one['objects']} objects, not {arguments.squares}")
    growth = [grown(one["rows"]) for one in told.values()]
    table.add_row("each frame adds", *(f"{one:+.2f}" for one in growth))
    video.show(table)
    held = told["upstream"]["held"]
    print(f"beside that, upstream holds the whole clip from the start: {held:.2f} MiB a frame")


def grown(rows: Sequence[dict[str, float]]) -> float:
    """MiB a frame between the first mark and the last."""
    return (rows[-1]["in use MiB"] - rows[0]["in use MiB"]) / max(
        1, rows[-1]["frames"] - rows[0]["frames"]
    )


if __name__ == "__main__":
    main()
