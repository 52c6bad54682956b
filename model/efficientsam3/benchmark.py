"""Time and arithmetic of each part of a model on this machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from .io.images import ImageLike
from .nn.late_detector import LateDetector
from .predictor import ImageModel
from .runtime.model import ExportedModel

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """Time and arithmetic of one part.

    Attributes:
        part: Name of the part.
        milliseconds: Median time of the repetitions.
        gflop: Arithmetic in GFLOP; a multiplication and an addition count as two.
    """

    part: str
    milliseconds: float
    gflop: float

    @property
    def gflops(self) -> float:
        """GFLOP per second."""
        return self.gflop / self.milliseconds * 1e3 if self.milliseconds else 0.0


def gemm_peak(dtype: torch.dtype, device: torch.device, size: int = 2048) -> float:
    """Measure the GFLOP per second of a large matrix product, an upper limit for this machine.

    Args:
        dtype: Dtype of the matrices.
        device: Device of the matrices.
        size: Rows and columns.

    Returns:
        GFLOP per second.
    """
    a = torch.randn(size, size, device=device).to(dtype)
    best = min(_clock(lambda: a @ a, device)[1] for _ in range(4))
    return 2 * size**3 / best / 1e9


def costs(
    model: ImageModel, image: ImageLike, concept: str = "bus", *, repeat: int = 3, kept: int = 20
) -> list[Cost]:
    """Time the parts of one image and one concept, in the order in which they run.

    Args:
        model: The model.
        image: An image, as ``ImageModel.segment`` takes it.
        concept: A phrase.
        repeat: Repetitions of each part.
        kept: Number of queries whose masks are computed.

    Returns:
        The cost of each part.
    """
    out: list[Cost] = []

    def measure(part: str, run: Callable[[], T]) -> T:
        run()  # fills caches
        with _counting() as counter:
            value = run()
        times = sorted(_clock(run, model.device)[1] for _ in range(repeat))
        out.append(Cost(part, times[repeat // 2] * 1e3, counter.get_total_flops() / 1e9))
        return value

    net = model.net
    with torch.inference_mode():
        pixels = measure("preprocess", lambda: model.preprocess(image))
        encoded = measure("image encoder", lambda: net.part("trunk")(pixels))
        if isinstance(net, LateDetector):
            _measure_late(measure, model, net, pixels, concept, kept)
            return out
        level = measure("coarse pyramid level", lambda: net.coarse_level(encoded))
        grid = (level.shape[-2], level.shape[-1])
        places, decoder_places = net._placed(grid)
        tokens = level.flatten(2).transpose(1, 2).float()
        fusion = net.part("fusion")
        measure(
            "first self-attention and exemplar keys",
            lambda: (
                fusion.read_image(tokens, places, grid),
                net.part("geometry").read_image(tokens, net._positions(grid)),
            ),
        )
        features = net.read_image(pixels)
        model._texts.clear()
        words = measure("text encoder", lambda: _fresh_text(model, concept))
        prompt, mask = measure("prompt", lambda: net.read_prompt(features, words))
        memory = measure(
            "fusion encoder", lambda: fusion(features.seen, places, grid, prompt, mask)
        )
        measure("decoder", lambda: net.part("decoder")(memory, decoder_places, grid, prompt, mask))
        answer = net.answer(features, prompt, mask)
        measure("scoring", lambda: net.part("scoring")(answer.queries, prompt, mask))
        if "masks" in model.abilities:
            masks = net.part("masks")
            shared = measure("pyramid for masks (once an image)", lambda: masks.read_image(encoded))
            found = measure(
                "pixel embeddings", lambda: masks.read_pixels(memory, grid, prompt, mask, shared)
            )
            best = answer.queries[:, :kept]
            measure(f"{kept} masks", lambda: masks.read_masks(best, found))
    return out


def _measure_late(
    measure: Callable[[str, Callable[[], Any]], Any],
    model: ImageModel,
    net: LateDetector,
    pixels: Tensor,
    concept: str,
    kept: int,
) -> None:
    """Measure the parts of a model with late fusion, after its image encoder."""
    features = net.encode_image(pixels)
    features.objects = measure("objects (once an image)", lambda: net.find_objects(features))
    words = measure("text encoder", lambda: _fresh_text(model, concept))
    prompt, mask = measure("prompt", lambda: net.read_prompt(features, words))
    answer = measure("decoder", lambda: net.answer(features, prompt, mask))
    if "masks" in model.abilities:
        masks = net.part("masks")
        pixel_features = measure(
            "pixel embeddings (once an image)",
            lambda: masks.read_pixels(features.tokens, features.grid, features.fine),
        )
        best = answer.queries[:, :kept], answer.boxes[:, :kept]
        measure(f"{kept} masks", lambda: masks(*best, pixel_features))


def _fresh_text(model: ImageModel, concept: str) -> Any:
    model._texts.clear()
    return model._read_text([concept])


def whole(
    model: ImageModel | ExportedModel,
    image: ImageLike,
    concepts: tuple[str, str],
    *,
    repeat: int = 3,
) -> dict[str, float]:
    """Time what a user waits for, with the masks of the twenty best queries.

    Args:
        model: A loaded model, of PyTorch or of another runtime.
        image: The image to read.
        concepts: A first and a second phrase.
        repeat: Runs; the median of each time is returned.

    Returns:
        Seconds of "preprocess", "image" (preprocess and encode), "first concept", "next concept"
        and "both" (image and first concept); and "peak MiB", the memory after the very first image
        and concept.
    """
    options: dict[str, Any] = {"threshold": 0.0, "max_instances": 20}
    first, second = concepts
    # Other runtimes return when they are done, as a CPU does.
    device = model.device if isinstance(model.device, torch.device) else torch.device("cpu")
    model.segment(image, [first], **options)
    memory = peak_memory()
    preprocess = sorted(_clock(lambda: model.preprocess(image), device)[1] for _ in range(repeat))
    runs: list[tuple[float, float, float]] = []
    for _ in range(repeat):
        model._texts.clear()
        encoded, a = _clock(lambda: model.encode(image), device)
        _, b = _clock(lambda e=encoded: model.segment(e, [first], **options), device)  # type: ignore[misc]
        _, c = _clock(lambda e=encoded: model.segment(e, [second], **options), device)  # type: ignore[misc]
        runs.append((a, b, c))
    image_s, first_s, next_s = (sorted(column)[repeat // 2] for column in zip(*runs, strict=True))
    both = sorted(a + b for a, b, _ in runs)[repeat // 2]
    return {
        "preprocess": preprocess[repeat // 2],
        "image": image_s,
        "first concept": first_s,
        "next concept": next_s,
        "both": both,
        "peak MiB": memory,
    }


def peak_memory() -> float:
    """Highest resident memory of this process so far, MiB (0.0 where the system does not say)."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _clock(run: Callable[[], T], device: torch.device) -> tuple[T, float]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    value = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return value, time.perf_counter() - start


@contextlib.contextmanager
def _counting() -> Iterator[Any]:
    """Torch's counter, taught the CPU's fused attention, which its table lacks."""
    from torch.utils.flop_counter import FlopCounterMode  # 75 MB: not where memory is read

    def attention(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
        batch, heads, rows, width = q
        return 2 * batch * heads * rows * k[2] * (width + v[3])

    cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={cpu: attention}) as counter:
        yield counter
