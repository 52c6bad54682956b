"""The parts that the forms of the operators share; each part checks its value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fiftyone.core.labels as fol
from fiftyone.operators import types

from efficientsam3 import EfficientSam3Error
from efficientsam3.checkpoints.hub import cached_models
from efficientsam3.masks.tiles import parse_tile
from efficientsam3.variants import Packaged, find_variant, list_models

from ..labels import ERROR_FIELD
from ..ownership.merge import ADD, EXISTING, MEANINGS, OVERLAP, REPLACE
from ..runs.checks import check_field, check_samples, whole_samples
from .models import default_model, describe_model
from .texts import read_class_text, split_phrases

CLASSES = "dataset_classes"
"""The field of a form for concepts that are chosen among the classes of the dataset."""

CLASS_PHRASES = "class_phrases"
"""The field of a form for classes that have several phrases."""


class Form:
    """A form of an operator. An error is shown under the field that it belongs to.

    Args:
        ctx: FiftyOne's execution context. ``ctx.params`` holds the values so far.
        label: the title.
        description: what the operator does.
    """

    def __init__(self, ctx: Any, label: str, description: str) -> None:
        self.ctx, self.label, self.description = ctx, label, description
        self.inputs = types.Object()
        self.samples: Any = None

    def property(self) -> types.Property:
        """The finished form."""
        view = types.View(label=self.label, description=self.description)
        return types.Property(self.inputs, view=view)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a field, or ``default`` where it is empty.

        Args:
            key: the field of the form.
            default: the value of an empty field.
        """
        value = self.ctx.params.get(key)
        return default if value in (None, "", []) else value

    def mark_invalid(self, key: str, error: Exception | str) -> None:
        """Show an error under a field, so that the form cannot be sent.

        Args:
            key: the field of the form.
            error: the error.
        """
        field = self.inputs.properties[key]
        field.invalid, field.error_message = True, str(error)

    def check(self, key: str, check: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call a check, unless the field is empty, and show its error under the field.

        Args:
            key: the field of the form.
            check: a function that raises an error of the core.
            *args: the arguments of the function.
            **kwargs: the keyword arguments of the function.
        """
        if self.get(key) is None:
            return
        try:
            check(*args, **kwargs)
        except EfficientSam3Error as error:
            self.mark_invalid(key, error)

    def refuse(self, error: Exception | str) -> None:
        """Show an error that belongs to no field, so that the form cannot be sent.

        Args:
            error: the error.
        """
        view = types.Error(label="This cannot be done", description=str(error))
        self.inputs.view("refused", view)
        self.mark_invalid("refused", error)

    def target(self, media: str = "image", *, patches: bool = False) -> None:
        """Choose the dataset, the view or the selection, and check its samples.

        Args:
            media: the media type that is needed.
            patches: a view of patches stands for the samples that they were made of.
        """
        self.inputs.view_target(self.ctx, require_flat=True, action_description="Work on")
        self.samples = self.ctx.target_view(require_flat=True)
        if patches:
            self.samples = whole_samples(self.samples)
        try:
            check_samples(self.samples, media)
        except EfficientSam3Error as error:
            self.refuse(error)

    # Fields ---------------------------------------------------------------------------------

    def text(self, key: str, label: str, description: str, **options: Any) -> None:
        """Ask for a text.

        Args:
            key: the field of the form.
            label: its title.
            description: what it means.
            **options: further arguments of FiftyOne's ``Object.str``.
        """
        options = {"required": False, **options}
        self.inputs.str(key, label=label, description=description, **options)

    def choice(
        self, key: str, label: str, description: str, names: Iterable[str], **options: Any
    ) -> None:
        """Ask for a text, and offer some.

        Args:
            key: the field of the form.
            label: its title.
            description: what it means.
            names: the texts that are offered.
            **options: further arguments of FiftyOne's ``Object.str``.
        """
        self.text(key, label, description, view=_autocomplete(names), **options)

    def several(
        self,
        key: str,
        label: str,
        description: str,
        names: Iterable[str] = (),
        *,
        required: bool = True,
        only: bool = False,
    ) -> None:
        """Ask for a list of texts, and offer some.

        A text that is typed becomes part of the list when Enter is pressed, and, where none are
        offered, also when the person goes on to another field.

        Args:
            key: the field of the form.
            label: its title.
            description: what it means.
            names: the texts that are offered.
            required: the list must not be empty.
            only: no other texts than those that are offered can be given.
        """
        names = list(names)
        view = _autocomplete(
            names,
            take_on_leave=not names,
            allow_duplicates=False,
            allow_user_input=not only,
        )
        self.inputs.list(
            key,
            types.String(),
            required=required,
            label=label,
            description=description,
            view=view,
        )

    def options(self, key: str, label: str, description: str, labels: Mapping[str, str]) -> None:
        """Ask for one of a few values; the first one is the default.

        Args:
            key: the field of the form.
            label: its title.
            description: what it means.
            labels: the title of each value.
        """
        view = types.DropdownView()
        for value, title in labels.items():
            view.add_choice(value, label=title)
        self.inputs.enum(
            key,
            view.values(),
            default=next(iter(labels)),
            required=False,
            label=label,
            description=description,
            view=view,
        )

    def integer(self, key: str, label: str, description: str, **options: Any) -> None:
        """Ask for an integer.

        Args:
            key: the field of the form.
            label: its title.
            description: what it means.
            **options: further arguments of FiftyOne's ``Object.int``.
        """
        self.inputs.int(key, required=False, label=label, description=description, **options)

    def field(
        self,
        key: str,
        label: str,
        description: str,
        kinds: Sequence[type] = (fol.Detections,),
        *,
        default: str | None = None,
        required: bool = True,
        new: bool = False,
    ) -> None:
        """Ask for a field of the samples.

        Args:
            key: the field of the form.
            label: its title.
            description: what it means.
            kinds: the classes of labels that it may hold.
            default: its name by default.
            required: a name must be given where there is no default.
            new: the field does not have to exist.
        """
        needed = required and default is None  # the SDK does not fill in defaults
        names = label_fields(self.samples, kinds)
        self.choice(key, label, description, names, default=default, required=needed)
        self.check(key, check_field, self.samples, self.get(key), kinds=kinds, new=new)

    def masks_field(self, default: str) -> None:
        """Ask for the field that the masks are written to.

        Args:
            default: its name by default.
        """
        self.field(
            "label_field",
            "Field for the masks",
            "A new one, or one of Detections",
            default=default,
            new=True,
        )

    # Options that several operators have ----------------------------------------------------

    def model(self) -> None:
        """Ask for a model: one of the table, or the folder of a saved model."""
        available = set(cached_models())
        names = sorted(list_models(), key=lambda n: n not in available)
        view = _autocomplete({name: describe_model(name, name in available) for name in names})
        default = default_model(available)
        description = "From the list, or the folder of a saved model"
        self.text("model", "Model", description, default=default, view=view)
        chosen = str(self.get("model", default))
        if Path(chosen).is_dir():
            return
        try:
            row = find_variant(chosen)
        except EfficientSam3Error as error:
            self.mark_invalid("model", error)
            return
        if row.name not in available and isinstance(row.weights, Packaged):
            self.mark_invalid("model", f"the weights of {row.name} are not in this installation")

    def concepts(self, *, required: bool = True) -> None:
        """Ask for phrases, and apart from them for classes that the samples have.

        The classes are a field of their own. Suggestions under the phrases would replace what is
        typed: the App takes the suggestion that the pointer is on.

        Args:
            required: there must be at least one phrase or class.
        """
        classes = existing_classes(self.samples)
        self.several(
            "concepts",
            "Concepts",
            "Words or phrases, such as: yellow school bus. Press Enter after each, or put commas "
            "between them",
            required=required and not self.get(CLASSES),
        )
        if self.get("concepts") and not split_phrases(self.get("concepts")):
            self.mark_invalid("concepts", "name something to look for: a word or a phrase")
        if classes:
            self.several(
                CLASSES,
                "Classes of this dataset",
                "These are searched for too",
                classes,
                required=False,
                only=True,
            )

    def share(self, key: str, label: str, description: str, default: float | None = None) -> None:
        """Ask for a number from 0 to 1.

        Args:
            key: the field of the form.
            label: its title.
            description: what it means.
            default: its value by default.
        """
        self.inputs.float(
            key,
            required=False,
            default=default,
            label=label,
            description=description,
            min=0.0,
            max=1.0,
            view=score_slider(),
        )

    def threshold(
        self, description: str = "The lowest score of an instance", default: float = 0.5
    ) -> None:
        """Ask for the lowest score.

        Args:
            description: what it means.
            default: its value by default.
        """
        self.share("threshold", "Threshold", description, default)

    def tile(self) -> None:
        """Ask for tiles of large pictures."""
        self.text(
            "tile",
            "Tiles of large pictures",
            "auto, or the side of a tile in pixels, such as 1008; small things are found then",
        )
        self.check("tile", parse_tile, self.get("tile"))

    def classes(self) -> None:
        """Ask for classes of several phrases, in a text such as "vehicle: car, truck"."""
        self.text(
            CLASS_PHRASES,
            "Classes of several phrases",
            "Optional, with semicolons between: vehicle: car, truck; person: man, woman. The "
            "masks get the class",
        )
        self.check(CLASS_PHRASES, read_class_text, self.get(CLASS_PHRASES))

    def suppression(self) -> None:
        """Ask how far masks may overlap."""
        self.share(
            "nms",
            "Overlap of masks",
            "Optional: of two masks of a class that overlap by more, one is kept",
        )
        self.inputs.bool(
            "class_agnostic",
            default=False,
            label="One mask for an object",
            description="Also compare masks of different classes",
        )
        metrics = {"iou": "Intersection over union", "iom": "Part of the smaller mask"}
        self.options("overlap_metric", "Overlap is", "How overlap is measured", metrics)

    def cuts(self) -> None:
        """Ask whether tracks end where another scene begins."""
        self.inputs.bool(
            "cuts",
            default=True,
            label="End tracks at cuts",
            description="Objects get new identities where another scene begins",
        )

    def existing(self, ways: Sequence[str] = EXISTING) -> None:
        """Ask what happens to labels that the field holds, and how much overlap is one object.

        Args:
            ways: the values that are offered.
        """
        self.options(
            "existing",
            "Labels that are there",
            "What people made, edited or tagged is only replaced by Overwrite",
            {way: MEANINGS[way] for way in ways},
        )
        if self.get("existing") in (ADD, REPLACE):
            self.share(
                "overlap",
                "Same object from",
                "A new label with this IoU or more with one that is there is left out",
                default=OVERLAP,
            )

    def key(self, ways: Mapping[str, str]) -> None:
        """Ask what happens to a key that the dataset has.

        Args:
            ways: the title of each value of ``existing``.
        """
        self.options("existing", "If the name is taken", "By default this is an error", ways)

    def restart(self) -> None:
        """Ask whether samples that are done are processed again."""
        self.inputs.bool(
            "restart",
            default=False,
            label="Restart",
            description="Ask again what was answered with these settings",
        )

    def workers(self) -> None:
        """Ask for the number of threads that read images."""
        description = "Threads that read images ahead; 0 reads them in turn"
        self.integer("num_workers", "Workers", description, min=0, default=0)


def score_slider() -> types.SliderView:
    """A slider from 0 to 1."""
    return types.SliderView(componentsProps={"slider": {"min": 0, "max": 1, "step": 0.01}})


def _autocomplete(
    names: Iterable[str] | Mapping[str, str], *, take_on_leave: bool = False, **options: Any
) -> types.AutocompleteView:
    """A text field with suggestions, none of which is taken before a person chooses it.

    Args:
        names: the suggestions, or the title of each.
        take_on_leave: what is typed is taken when the field loses the focus.
        **options: further arguments of ``AutocompleteView``.
    """
    props: dict[str, Any] = {"autoHighlight": False}
    if take_on_leave:
        props |= {"autoSelect": True, "clearOnBlur": False}
    view = types.AutocompleteView(componentsProps={"autocomplete": props}, **options)
    titles = names if isinstance(names, Mapping) else {name: name for name in names}
    for name, title in titles.items():
        view.add_choice(name, label=title)
    return view


def label_fields(samples: Any, kinds: Sequence[type] = ()) -> list[str]:
    """The names of the fields that hold labels.

    Args:
        samples: a dataset or a view, or None.
        kinds: the classes of labels. Empty: any.
    """
    if samples is None:
        return []
    return sorted(samples.get_field_schema(embedded_doc_type=tuple(kinds) or fol.Label))


def existing_classes(samples: Any, most: int = 200) -> list[str]:
    """The classes that a dataset names or its labels have.

    Args:
        samples: a dataset or a view, or None.
        most: the largest number of classes.
    """
    if samples is None:
        return []
    dataset = samples._root_dataset
    out = dict.fromkeys(dataset.default_classes or [])
    for names in (dataset.classes or {}).values():
        out.update(dict.fromkeys(names))
    for schema in dataset.label_schemas.values():
        out.update(dict.fromkeys(map(str, schema.get("classes") or ())))
    some = samples.limit(1000)
    listed = (fol.Detections, fol.Classifications, fol.Keypoints, fol.Polylines)
    for name, field in samples.get_field_schema(embedded_doc_type=listed).items():
        part = field.document_type._LABEL_LIST_FIELD
        out.update(dict.fromkeys(some.distinct(f"{name}.{part}.label")))
    for name in samples.get_field_schema(embedded_doc_type=fol.Classification):
        out.update(dict.fromkeys(some.distinct(f"{name}.label")))
    return [name for name in out if name and name != ERROR_FIELD][:most]
