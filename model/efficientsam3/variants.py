"""The table of models: encoders, release, and where the weights are.

Names are ``<family>-<encoder>-<size>[-<text>][-<release>]``. The short name of an encoder means its
best released weights; other releases have a suffix:

- ``-sam3text``: Stage 1; only the image encoder is small, the text encoder is SAM3's.
- ``-sam3text-geo``: the same, fine-tuned with boxes and points.
- ``-mobileclip-s1``: Stage 1; image and text encoder are small.
- ``-mobileclip-s1-ft``: the same, with the text encoder fine-tuned on SA-Co.
- ``-3.1``: made from SAM3.1; the text encoder is MobileCLIP-S0 where no other is named.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .errors import EfficientSam3Error, WeightsNotFoundError

ABILITIES = ("concepts", "exemplars", "masks", "interactive", "video")
"""What a file can answer: text prompts, example boxes and points, masks beside boxes, one object
by clicks, tracking."""

STAGES = {
    "original": "Meta's own weights",
    "stage-1": "small encoders, distilled; everything else is unchanged from SAM3",
    "stage-1-geometry": "stage 1, then the image encoder fine-tuned with boxes and points",
    "stage-1-text": "stage 1, then the text encoder fine-tuned on SA-Co phrases",
    "stage-3": "image encoder and feature pyramid fine-tuned end to end on SA-1B and SACap",
    "stickers": "all three stages on scenes of stickers, by this project",
}

# Millions of parameters, counted on upstream's modules. A trunk includes the projection to 1024
# channels, a text encoder the projection to 256; position tables differ by 0.05 at most.
VISION_PARAMS = {
    "efficientvit-b0": 10.254,
    "efficientvit-b1": 14.346,
    "efficientvit-b2": 24.810,
    "repvit-m0.9": 14.551,
    "repvit-m1.1": 17.739,
    "repvit-m2.3": 32.500,
    "tinyvit-5m": 14.839,
    "tinyvit-11m": 20.446,
    "tinyvit-21m": 30.650,
    "sam3": 446.238,
}
TEXT_PARAMS = {
    "mobileclip-s0": 42.541,
    "mobileclip-s1": 63.528,
    "mobileclip2-l": 123.800,
    "sam3": 353.725,
}
REST_PARAMS = {"3.0": 60.093, "3.1": 73.223}
"""By release: pyramids, fusion, decoder, masks, interactive head, tracker."""

EMBEDDED = "efficientsam3-stickers"
"""The model whose weights are part of the package."""

OWN_RELEASE = "own"
"""The release of a model that was not made from SAM3."""

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
"""The two files of a saved model."""


class UnknownModelError(EfficientSam3Error, ValueError):
    """A model name is not in the table."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image is prepared for the image encoder."""

    resolution: int = 1008
    """Pixels a side. The image is resized to a square without keeping its aspect ratio."""
    mean: float = 0.5
    """Mean of the normalization, on values in [0, 1], the same for each channel."""
    std: float = 0.5
    """Standard deviation of the normalization."""


@dataclass(frozen=True)
class Weights:
    """A released file on the Hugging Face hub."""

    repo: str
    """Repository on the hub."""
    path: str
    """Path of the file in the repository."""
    license: str
    """License of the weights; see NOTICE."""
    revision: str = "main"
    """Branch, tag or commit of the repository."""
    gated: bool = False
    """Whether the hub gives the file only to accounts that its owner admits."""
    how_to_get_access: str | None = None
    """For a gated file, what to do, as a sentence."""
    sha256: str | None = None
    """The file's sha256, which a download must have; None: the one that the hub states."""


@dataclass(frozen=True)
class Packaged:
    """A saved model that is part of this package, so it needs no network and no cache."""

    folder: str
    """Name of its folder in the folder of assets."""
    license: str
    """License of the weights; see NOTICE."""

    @property
    def location(self) -> Path:
        """The folder of the model, whether it exists or not."""
        return assets() / self.folder

    @property
    def is_here(self) -> bool:
        """Whether both files exist."""
        return all((self.location / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE))

    def find(self) -> Path:
        """Return the folder of the model.

        Raises:
            WeightsNotFoundError: A file is missing.
        """
        if self.is_here:
            return self.location
        lost = [n for n in (CONFIG_FILE, WEIGHTS_FILE) if not (self.location / n).is_file()]
        raise WeightsNotFoundError(
            f"the weights of {self.folder} are part of the package, but {self.location} has no "
            f"{' and no '.join(lost)}. Install the package again (pip install --force-reinstall); "
            f"or, in a checkout that has none yet, train them (`efficientsam3 distill --recipe "
            "stickers`) and put them in (`efficientsam3 embed FOLDER`)."
        )

    def describe(self) -> dict[str, Any]:
        """Return the content of ``config.json``; empty where it cannot be read."""
        try:
            content = json.loads((self.location / CONFIG_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}


def assets() -> Path:
    """Return the folder of packaged models: the package's own, or ``EFFICIENTSAM3_ASSETS``."""
    named = os.environ.get("EFFICIENTSAM3_ASSETS")
    return Path(named) if named else Path(__file__).with_name("assets")


@dataclass(frozen=True)
class Variant:
    """A row of the table of models.

    Attributes:
        name: Name of the model, as ``load`` takes it.
        vision: Image encoder, a key of ``VISION_PARAMS``; for a packaged model its family.
        text: Text encoder, a key of ``TEXT_PARAMS``; for a packaged model its family.
        context: Tokens of a phrase, start and end included: 12, 16, 32 or 77.
        release: Release of SAM3, "3.0" or "3.1". The image model has the same architecture; keys,
            pyramids and tracker differ. "own" for a model that was not made from SAM3.
        stage: How the weights were made, a key of ``STAGES``.
        weights: Where the weights are.
        abilities: What the file is expected to do, of ``ABILITIES``. What a loaded model can do is
            read from the file.
        uncertain: Abilities that no list of the file's keys confirms.
        coco_miou: Upstream's mIoU on COCO val2017 in percent, prompted with ground-truth boxes, by
            the interactive head.
        gold_cgf1: Upstream's average cgF1 on SA-Co/Gold with text prompts.
        aliases: Upstream's labels for the same file, and full names of rows with a short name.
        notes: What else to know before choosing it.
        preprocessing: How an image is prepared.
    """

    name: str
    vision: str
    text: str
    context: int
    release: str
    stage: str
    weights: Weights | Packaged
    abilities: frozenset[str] = frozenset(ABILITIES)
    uncertain: tuple[str, ...] = ()
    coco_miou: float | None = None
    gold_cgf1: float | None = None
    aliases: tuple[str, ...] = ()
    notes: str = ""
    preprocessing: Preprocessing = Preprocessing()

    @property
    def params_millions(self) -> float:
        """Parameters of the whole model with its tracker; NaN where its folder is missing."""
        if isinstance(self.weights, Packaged):
            count = self.weights.describe().get("parameters")
            return round(count / 1e6, 1) if isinstance(count, int) else float("nan")
        parts = VISION_PARAMS[self.vision], TEXT_PARAMS[self.text], REST_PARAMS[self.release]
        return round(sum(parts), 1)


def list_models() -> list[str]:
    """Return the names of all models, sorted so that 5m comes before 11m."""
    return sorted(VARIANTS, key=_natural)


def find_variant(name: str) -> Variant:
    """The row of a model.

    Args:
        name: of ``list_models()``, or one of upstream's labels, such as "TV-M"; capitals and
            small letters are the same.

    Raises:
        UnknownModelError: there is none; the message has the nearest names.
    """
    known = _names()
    found = known.get(name.strip().lower())
    if found is None:
        raise UnknownModelError(_unknown(name, known))
    return VARIANTS[found]


def _unknown(name: str, known: Mapping[str, str]) -> str:
    asked = name.strip().lower()
    within = sorted((n for n in known if asked and asked in n), key=len)
    near = [*within, *difflib.get_close_matches(asked, known, n=6, cutoff=0.5)]
    names = list(dict.fromkeys(known[n] for n in near))[:4]  # an alias stands for its row
    hint = f"did you mean {' or '.join(names)}? " if names else ""
    return f"unknown model {name!r}; {hint}list_models() has all {len(VARIANTS)} names"


def _names() -> dict[str, str]:
    """Lower-case name or alias -> name."""
    return {alias.lower(): v.name for v in VARIANTS.values() for alias in (v.name, *v.aliases)}


def _natural(name: str) -> list[tuple[float, str]]:
    parts = re.findall(r"\d+(?:\.\d+)?|[^\d-]+", name)
    return [(float(p), "") if p[0].isdigit() else (float("inf"), p) for p in parts]


# The rows ------------------------------------------------------------------------------------

# Apache-2.0 is what the repository says; most files keep parts of SAM 3 unchanged.
_LICENSE = "Apache-2.0 and SAM License"


def _file(path: str) -> Weights:
    return Weights("Simon7108528/EfficientSAM3", path, _LICENSE)


def _meta(repo: str, path: str) -> Weights:
    page = f"https://huggingface.co/{repo}"
    how = (
        f"Ask Meta for access on {page}, make a token, run `hf auth login`, and load again; "
        f"or pass checkpoint='<path of {path}>' if you have the file."
    )
    return Weights(repo, path, "SAM License", gated=True, how_to_get_access=how)


class _Student(NamedTuple):
    """An image encoder in upstream's words, with its COCO mIoU in stage 1 and from SAM3.1."""

    family: str
    size: str
    label: str
    miou: float
    miou31: float


_STUDENTS = {
    "efficientvit-b0": _Student("efficientvit", "s", "EV-S", 61.62, 64.76),
    "efficientvit-b1": _Student("efficientvit", "m", "EV-M", 64.82, 67.21),
    "efficientvit-b2": _Student("efficientvit", "l", "EV-L", 66.30, 68.89),
    "repvit-m0.9": _Student("repvit", "s", "RV-S", 64.80, 67.31),
    "repvit-m1.1": _Student("repvit", "m", "RV-M", 65.28, 67.82),
    "repvit-m2.3": _Student("repvit", "l", "RV-L", 65.53, 69.27),
    "tinyvit-5m": _Student("tinyvit", "s", "TV-S", 65.51, 68.25),
    "tinyvit-11m": _Student("tinyvit", "m", "TV-M", 65.45, 69.06),
    "tinyvit-21m": _Student("tinyvit", "l", "TV-L", 66.29, 69.67),
}

# Upstream's label "ES-TV-M" is no alias: its pages use it for Stage 1 with SAM3's text encoder
# and for Stage 3 with a MobileCLIP.

# Fine-tuned full models: the only ones trained end to end. Their "model" entry has no geometry
# encoder (which text prompts need too), second pyramid or tracker. By its size and upstream's
# notes the file has them all the same, in an entry that begins with "preserved_base".
_FULL = {
    "efficientvit-b1": "efficientsam3_ft/efficientsam3_efficientvit.pt",
    "repvit-m1.1": "efficientsam3_ft/efficientsam3_repvit.pt",
    "tinyvit-11m": "efficientsam3_ft/efficientsam3_tinyvit.pt",
}
_FULL_NOTES = (
    "No metric published. Scores are lower than SAM3's: try a lower threshold. If the geometry "
    "encoder is not found in the file, pass base= with any full checkpoint of release 3.0."
)

_GEOMETRY = {  # path, COCO mIoU
    "efficientvit-b1": ("stage1_all_converted/efficient_sam3_efficientvit_m_geo_ft.pt", 64.94),
    "repvit-m1.1": ("stage1_all_converted/efficient_sam3_repvit_m_geo_ft.pt", 65.60),
    "tinyvit-11m": ("stage1_all_converted/efficient_sam3_tinyvit_m_geo_ft.pt", 65.69),
}

_IMAGE_TEXT = {  # dashes, dots and underscores as upstream has them
    "efficientvit-b0": "stage1_all_converted/efficient_sam3_efficientvit-b0_mobileclip_s1.pth",
    "efficientvit-b1": "stage1_all_converted/efficient_sam3_efficientvit-b1_mobileclip_s1.pth",
    "efficientvit-b2": "stage1_all_converted/efficient_sam3_efficientvit-b2_mobileclip_s1.pth",
    "repvit-m0.9": "stage1_all_converted/efficient_sam3_repvit-m0_9_mobileclip_s1.pth",
    "repvit-m1.1": "stage1_all_converted/efficient_sam3_repvit-m1_1_mobileclip_s1.pth",
    "repvit-m2.3": "stage1_all_converted/efficient_sam3_repvit-m2_3_mobileclip_s1.pth",
    "tinyvit-5m": "stage1_all_converted/efficient_sam3_tinyvit_5m_mobileclip_s1.pth",
    "tinyvit-11m": "stage1_all_converted/efficient_sam3_tinyvit_11m_mobileclip_s1.pth",
    "tinyvit-21m": "stage1_all_converted/efficient_sam3_tinyvit_21m_mobileclip_s1.pth",
}
_IMAGE_TEXT_TUNED = {
    "efficientvit-b1": "stage1_all_converted/efficient_sam3_efficientvit_b1_mobileclip_s1_ft.pth",
    "repvit-m1.1": "stage1_all_converted/efficient_sam3_repvit_m1.1_mobileclip_s1_ft.pth",
    "tinyvit-11m": "stage1_all_converted/efficient_sam3_tiny_vit_11m_mobileclip_s1_ft.pth",
}
_IMAGE_TEXT_NOTES = (
    "Text and image encoder were distilled apart: upstream says that text prompts got worse. "
    "The download can be 2.4 GB, because SAM3's image encoder was left in the file."
)

# Upstream's name in a path of 3.0, in one of 3.1, and our text encoder.
_LITETEXT = {
    "s0": ("mobileclip_s0", "mobileclip_s0", "mobileclip-s0"),
    "s1": ("mobileclip_s1", "mobileclip_s1", "mobileclip-s1"),
    "l": ("mobileclip2_l", "mobileclip_l", "mobileclip2-l"),
}
_OLDER = "efficient_sam3_image_encoder_"
_LITETEXT_CGF1 = {("s0", 16): 53.61, ("s1", 16): 53.80, ("l", 16): 53.95}
_LITETEXT31_CGF1 = {
    ("s0", 16): 54.26,
    ("s1", 16): 54.27,
    ("l", 16): 54.03,
    ("s0", 32): 54.28,
    ("s1", 32): 54.00,
    ("l", 32): 54.17,
}


def _students() -> Iterator[Variant]:
    for encoder, student in _STUDENTS.items():
        family, size, label, miou, miou31 = student
        name = f"efficientsam3-{encoder}"
        if encoder in _FULL:
            yield Variant(
                name,
                encoder,
                "mobileclip-s0",
                16,
                "3.0",
                "stage-3",
                _file(_FULL[encoder]),
                uncertain=("concepts", "exemplars", "interactive", "video"),
                aliases=(f"{name}-mobileclip-s0-ft", label),
                notes=_FULL_NOTES,
            )
        # Sizes S and L have no fine-tuned full model. Their bare name means the SAM3.1 students:
        # complete files with the same small text encoder and context as the M sizes, the best
        # published mIoU of each encoder, and a text encoder of the kind that keeps SAM3's cgF1 in
        # SAM3.1-LiteText. The Stage-1 files with MobileCLIP-S1 are larger, and see their notes.
        bare = encoder not in _FULL
        yield Variant(
            name if bare else f"{name}-3.1",
            encoder,
            "mobileclip-s0",
            16,
            "3.1",
            "stage-1",
            _file(f"stage1_sam3p1/efficient_sam3p1_{family}_{size}_mobileclip_s0_ctx16.pt"),
            coco_miou=miou31,
            aliases=(*((f"{name}-3.1",) if bare else ()), f"ES-{label}-SAM3.1"),
        )
        yield Variant(
            f"{name}-sam3text",
            encoder,
            "sam3",
            32,
            "3.0",
            "stage-1",
            _file(f"stage1_all_converted/efficient_sam3_{family}_{size}.pt"),
            coco_miou=miou,
        )
        if encoder in _GEOMETRY:
            path, miou_geometry = _GEOMETRY[encoder]
            yield Variant(
                f"{name}-sam3text-geo",
                encoder,
                "sam3",
                32,
                "3.0",
                "stage-1-geometry",
                _file(path),
                coco_miou=miou_geometry,
            )
        yield Variant(
            f"{name}-mobileclip-s1",
            encoder,
            "mobileclip-s1",
            77,
            "3.0",
            "stage-1",
            _file(_IMAGE_TEXT[encoder]),
            aliases=(f"ES-{label}-MC-S1",),
            notes=_IMAGE_TEXT_NOTES,
        )
        if encoder in _IMAGE_TEXT_TUNED:
            yield Variant(
                f"{name}-mobileclip-s1-ft",
                encoder,
                "mobileclip-s1",
                77,
                "3.0",
                "stage-1-text",
                _file(_IMAGE_TEXT_TUNED[encoder]),
                notes=_IMAGE_TEXT_NOTES,
            )


def _litetext() -> Iterator[Variant]:
    for size, (upstream, upstream31, text) in _LITETEXT.items():
        for context in (16, 32):
            name = f"sam3-litetext-{size}-{context}"
            label = f"LiteText-{size.upper()}-{context}"
            yield Variant(
                name,
                "sam3",
                text,
                context,
                "3.0",
                "stage-1",
                _file(f"sam3_litetext/sam3_litetext_{upstream}_ctx{context}.pt"),
                gold_cgf1=_LITETEXT_CGF1.get((size, context)),
                # Upstream's branch of LiteText calls the files with 16 tokens by their older name.
                aliases=(label, *((f"{_OLDER}{upstream}_ctx16",) if context == 16 else ())),
            )
            path = f"efficient_sam3p1_litetext_{upstream31}_ctx{context}.pt"
            yield Variant(
                f"{name}-3.1",
                "sam3",
                text,
                context,
                "3.1",
                "stage-1",
                _file(f"sam3p1_litetext/{path}"),
                gold_cgf1=_LITETEXT31_CGF1[size, context],
                aliases=(f"SAM3.1-{label}",),
            )


_ORIGINALS = (
    Variant(
        "sam3",
        "sam3",
        "sam3",
        32,
        "3.0",
        "original",
        _meta("facebook/sam3", "sam3.pt"),
        gold_cgf1=54.1,
    ),
    Variant(
        "sam3-3.1",
        "sam3",
        "sam3",
        32,
        "3.1",
        "original",
        _meta("facebook/sam3.1", "sam3.1_multiplex.pt"),
        aliases=("sam3.1",),
    ),
)

_STICKERS = Variant(
    EMBEDDED,
    "repvit",
    "mobileclip",
    12,
    OWN_RELEASE,
    "stickers",
    Packaged(EMBEDDED, "Apache-2.0"),
    aliases=("stickers",),
    notes="Knows a thousand things as stickers. For photographs take another model. It learned "
    "from art by others: see NOTICE.",
)

VARIANTS: Mapping[str, Variant] = {
    v.name: v for v in (*_students(), *_litetext(), *_ORIGINALS, _STICKERS)
}
