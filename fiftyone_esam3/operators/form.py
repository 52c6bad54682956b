"""The parts that the operators' forms are made of: each checks what was filled in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import fiftyone.core.labels as fol
from fiftyone.operators import types

from efficientsam3 import EfficientSam3Error
from efficientsam3.doctor import cached_models
from efficientsam3.variants import EMBEDDED, VARIANTS, Packaged, find_variant, list_models

from ..labels import ERROR_FIELD
from ..runs import check_field, check_samples
from ..speed import recall

FALLBACK = "efficientsam3-tinyvit-11m"


class Form:
    """A form that is being made; what is wrong is said under the field that it is in.

    Args:
        ctx: FiftyOne's context; ``ctx.params`` is what was filled in so far.
    """

    def __init__(self, ctx: Any, label: str, about: str) -> None:
        self.ctx, self.label, self.about = ctx, label, about
        self.inputs = types.Object()
        self.samples: Any = None

    def done(self) -> types.Property:
        """The finished form."""
        return types.Property(
            self.inputs, view=types.View(label=self.label, description=self.about)
        )

    def get(self, key: str, default: Any = None) -> Any:
        """What was filled in; "" and [] are nothing."""
        value = self.ctx.params.get(key)
        return default if value in (None, "", []) else value

    def wrong(self, key: str, error: Exception | str) -> None:
        """Says that a field is wrong; the form cannot be sent."""
        prop = self.inputs.properties[key]
        prop.invalid, prop.error_message = True, str(error)

    def check(self, key: str, *args: Any, **kwargs: Any) -> None:
        """Tries the field of samples that ``key`` names."""
        try:
            check_field(self.samples, self.get(key), *args, **kwargs)
        except EfficientSam3Error as error:
            self.wrong(key, error)

    # Where

    def target(self, *, flat: bool = True, media: str = "image") -> None:
        """Dataset, view or selection; a view that cannot be worked on is refused."""
        self.inputs.view_target(self.ctx, require_flat=flat, action_description="Work on")
        self.samples = self.ctx.target_view(require_flat=flat)
        try:
            check_samples(self.samples, media)
        except EfficientSam3Error as error:
            self.inputs.view(
                "trouble", types.Error(label="This cannot be done", description=str(error))
            )
            self.inputs.properties["trouble"].invalid = True
            self.inputs.properties["trouble"].error_message = str(error)

    # Which

    def model(self) -> None:
        """A model of the table with what is known of it, or a folder."""
        view = types.AutocompleteView()
        here = set(cached_models())
        for name in sorted(list_models(), key=lambda n: n not in here):
            view.add_choice(name, label=describe(name, name in here))
        default = default_model(here)
        self.inputs.str(
            "model",
            default=default,
            required=False,
            label="Model",
            description="From the list, or the folder of a saved model",
            view=view,
        )
        chosen = str(self.get("model", default))
        if Path(chosen).is_dir():
            return
        try:
            row = find_variant(chosen)
        except EfficientSam3Error as error:
            self.wrong("model", error)
            return
        if row.weights is not None and row.name not in here and isinstance(row.weights, Packaged):
            self.wrong("model", f"the weights of {row.name} are not in this installation")

    def concepts(self, *, instead: str | None = None) -> None:
        """Phrases; the classes that are there already are offered.

        Args:
            instead: the key of a field that may be filled in instead.
        """
        view = types.AutocompleteView(allow_duplicates=False)
        for name in existing_classes(self.samples):
            view.add_choice(name, label=name)
        needed = instead is None or not self.get(instead)
        self.inputs.list(
            "concepts",
            types.String(),
            required=needed,
            label="Concepts",
            description=(
                "Words or phrases, such as: yellow school bus. Press Enter after each, or put "
                "commas between them"
            ),
            view=view,
        )
        if self.get("concepts") and not split(self.get("concepts")):
            self.wrong("concepts", "name something to look for: a word or a phrase")

    def field(
        self,
        key: str,
        label: str,
        about: str,
        kinds: Sequence[type] = (),
        *,
        default: str | None = None,
        required: bool = True,
        new: bool = False,
    ) -> None:
        """A field of the samples.

        Args:
            kinds: of labels that it may hold. new: it may be made.
        """
        view = types.AutocompleteView(allow_user_input=True)
        for name in label_fields(self.samples, kinds):
            view.add_choice(name, label=name)
        needed = required and default is None  # the SDK fills in no defaults
        self.inputs.str(
            key, default=default, required=needed, label=label, description=about, view=view
        )
        if self.get(key):
            self.check(key, kinds=kinds, new=new)

    # How

    def threshold(self) -> None:
        """The least score."""
        self.inputs.float(
            "threshold",
            min=0.0,
            max=1.0,
            default=0.5,
            label="Threshold",
            description="Instances that score more are kept",
            view=types.SliderView(componentsProps={"slider": {"min": 0, "max": 1, "step": 0.01}}),
        )

    def again(self) -> None:
        """Whether what is done is done once more."""
        self.inputs.bool(
            "again",
            default=False,
            label="Do all anew",
            description="Otherwise samples that have this very answer already are left as they are",
        )

    def workers(self) -> None:
        """Processes that read images, for delegated runs."""
        self.inputs.int(
            "num_workers",
            min=0,
            default=0,
            label="Workers",
            description="Processes that read images; only delegated runs use them",
        )


def default_model(here: Iterable[str] | None = None) -> str:
    """The model that needs no download, where there is one.

    Args:
        here: models whose weights are on this machine, if that is known.
    """
    known = set(cached_models() if here is None else here)
    return EMBEDDED if EMBEDDED in known else min(known, default=FALLBACK)


def chosen_model(ctx: Any) -> str:
    """The model that was filled in."""
    return str(ctx.params.get("model") or default_model())


def workers(ctx: Any) -> int:
    """Worker processes for a run; none inside the App, whose server must not be forked."""
    return int(ctx.params.get("num_workers") or 0) if ctx.delegated else 0


def split(words: Iterable[str]) -> list[str]:
    """Phrases from what was typed, commas between them or not."""
    return [part.strip() for word in words for part in str(word).split(",") if part.strip()]


def describe(name: str, here: bool) -> str:
    """A model's name, size, and speed where it is known."""
    row = VARIANTS[name]
    parts = [name]
    if row.params_millions == row.params_millions:  # NaN: its folder is missing
        parts.append(f"{row.params_millions:.0f} M parameters")
    seconds = recall(name) if here else None
    if seconds is not None:
        parts.append(f"{seconds:.2g} s an image here")
    if isinstance(row.weights, Packaged):
        parts.append("in the package" if here else "not in this installation")
    else:
        parts.append("on this machine" if here else "is downloaded first")
    return " · ".join(parts)


def label_fields(samples: Any, kinds: Sequence[type]) -> list[str]:
    """Names of the fields that hold these kinds of labels."""
    if samples is None:
        return []
    found = samples.get_field_schema(embedded_doc_type=tuple(kinds) or fol.Label)
    return sorted(found)


def existing_classes(samples: Any, most: int = 200) -> list[str]:
    """Classes that a dataset names or its labels have, for choosing."""
    if samples is None:
        return []
    dataset = samples._root_dataset
    out = dict.fromkeys(dataset.default_classes or [])
    for names in (dataset.classes or {}).values():
        out.update(dict.fromkeys(names))
    listed = (fol.Detections, fol.Classifications, fol.Keypoints, fol.Polylines)
    for name, field in samples.get_field_schema(embedded_doc_type=listed).items():
        part = field.document_type._LABEL_LIST_FIELD
        out.update(dict.fromkeys(samples.limit(1000).distinct(f"{name}.{part}.label")))
    for name in samples.get_field_schema(embedded_doc_type=fol.Classification):
        out.update(dict.fromkeys(samples.limit(1000).distinct(f"{name}.label")))
    return [name for name in out if name and name != ERROR_FIELD][:most]
