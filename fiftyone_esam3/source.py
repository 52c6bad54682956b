"""What FiftyOne asks of a model zoo source: download, load, and a form for the App.

Nothing of the core, of torch or of FiftyOne is imported before it is needed: FiftyOne runs this
file to list models, and runs it again for every model that it loads.
"""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core import require_core

if TYPE_CHECKING:
    from .model import EfficientSam3
    from .video import EfficientSam3Video

VIDEO_MODEL = "efficientsam3-video"
"""Any model of the table on whole videos, as a model of FiftyOne's zoo; ``variant`` says which."""

logger = logging.getLogger(__name__)


def download_model(model_name: str, model_path: str) -> None:
    """Downloads a model's weights into the Hugging Face cache, and links them from the zoo.

    Only the link is in FiftyOne's folder: updating a registered source deletes that folder.

    Args:
        model_name: a name of the table, such as ``"efficientsam3-tinyvit-11m"``.
        model_path: where FiftyOne looks for the file.

    Raises:
        WeightsNotFoundError: offline, or access not granted; the message says what to do.
    """
    require_core()
    if _loads_other_weights():
        return
    from efficientsam3 import weights
    from efficientsam3.variants import EMBEDDED

    target = weights.download(EMBEDDED if model_name == VIDEO_MODEL else model_name)
    link = Path(model_path)
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.unlink(missing_ok=True)
        link.symlink_to(target.resolve())
    except OSError as error:  # Windows without developer mode; the cache is asked again next time
        logger.debug("no link from %s to the weights: %s", link, error)


def _loads_other_weights() -> bool:
    """Whether this is part of ``load_zoo_model(..., checkpoint=...)``.

    FiftyOne downloads first and hands over the arguments later. Who has weights of their own should
    not wait for gigabytes that nobody reads, or need a network, so they are read in its frame.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "load_zoo_model":
            arguments = frame.f_locals.get("kwargs", {})
            return any(arguments.get(name) for name in ("checkpoint", "variant"))
        frame = frame.f_back
    return False


def load_model(
    model_name: str, model_path: str | None = None, **kwargs: Any
) -> EfficientSam3 | EfficientSam3Video:
    """Loads a model.

    Args:
        model_name: a name of the table, or a folder that ``model.save(folder)`` wrote.
        model_path: where FiftyOne has the weights; the core finds them by the model's name.
        **kwargs: the arguments of :class:`~.model.EfficientSam3Config`; for
            "efficientsam3-video" those of :class:`~.video.EfficientSam3VideoConfig`, whose
            ``variant`` is a name of the table.
    """
    require_core()
    if model_name == VIDEO_MODEL:
        from efficientsam3.variants import EMBEDDED

        from .video import EfficientSam3Video, EfficientSam3VideoConfig

        return EfficientSam3Video(EfficientSam3VideoConfig({"variant": EMBEDDED, **kwargs}))
    from .model import EfficientSam3, EfficientSam3Config

    return EfficientSam3(EfficientSam3Config({"variant": model_name, **kwargs}))


def resolve_input(model_name: str, ctx: Any) -> Any:
    """The form for :func:`load_model`'s arguments in the App, as a property of operator inputs."""
    from fiftyone.operators import types

    inputs = types.Object()
    inputs.str(
        "classes",
        label="Concepts",
        description="What to look for, with commas between: person, yellow school bus",
        required=False,
    )
    modes = types.DropdownView()
    modes.add_choice("concept", label="All instances of the concepts")
    modes.add_choice("visual", label="One object for each box or set of points")
    inputs.enum("operation_mode", modes.values(), default="concept", label="Mode", view=modes)
    fields = _prompt_fields(ctx.dataset)
    for key, label, description in (
        ("text_prompt_field", "Concepts field", "A field with the concepts of each sample"),
        ("prompt_field", "Prompt field", "A field with boxes or keypoints: examples, or objects"),
    ):
        choices = types.AutocompleteView()
        for field in fields[key]:
            choices.add_choice(field, label=field)
        inputs.str(key, label=label, description=description, required=False, view=choices)
    return types.Property(inputs)


def parse_parameters(model_name: str, ctx: Any, params: dict[str, Any]) -> None:
    """Turns what was typed in the form into arguments of :func:`load_model`, in place."""
    if isinstance(params.get("classes"), str):
        params["classes"] = [c.strip() for c in params["classes"].split(",") if c.strip()]
    for key in [k for k, v in params.items() if v in (None, "", [])]:
        del params[key]


def _prompt_fields(dataset: Any) -> dict[str, list[str]]:
    """Names of the fields that can hold prompts, by argument."""
    if dataset is None:
        return {"text_prompt_field": [], "prompt_field": []}
    import fiftyone.core.fields as fof
    import fiftyone.core.labels as fol

    is_video = dataset.media_type == "video"
    get_schema = dataset.get_frame_field_schema if is_video else dataset.get_field_schema
    prefix = "frames." if is_video else ""
    words = (fol.Classification, fol.Classifications)
    shapes = (fol.Detection, fol.Detections, fol.Keypoint, fol.Keypoints)
    schemas = {
        "text_prompt_field": [
            get_schema(ftype=(fof.StringField, fof.ListField)),
            get_schema(embedded_doc_type=words),
        ],
        "prompt_field": [get_schema(embedded_doc_type=shapes)],
    }
    return {
        key: sorted({prefix + name for schema in found for name in schema})
        for key, found in schemas.items()
    }
