"""Milliseconds, arithmetic and memory of the image model, part by part.

    python benchmarks/image.py efficientsam3-tinyvit-11m --speed exact fast
    python benchmarks/image.py efficientsam3-tinyvit-11m --upstream CHECKOUT

Without --checkpoint the weights are untrained: time does not depend on them, agreement does.
--upstream times a checkout of SimonZeng7108/efficientsam3 on the same machine, turn by turn
with ours (its own dependencies must be installed). Memory is read in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CONCEPTS = ("bus", "a person in black")


def photograph() -> np.ndarray:
    """scikit-learn's china.jpg if it is there, else noise: time does not depend on it."""
    package = importlib.util.find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        return np.asarray(Image.open(Path(folder) / "datasets" / "images" / "china.jpg"))
    return np.random.default_rng(0).integers(0, 256, (427, 640, 3), np.uint8)


def load(arguments: argparse.Namespace, speed: str, dtype: str | None) -> Any:
    import efficientsam3 as es3

    return es3.load(
        arguments.model,
        checkpoint=arguments.checkpoint,
        base=arguments.base,
        dtype=dtype,
        speed=speed,
    )


def parts_table(arguments: argparse.Namespace, image: np.ndarray) -> None:
    """Print the cost of every part, for each speed and dtype asked for."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from efficientsam3 import benchmark

    console = Console()
    for dtype in arguments.dtype:
        for speed in arguments.speed:
            model = load(arguments, speed, None if dtype == "best" else dtype)
            peak = benchmark.gemm_peak(model.dtype, model.device)
            rows = benchmark.costs(model, image, CONCEPTS[0], repeat=arguments.repeat)
            table = Table("part", "ms", "GFLOP", "GFLOP/s", "of peak", title=repr(model))
            for row in rows:
                share = f"{row.gflops / peak:.0%}" if row.gflop else ""
                table.add_row(
                    row.part,
                    f"{row.milliseconds:.0f}",
                    f"{row.gflop:.1f}",
                    f"{row.gflops:.0f}" if row.gflop else "",
                    share,
                )
            console.print(table)
            console.print(
                f"matrix product peak {peak:.0f} GFLOP/s, {torch.get_num_threads()} threads; "
                f"sum {sum(r.milliseconds for r in rows):.0f} ms, "
                f"{sum(r.gflop for r in rows):.0f} GFLOP"
            )


def child(arguments: argparse.Namespace, kind: str, *options: str) -> dict[str, float]:
    """Times and peak memory of a process that does nothing else."""
    command = [sys.executable, __file__, arguments.model, "--checkpoint", arguments.checkpoint]
    command += ["--repeat", str(arguments.repeat), "--child", kind, *options]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def child_ours(arguments: argparse.Namespace, image: np.ndarray) -> dict[str, float]:
    from efficientsam3 import benchmark

    dtype = arguments.dtype[0]
    model = load(arguments, arguments.speed[0], None if dtype == "best" else dtype)
    return benchmark.whole(model, image, CONCEPTS, repeat=arguments.repeat)


def child_upstream(arguments: argparse.Namespace, image: np.ndarray) -> dict[str, float]:
    """The same questions through upstream's own API."""
    import contextlib
    import io
    import time

    from efficientsam3.benchmark import peak_memory
    from efficientsam3.variants import find_variant

    sys.path.insert(0, str(Path(arguments.upstream) / "sam3"))
    from sam3.model.sam3_image_processor import Sam3Processor
    from sam3.model_builder import build_efficientsam3_image_model

    variant = find_variant(arguments.model)
    family, size = variant.vision.split("-")
    texts = {
        "mobileclip-s0": "MobileCLIP-S0",
        "mobileclip-s1": "MobileCLIP-S1",
        "mobileclip2-l": "MobileCLIP2-L",
        "sam3": None,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        model = build_efficientsam3_image_model(
            device="cpu",
            checkpoint_path=arguments.checkpoint,
            backbone_type=family,
            model_name=size,
            text_encoder_type=texts[variant.text],
            text_encoder_context_length=variant.context,
        )
    # Nothing kept: no mask is enlarged, which flatters upstream.
    processor = Sam3Processor(model, device="cpu", confidence_threshold=1.0)
    picture, runs, memory = Image.fromarray(image), [], 0.0
    for _ in range(arguments.repeat + 1):
        start = time.perf_counter()
        state = processor.set_image(picture)
        encoded = time.perf_counter()
        processor.set_text_prompt(CONCEPTS[0], state)
        first = time.perf_counter()
        memory = memory or peak_memory()
        processor.set_text_prompt(CONCEPTS[1], state)
        second = time.perf_counter()
        runs.append((encoded - start, first - encoded, second - first, first - start))
    names = ("image", "first concept", "next concept", "both")
    columns = zip(*runs[1:], strict=True)
    out = {n: sorted(c)[arguments.repeat // 2] for n, c in zip(names, columns, strict=True)}
    return {**out, "peak MiB": memory}


def agreement(arguments: argparse.Namespace, image: np.ndarray) -> None:
    """Print how near the other modes come to exact float32, on the twenty best queries."""
    exact = load(arguments, "exact", "float32")
    wanted = {c: exact.segment(image, [c], threshold=0.0, max_instances=20) for c in CONCEPTS}
    for speed in arguments.speed:
        for dtype in arguments.dtype:
            model = load(arguments, speed, None if dtype == "best" else dtype)
            pixels, overlaps, shifts = model.preprocess(image), [], []
            for concept, reference in wanted.items():
                raw = exact.ground(pixels, [concept])
                ours = model.ground(pixels, [concept])
                best = (raw.logits[0]).topk(len(reference)).indices
                a, b = raw.masks[0, best] > 0, ours.masks[0, best] > 0
                union = (a | b).flatten(1).sum(1).clamp(min=1)
                overlaps += ((a & b).flatten(1).sum(1) / union).tolist()
                score = [r.logits.sigmoid() * r.presence.sigmoid()[:, None] for r in (raw, ours)]
                shifts.append((score[0] - score[1]).abs().max().item())
            print(
                f"{speed:6s} {str(model.dtype).removeprefix('torch.'):9s} against exact float32: "
                f"mask IoU mean {np.mean(overlaps):.4f}, least {np.min(overlaps):.4f}; "
                f"largest score difference {max(shifts):.4f}"
            )


def compare(arguments: argparse.Namespace) -> None:
    """Print whole-process times and memory, ours and upstream's in turn."""
    rows: dict[str, list[dict[str, float]]] = {}
    for _ in range(arguments.turns):
        if arguments.upstream:
            times = child(arguments, "upstream", "--upstream", arguments.upstream)
            rows.setdefault("upstream", []).append(times)
        for speed in arguments.speed:
            for dtype in arguments.dtype:
                times = child(arguments, "ours", "--speed", speed, "--dtype", dtype)
                rows.setdefault(f"{speed} {dtype}", []).append(times)
    keys = ("image", "first concept", "next concept", "both", "peak MiB")
    print(f"{'':18s}" + "".join(f"{k:>16s}" for k in keys))
    medians = {n: {k: float(np.median([r[k] for r in rs])) for k in keys} for n, rs in rows.items()}
    for name, row in medians.items():
        print(f"{name:18s}" + "".join(f"{row[k]:16.2f}" for k in keys))
    if arguments.svg:
        chart(medians, arguments.svg)
    if "upstream" in medians:
        for name, row in medians.items():
            ratios = "".join(f"{medians['upstream'][k] / row[k]:15.2f}x" for k in keys)
            print(f"upstream / {name:7s}" + ratios)


def chart(medians: dict[str, dict[str, float]], path: Path) -> None:
    """Write the bars of the README: one image and one concept, and each further concept."""
    names = {"upstream": "upstream", "exact best": "ours", "fast best": 'ours, speed="fast"'}
    bars = [
        (names.get(name, name), key, row[key], color)
        for key in ("both", "next concept")
        for (name, row), color in zip(
            medians.items(), ("#9aa3ad", "#1769e0", "#19a974"), strict=False
        )
    ]
    longest = max(seconds for *_, seconds, _ in bars)
    lines, y = [], 8
    titles = {
        "both": "one image and one concept, two CPU cores",
        "next concept": "each further concept on the same image",
    }
    for index, (name, key, seconds, color) in enumerate(bars):
        if index == 0 or bars[index - 1][1] != key:
            lines.append(f'<text x="8" y="{y + 18}" font-weight="bold">{titles[key]}</text>')
            y += 28
        width = 430 * seconds / longest
        lines.append(f'<text x="8" y="{y + 15}">{name}</text>')
        lines.append(
            f'<rect x="150" y="{y}" width="{width:.0f}" height="20" rx="3" fill="{color}"/>'
        )
        lines.append(f'<text x="{158 + width:.0f}" y="{y + 15}">{seconds:.1f} s</text>')
        y += 27
        if index + 1 < len(bars) and bars[index + 1][1] != key:
            y += 12
    style = "font-family='sans-serif' font-size='14' fill='#24292f'"
    path.write_text(
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 660 {y + 6}' width='660' {style}>\n"
        f"<rect width='660' height='{y + 6}' fill='#ffffff'/>\n" + "\n".join(lines) + "\n</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="efficientsam3-tinyvit-11m")
    parser.add_argument("--checkpoint", help="weights in upstream's layout; default: untrained")
    parser.add_argument("--base", default=None)
    parser.add_argument("--speed", nargs="+", default=["exact", "fast"], choices=["exact", "fast"])
    parser.add_argument("--dtype", nargs="+", default=["best"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--turns", type=int, default=1, help="processes of each kind, in turn")
    parser.add_argument("--upstream", help="a checkout of upstream, to time beside ours")
    parser.add_argument("--svg", type=Path, help="draw the times into this file")
    parser.add_argument("--only", choices=["parts", "whole", "agreement"])
    parser.add_argument("--child", choices=["ours", "upstream"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    image = photograph()
    if arguments.child:
        run = child_ours if arguments.child == "ours" else child_upstream
        print(json.dumps(run(arguments, image)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.checkpoint is None:
            from efficientsam3.checkpoints.save import save_untrained

            arguments.checkpoint = str(
                save_untrained(arguments.model, Path(folder) / "untrained.pt")
            )
            print("untrained weights: times and memory hold for trained ones, agreement does not")
        if arguments.only in (None, "parts"):
            parts_table(arguments, image)
        if arguments.only in (None, "whole"):
            compare(arguments)
        if arguments.only in (None, "agreement"):
            agreement(arguments, image)


if __name__ == "__main__":
    main()
