"""The functions that FiftyOne calls in a source of zoo models: download, load, and a form.

The core, torch and FiftyOne are imported inside functions only: FiftyOne runs this file to list
models, and again for every model that it loads.
"""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core_package import require_core

if TYPE_CHECKING:
    from .image_model import EfficientSam3
    from .video_model import EfficientSam3Video

VIDEO_MODEL = "efficientsam3-video"
"""The zoo model for whole videos. Its argument ``variant`` names the model that it runs."""

logger = logging.getLogger(__name__)


def download_model(model_name: str, model_path: str) -> None:
    """Download a model's weights into the Hugging Face cache, and link them from the zoo folder.

    The zoo folder gets a link only, because FiftyOne deletes that folder when it updates a
    registered source.

    Args:
        model_name: a model name, such as ``"efficientsam3-tinyvit-11m"``.
        model_path: the path at which FiftyOne looks for the file.

    Raises:
        WeightsNotFoundError: the machine is offline, or access is not granted.
    """
    require_core()
    if _loads_other_weights():
        return
    from efficientsam3.checkpoints import hub
    from efficientsam3.variants import EMBEDDED

    target = hub.download(EMBEDDED if model_name == VIDEO_MODEL else model_name)
    link = Path(model_path)
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.unlink(missing_ok=True)
        link.symlink_to(target.resolve())
    except OSError as error:  # Windows without developer mode; the cache is asked again next time
        logger.debug("no link from %s to the weights: %s", link, error)


def _loads_other_weights() -> bool:
    """Whether this call is part of ``load_zoo_model(..., checkpoint=...)`` or ``(variant=...)``.

    Those arguments name other weights, so the download would fetch gigabytes that nobody reads,
    and would fail offline. FiftyOne 1.22 gives no clean way to know: ``load_zoo_model`` calls
    ``download_zoo_model(name)`` with the name only, before it passes its arguments to the model,
    and ``download_if_necessary=False`` is an error where the file is absent. So the arguments are
    read from the frame of ``load_zoo_model``.
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
    """Load a zoo model.

    Args:
        model_name: a model name, or the folder of a saved model.
        model_path: where FiftyOne has the weights. It is not used: the core finds them by name.
        **kwargs: the arguments of :class:`~.image_model.EfficientSam3Config`, or for
            "efficientsam3-video" of :class:`~.video_model.EfficientSam3VideoConfig`.
    """
    require_core()
    if model_name == VIDEO_MODEL:
        from efficientsam3.variants import EMBEDDED

        from .video_model import EfficientSam3Video, EfficientSam3VideoConfig

        return EfficientSam3Video(EfficientSam3VideoConfig({"variant": EMBEDDED, **kwargs}))
    from .image_model import EfficientSam3, EfficientSam3Config

    return EfficientSam3(EfficientSam3Config({"variant": model_name, **kwargs}))


def resolve_input(model_name: str, ctx: Any) -> Any:
    """The form for the arguments of :func:`load_model` in the App.

    Args:
        model_name: the name of the model.
        ctx: FiftyOne's execution context.

    Returns:
        a property of operator inputs.
    """
    require_core()
    from ..operators.form import Form

    form = Form(ctx, model_name, "")
    form.text("classes", "Concepts", "What to look for, with commas between: person, yellow bus")
    form.classes()
    modes = {
        "concept": "All instances of the concepts",
        "visual": "One object for each box or set of points",
    }
    form.options("operation_mode", "Mode", "What prompts mean", modes)
    for key, label, description in (
        ("text_prompt_field", "Concepts field", "A field with the concepts of each sample"),
        ("prompt_field", "Prompt field", "A field with boxes or keypoints: examples, or objects"),
    ):
        form.choice(key, label, description, _prompt_fields(ctx.dataset, key))
    form.suppression()
    return form.property()


def parse_parameters(model_name: str, ctx: Any, params: dict[str, Any]) -> None:
    """Turn the values of the form into arguments of :func:`load_model`, in place.

    Args:
        model_name: the name of the model.
        ctx: FiftyOne's execution context.
        params: the values of the form.
    """
    from ..operators.form import CLASS_PHRASES
    from ..operators.texts import add_classes, split_phrases

    if isinstance(params.get("classes"), str):
        params["classes"] = split_phrases([params["classes"]])
    text = params.pop(CLASS_PHRASES, None)
    params["classes"] = add_classes(params.get("classes") or [], text)
    for key in [k for k, v in params.items() if v in (None, "", [])]:
        del params[key]


def _prompt_fields(dataset: Any, key: str) -> list[str]:
    """Names of the fields that can hold the prompts of an argument."""
    if dataset is None:
        return []
    import fiftyone.core.fields as fof
    import fiftyone.core.labels as fol

    is_video = dataset.media_type == "video"
    get_schema = dataset.get_frame_field_schema if is_video else dataset.get_field_schema
    prefix = "frames." if is_video else ""
    if key == "text_prompt_field":
        kinds: tuple[Any, ...] = (fol.Classification, fol.Classifications)
        names = {*get_schema(ftype=(fof.StringField, fof.ListField, fof.DictField))}
    else:
        kinds = (fol.Detection, fol.Detections, fol.Keypoint, fol.Keypoints)
        names = set()
    return sorted(prefix + name for name in {*names, *get_schema(embedded_doc_type=kinds)})
