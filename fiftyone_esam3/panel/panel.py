"""The panel as FiftyOne shows it: what its buttons, slider and picture do."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import fiftyone.core.labels as fol
import fiftyone.operators as foo
from fiftyone.operators import types
from fiftyone.operators.categories import Categories

import efficientsam3 as es3

from ..labels import presence_keys, to_detections
from ..operators.form import default_model, describe, existing_classes, split
from ..runs import RunError, check_field
from ..shared import COMPUTING, is_loaded, keep, load_core
from .bench import LIKE_THIS, NOT_THIS, OBJECT_OFF, OBJECT_ON, Accepted, Bench, Encoded
from .picture import draw, layout, to_image, traces

MEANINGS = {
    OBJECT_ON: "this object (a click on it, or a box around it)",
    OBJECT_OFF: "not part of this object",
    LIKE_THIS: "an example: find everything like it",
    NOT_THIS: "an example of what is not meant",
}

MOST_PANELS = 8
PATIENCE = 0.2
"""Seconds that a click waits for a model that is busy before it is told so."""

_benches: OrderedDict[str, Bench] = OrderedDict()
_encoded = Encoded()

Event = Callable[["Workbench", Any], None]


def answered(event: Event) -> Event:
    """An event whose trouble is told in the panel, and whose result is shown there."""

    @wraps(event)
    def do(self: Workbench, ctx: Any) -> None:
        try:
            event(self, ctx)
        except (es3.EfficientSam3Error, MemoryError, OSError) as error:
            ctx.panel.set_state("told", str(error) or type(error).__name__)
        else:
            ctx.panel.set_state("told", "")
        self.show(ctx)

    return do


class Workbench(foo.Panel):
    """Words, clicks and boxes on the current sample; accept, discard, undo."""

    NAME = "efficientsam3_workbench"
    LABEL = "EfficientSAM3"

    @property
    def config(self) -> foo.PanelConfig:
        """How FiftyOne lists it: beside the grid, and beside a sample."""
        return foo.PanelConfig(
            name=self.NAME,
            label=self.LABEL,
            icon="auto_awesome",
            surfaces="grid modal",
            category=Categories.CURATE,
            help_markdown=(
                "Type what to look for and press **Preview**. The slider filters what was found; "
                "nothing is written before you press **Accept**."
            ),
        )

    # What is open ----------------------------------------------------------------------

    def on_load(self, ctx: Any) -> None:
        """Shows the current sample."""
        if ctx.panel.get_state("threshold") is None:
            ctx.panel.set_state("threshold", 0.5)
        self.on_change_current_sample(ctx)

    def on_unload(self, ctx: Any) -> None:
        """Forgets what was not accepted."""
        _benches.pop(ctx.panel_id or "", None)

    @answered
    def on_change_current_sample(self, ctx: Any) -> None:
        """Goes to the sample; with "live" on, looks at once for what is typed."""
        bench = self.bench(ctx)
        if bench.sample and ctx.panel.get_state("live") and self.concepts(ctx):
            with self.model(ctx) as model:
                bench.look_for(model, self.concepts(ctx))

    def on_change_selected(self, ctx: Any) -> None:
        """In the grid, the first selected sample is the current one."""
        if not ctx.current_sample:
            self.on_change_current_sample(ctx)

    def on_change_dataset(self, ctx: Any) -> None:
        """Goes to the first sample of the new dataset."""
        self.on_change_current_sample(ctx)

    def bench(self, ctx: Any) -> Bench:
        """The panel's sample and what is known of it.

        Raises:
            RunError: the sample is no image.
        """
        bench = _benches.setdefault(ctx.panel_id or "", Bench(_encoded))
        _benches.move_to_end(ctx.panel_id or "")
        while len(_benches) > MOST_PANELS:
            _benches.popitem(last=False)
        sample = _current(ctx)
        if sample is None:
            bench.open("", "")
            return bench
        if sample.media_type != "image":
            bench.open("", "")
            raise RunError(
                f"this sample is {sample.media_type}, and the panel shows images; for videos run "
                "the operator track_video"
            )
        bench.open(sample.id, sample.filepath)
        return bench

    # What is asked ---------------------------------------------------------------------

    def concepts(self, ctx: Any) -> list[str]:
        """What is typed."""
        return split([ctx.panel.get_state("concepts") or ""])

    def threshold(self, ctx: Any) -> float:
        """Where the slider is."""
        value = ctx.panel.get_state("threshold")
        return 0.5 if value is None else float(value)

    @contextmanager
    def model(self, ctx: Any) -> Iterator[es3.ImageModel]:
        """The chosen model, loaded at its first use.

        Raises:
            RunError: it is loading, or answering another question.
        """
        if not COMPUTING.acquire(timeout=PATIENCE):
            raise RunError(
                "the model is being loaded, or is busy with a run; try again in a moment"
            )
        try:
            model = load_core(ctx.panel.get_state("model") or default_model())
            keep(model)
            yield model
        finally:
            COMPUTING.release()

    @answered
    def preview(self, ctx: Any) -> None:
        """Looks for what is typed."""
        bench = self.opened(ctx)
        with self.model(ctx) as model:
            bench.look_for(model, self.concepts(ctx))

    @answered
    def click(self, ctx: Any) -> None:
        """A click on the picture."""
        bench = self.opened(ctx)
        place = _clicked(ctx.params)
        if place is None:
            return
        x, y = to_image(*place, bench.size)
        with self.model(ctx) as model:
            bench.point(model, x, y, self.meaning(ctx), self.concepts(ctx))

    @answered
    def box(self, ctx: Any) -> None:
        """A box that was drawn on the picture."""
        bench = self.opened(ctx)
        found = [(p["x"], p["y"]) for p in ctx.params.get("data") or [] if p.get("x") is not None]
        if len(found) < 2:
            return
        xs, ys = zip(*found, strict=True)
        x0, y0 = to_image(min(xs), min(ys), bench.size)
        x1, y1 = to_image(max(xs), max(ys), bench.size)
        if not (x1 > x0 and y1 > y0):
            raise RunError("the box is a line; draw a larger one")
        with self.model(ctx) as model:
            bench.draw(model, (x0, y0, x1, y1), self.meaning(ctx), self.concepts(ctx))

    def meaning(self, ctx: Any) -> str:
        """What a click or a box means now."""
        return str(ctx.panel.get_state("meaning") or OBJECT_ON)

    def opened(self, ctx: Any) -> Bench:
        """The bench, with a sample on it.

        Raises:
            RunError: no sample is open.
        """
        bench = self.bench(ctx)
        if not bench.sample:
            raise RunError("there is no sample here; open one, or select it in the grid")
        return bench

    @answered
    def slide(self, ctx: Any) -> None:
        """Another threshold: the picture is drawn anew, the model is not asked."""

    @answered
    def next_object(self, ctx: Any) -> None:
        """The next click begins another object."""
        self.opened(ctx).next_object()

    @answered
    def undo(self, ctx: Any) -> None:
        """Back by one step; after Accept, the field is as it was before."""
        bench = self.opened(ctx)
        if bench.accepted and bench.accepted[-1].at == len(bench.past):
            _, field, before = bench.accepted.pop()
            sample = ctx.dataset[bench.sample]
            sample[field] = before
            sample.save()
            ctx.ops.reload_dataset()
        if not bench.undo():
            raise RunError("there is nothing to undo")

    @answered
    def discard(self, ctx: Any) -> None:
        """Everything away that was not accepted."""
        self.opened(ctx).discard()

    @answered
    def accept(self, ctx: Any) -> None:
        """Adds what is shown to the sample's labels."""
        bench = self.opened(ctx)
        field = ctx.panel.get_state("label_field") or "esam3"
        check_field(ctx.dataset, field, kinds=(fol.Detections,), new=True)
        shown = bench.shown(self.threshold(ctx), self.word(ctx))
        if shown is None:
            raise RunError("there is nothing to accept; press Preview, or click on an object")
        sample = ctx.dataset[bench.sample]
        before = sample[field].copy() if sample.has_field(field) and sample[field] else None
        labels = before.copy() if before is not None else fol.Detections()
        labels.detections = [*labels.detections, *to_detections(shown)]
        known = getattr(labels, "concept_presence", None) or {}
        labels["concept_presence"] = {**known, **presence_keys(bench.presence)}
        sample[field] = labels
        sample.save()
        bench.discard()
        bench.accepted.append(Accepted(len(bench.past), field, before))
        ctx.ops.reload_dataset()
        ctx.ops.notify(f"{len(shown)} labels are in {field}", variant="success")

    def word(self, ctx: Any) -> str | None:
        """The class of objects: the first word that is typed."""
        words = self.concepts(ctx)
        return words[0] if words else None

    # What is shown ---------------------------------------------------------------------

    def show(self, ctx: Any) -> None:
        """Draws the picture and writes the counts."""
        bench = _benches.get(ctx.panel_id or "")
        if bench is None or not bench.sample:
            ctx.panel.set_state({"title": "No sample: open one, or select it in the grid"})
            return
        try:
            pixels = bench.pixels
        except es3.ImageError as error:
            ctx.panel.set_state({"told": str(error), "title": bench.path})
            return
        threshold = self.threshold(ctx)
        picture = draw(pixels, bench.shown(threshold, self.word(ctx)), bench.view.prompts)
        ctx.panel.set_data("picture", traces(picture))
        ctx.panel.set_state(
            {
                "width": picture.width,
                "height": picture.height,
                "counts": _table(bench.counts(threshold, self.word(ctx)), bench.presence),
                "title": bench.path.rsplit("/", 1)[-1],
            }
        )

    def render(self, ctx: Any) -> types.Property:
        """The panel's parts, from top to bottom."""
        panel = types.Object()
        told = ctx.panel.get_state("told")
        panel.md(f"**{ctx.panel.get_state('title') or 'No sample'}**", name="heading")
        if told:
            panel.view("trouble", types.Notice(label=told))
        words = types.AutocompleteView(allow_duplicates=False)
        for name in existing_classes(ctx.dataset) if ctx.dataset is not None else []:
            words.add_choice(name, label=name)
        panel.str(
            "concepts",
            label="Concepts",
            description="Words or phrases, with commas between",
            view=words,
        )
        buttons = panel.h_stack("buttons", gap=1)
        buttons.btn("preview", label="Preview", variant="contained", on_click=self.preview)
        buttons.btn("accept", label="Accept", variant="outlined", on_click=self.accept)
        buttons.btn("discard", label="Discard", variant="outlined", on_click=self.discard)
        buttons.btn("undo", label="Undo", variant="outlined", on_click=self.undo)
        panel.float(
            "threshold",
            label="Threshold",
            min=0.0,
            max=1.0,
            default=0.5,
            on_change=self.slide,
            view=types.SliderView(componentsProps={"slider": {"min": 0, "max": 1, "step": 0.01}}),
        )
        panel.md(ctx.panel.get_state("counts") or "", name="found")
        width, height = ctx.panel.get_state("width"), ctx.panel.get_state("height")
        if width:
            panel.plot(
                "picture",
                layout=layout(int(width), int(height)),
                config={"displayModeBar": False, "scrollZoom": False},
                on_click=self.click,
                on_selected=self.box,
                width=int(width),
                height=int(height),
            )
        means = types.DropdownView()
        for value, label in MEANINGS.items():
            means.add_choice(value, label=label)
        panel.enum(
            "meaning",
            means.values(),
            default=OBJECT_ON,
            label="A click or a box means",
            view=means,
        )
        panel.btn("next", label="Next object", variant="outlined", on_click=self.next_object)
        panel.bool("live", default=False, label="Look at once when another sample is opened")
        panel.str("label_field", default="esam3", label="Field for accepted labels")
        self._models(ctx, panel)
        return types.Property(panel, view=types.GridView(align_x="left", orientation="vertical"))

    def _models(self, ctx: Any, panel: types.Object) -> None:
        from efficientsam3.doctor import cached_models

        chosen = ctx.panel.get_state("model") or default_model()
        view = types.AutocompleteView()
        for name in sorted({*cached_models(), default_model()}):
            view.add_choice(name, label=describe(name, True))
        state = "loaded" if is_loaded(chosen) else "is loaded at its first use"
        panel.str("model", default=chosen, label="Model", description=state, view=view)


def _current(ctx: Any) -> Any:
    """The sample that is open, or the first one that is selected, or the first one there is."""
    if ctx.dataset is None:
        return None
    chosen = ctx.current_sample or next(iter(ctx.selected or []), None)
    if chosen is not None:
        return ctx.dataset[chosen]
    return ctx.view.first() if len(ctx.view) else None


def _clicked(params: dict[str, Any]) -> tuple[float, float] | None:
    """x, y in the screen's picture; of an image Plotly tells row and column as its index."""
    index = params.get("idx")
    if isinstance(index, (list, tuple)) and len(index) == 2:
        return float(index[1]), float(index[0])
    if params.get("x") is not None and params.get("y") is not None:
        return float(params["x"]), float(params["y"])
    return None


def _table(counts: dict[str, int], presence: dict[str, float]) -> str:
    if not counts:
        return ""
    rows = ["| class | found | in the image at all |", "|---|---|---|"]
    for name, count in counts.items():
        chance = presence.get(name)
        rows.append(f"| {name} | {count} | {'' if chance is None else f'{chance:.2f}'} |")
    return "\n".join(rows)
