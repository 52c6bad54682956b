"""The panel as FiftyOne runs it: its events, and the data that panel.js draws.

Every event gets the controls' values as parameters, and its result is what changed. Panel *state*
is not used: the App keeps it in the workspace, and each change of the workspace loads the grid
anew.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar

import fiftyone.core.labels as fol
import fiftyone.operators as foo
from fiftyone.operators import types
from fiftyone.operators.categories import Categories

import efficientsam3 as es3
from efficientsam3.checkpoints.hub import cached_models

from ..labels import describe_error, to_labels
from ..model_cache import MODEL_LOCK, is_loaded, load_for_run
from ..operators.form import (
    existing_classes,
    label_fields,
)
from ..operators.models import default_model
from ..operators.texts import split_phrases
from ..runs.checks import check_field
from ..runs.field_lock import cancel_runs, running_fields
from ..runs.steps import RunError
from .accepted import Accepted, accept_labels, find_accepted, take_accepted_back
from .shown import show
from .state import OBJECT_ON, PanelState, Recent

logger = logging.getLogger(__name__)

COMPONENT = "EfficientSam3Panel"
"""The name under which panel.js registers the component that draws the panel."""

DEFAULT_FIELD = "esam3"

LOCK_SECONDS = 0.2
"""How long a click waits for a busy model before the panel says so."""

MAX_SAMPLES = 64
"""The number of samples whose unaccepted work is kept."""

_states: Recent[PanelState] = Recent(MAX_SAMPLES)
"""The work on each sample, by the names of the dataset and the ids of the sample."""

Event = Callable[["SegmentPanel", Any], "str | None"]


def _handler(event: Event) -> Callable[[SegmentPanel, Any], dict[str, Any]]:
    """Give the outcome of an event: its error or its message, and what is shown now."""

    @wraps(event)
    def handle(self: SegmentPanel, ctx: Any) -> dict[str, Any]:
        message: dict[str, str] = {}
        try:
            said = event(self, ctx)
            message = {"text": said, "kind": "success"} if said else {}
        except Exception as error:
            logger.debug("the traceback of this error", exc_info=True)
            message = _message(event.__name__, error)
        return self._shown(ctx, message)

    return handle


def _message(event: str, error: Exception) -> dict[str, str]:
    """The message of an error. The log has the traceback at level DEBUG."""
    if isinstance(error, es3.EfficientSam3Error):
        return {"text": str(error), "kind": "error"}
    logger.error("%s: %s", event, describe_error(error))
    return {"text": describe_error(error), "kind": "error"}


class SegmentPanel(foo.Panel):
    """Concepts, clicks and boxes on the current sample; accept, discard and undo."""

    NAME = "efficientsam3_panel"
    LABEL = "EfficientSAM3"

    EVENTS: ClassVar[tuple[str, ...]] = (
        *("open", "find", "click", "box", "next_object", "undo", "discard", "accept", "cancel"),
    )
    """The events that panel.js sends."""

    @property
    def config(self) -> foo.PanelConfig:
        """How FiftyOne lists the panel: beside the grid, and beside a sample."""
        return foo.PanelConfig(
            name=self.NAME,
            label=self.LABEL,
            icon="auto_awesome",
            surfaces="grid modal",
            category=Categories.CURATE,
            help_markdown=(
                "Type what to look for and press **Enter**. The slider filters what was found; "
                "nothing is written before you press **Accept**."
            ),
        )

    def render(self, ctx: Any) -> types.Property:
        """The panel: one component of panel.js, with the addresses of the events.

        Args:
            ctx: FiftyOne's execution context.
        """
        events = {name: self.method_to_uri(name) for name in self.EVENTS}
        view = types.View(component=COMPONENT, composite_view=True, events=events)
        return types.Property(types.Object(), view=view)

    def execute(self, ctx: Any) -> Any:
        """Handle an event.

        Args:
            ctx: FiftyOne's execution context.

        Returns:
            for an event of the component, what it has to draw. The component itself stays the
            same, so it is not rendered again.
        """
        name = ctx.params.get("__method__")
        return getattr(self, name)(ctx) if name in self.EVENTS else super().execute(ctx)

    # Events of the App ----------------------------------------------------------------------

    def on_load(self, ctx: Any) -> None:
        """Ask the component to open the current sample.

        Args:
            ctx: FiftyOne's execution context.
        """
        ctx.panel.set_data("moved", uuid.uuid4().hex)

    def on_change_current_sample(self, ctx: Any) -> None:
        """Ask the component to open the sample.

        Args:
            ctx: FiftyOne's execution context.
        """
        self.on_load(ctx)

    def on_change_selected(self, ctx: Any) -> None:
        """Ask the component to open the first selected sample of the grid.

        Args:
            ctx: FiftyOne's execution context.
        """
        if not ctx.current_sample:
            self.on_load(ctx)

    def on_change_dataset(self, ctx: Any) -> None:
        """Ask the component to open the first sample of the new dataset.

        Args:
            ctx: FiftyOne's execution context.
        """
        self.on_load(ctx)

    # Events of the component ----------------------------------------------------------------

    @_handler
    def open(self, ctx: Any) -> None:
        """Show the current sample, with the work on it; with "live" on, search it at once.

        Args:
            ctx: FiftyOne's execution context.
        """
        state, concepts = self._state(ctx), _concepts(ctx)
        if state and ctx.params.get("live") and concepts and state.result.is_empty:
            with self._model(ctx) as model:
                state.find(model, concepts)

    @_handler
    def find(self, ctx: Any) -> None:
        """Search for the concepts that are typed.

        Args:
            ctx: FiftyOne's execution context.
        """
        state = self._open_state(ctx)
        with self._model(ctx) as model:
            state.find(model, _concepts(ctx))

    @_handler
    def click(self, ctx: Any) -> None:
        """Take a click on the image.

        Args:
            ctx: FiftyOne's execution context. The parameters ``x`` and ``y`` are in [0, 1].
        """
        state = self._open_state(ctx)
        x, y = _place(ctx.params["x"], ctx.params["y"], state)
        with self._model(ctx) as model:
            state.add_point(model, x, y, _meaning(ctx), _concepts(ctx))

    @_handler
    def box(self, ctx: Any) -> None:
        """Take a box that was drawn on the image.

        Args:
            ctx: FiftyOne's execution context. The parameter ``corners`` is x0, y0, x1, y1 in
                [0, 1].
        """
        state = self._open_state(ctx)
        x0, y0, x1, y1 = ctx.params["corners"]
        low, high = _place(min(x0, x1), min(y0, y1), state), _place(max(x0, x1), max(y0, y1), state)
        if not (high[0] > low[0] and high[1] > low[1]):
            raise RunError("the box is a line; draw a larger one")
        with self._model(ctx) as model:
            state.add_box(model, (*low, *high), _meaning(ctx), _concepts(ctx))

    @_handler
    def next_object(self, ctx: Any) -> None:
        """Finish the object that is being made.

        Args:
            ctx: FiftyOne's execution context.
        """
        self._open_state(ctx).next_object()

    @_handler
    def undo(self, ctx: Any) -> str | None:
        """Go back by one action; after Accept, remove the labels that it added.

        Where there is no action to undo, the labels that were accepted last are removed, also those
        of an earlier session.

        Args:
            ctx: FiftyOne's execution context.
        """
        state = self._open_state(ctx)
        if state.history:
            accepted = state.history[-1].accepted
        else:
            accepted = find_accepted(_current_sample(ctx), _field(ctx))
            if accepted is None:
                raise RunError("there is nothing to undo")
        taken = None
        if isinstance(accepted, Accepted):  # before the action is forgotten: it can be refused
            taken = take_accepted_back(ctx.dataset, accepted)
            ctx.ops.reload_samples()
        state.undo()
        if taken is None:
            return None
        message = f"{_labels(taken.removed)} removed from {accepted.field}"
        if taken.spared:
            message += f"; {_labels(taken.spared)} edited since, and kept"
        return message

    @_handler
    def discard(self, ctx: Any) -> None:
        """Remove everything that was not accepted.

        Args:
            ctx: FiftyOne's execution context.
        """
        self._open_state(ctx).discard()

    @_handler
    def accept(self, ctx: Any) -> str:
        """Add what is shown to the sample's labels.

        Args:
            ctx: FiftyOne's execution context. The parameters ``found`` and ``objects`` have the
                positions of the instances that are shown; those that overlap a label of the field
                are not among them, unless a person put them back.
        """
        state, params = self._open_state(ctx), ctx.params
        field = _field(ctx)
        check_field(ctx.dataset, field, kinds=(fol.Detections,), new=True)
        found, objects = params.get("found") or [], params.get("objects") or []
        chosen = state.chosen(found, objects, _first_concept(ctx))
        if chosen is None or not len(chosen):
            if params.get("taken"):
                raise RunError(f"{_labels(params['taken'])} in {field} already; none is added")
            raise RunError("there is nothing to accept; search, or click on an object")
        is_new = ctx.dataset.get_field(f"{field}.detections.presence") is None
        labels = to_labels(chosen)
        state.accept(accept_labels(ctx.dataset, _current_sample(ctx).id, field, labels))
        if is_new:
            ctx.ops.reload_dataset()
        else:
            ctx.ops.reload_samples()
        message = f"{_labels(len(labels.detections))} added to {field}"
        if params.get("taken"):
            message += f"; {_labels(params['taken'])} there already"
        return message

    @_handler
    def cancel(self, ctx: Any) -> str:
        """End the runs that are writing to the dataset.

        Args:
            ctx: FiftyOne's execution context.
        """
        fields = cancel_runs(ctx.dataset)
        if not fields:
            raise RunError("no run is writing to this dataset any more")
        return f"the runs on {', '.join(fields)} end after the images in hand"

    # State and model ------------------------------------------------------------------------

    def _state(self, ctx: Any) -> PanelState | None:
        """The work on the current sample, or None if there is no sample."""
        sample = _current_sample(ctx)
        if sample is None:
            return None
        if sample.media_type != "image":
            raise RunError(
                f"this sample is {sample.media_type}, and the panel shows images; for videos run "
                "the operator track_video"
            )
        key = (ctx.dataset.name, sample.id, sample.filepath)
        return _states.get(key, lambda: PanelState(sample.filepath))

    def _open_state(self, ctx: Any) -> PanelState:
        """The work on the current sample; an error if there is no sample."""
        state = self._state(ctx)
        if state is None:
            raise RunError("there is no sample here; open one, or select it in the grid")
        return state

    @contextmanager
    def _model(self, ctx: Any) -> Iterator[es3.ImageModel]:
        """The chosen model, loaded at its first use; an error if it is busy."""
        if not MODEL_LOCK.acquire(timeout=LOCK_SECONDS):
            raise RunError(
                "the model is being loaded, or is busy with a run; try again in a moment"
            )
        try:
            yield load_for_run(_model_name(ctx))
        finally:
            MODEL_LOCK.release()

    # What is shown --------------------------------------------------------------------------

    def _shown(self, ctx: Any, message: dict[str, str]) -> dict[str, Any]:
        """What the component does not have yet."""
        has = ctx.params.get("has") or {}
        data: dict[str, Any] = {"message": message}
        if ctx.params.get("__method__") == "open":
            data["choices"] = _choices(ctx)
        sample = _current_sample(ctx)
        data["sample"] = None if sample is None else sample.id
        data["title"] = "" if sample is None else Path(sample.filepath).name
        shown: dict[str, Any] = {"picture": None, "result": None}
        try:
            state = self._state(ctx)
            if state is not None:
                shown = show(state, sample, _field(ctx), has)
        except Exception as error:
            logger.debug("the traceback of this error", exc_info=True)
            data["message"] = _message("show", error)
        data |= shown
        data["loaded"] = is_loaded(_model_name(ctx))
        data["running"] = [] if ctx.dataset is None else sorted(running_fields(ctx.dataset))
        return data


def _choices(ctx: Any) -> dict[str, Any]:
    """What the component suggests: classes, fields and models."""
    fields = [] if ctx.dataset is None else label_fields(ctx.dataset, (fol.Detections,))
    return {
        "classes": existing_classes(ctx.dataset),
        "fields": sorted({DEFAULT_FIELD, *fields}),
        "models": sorted({*cached_models(), default_model()}),
        "model": default_model(),
    }


def _concepts(ctx: Any) -> list[str]:
    """The concepts that are typed."""
    return split_phrases(ctx.params.get("concepts") or [])


def _first_concept(ctx: Any) -> str | None:
    """The class of objects: the first concept that is typed."""
    return next(iter(_concepts(ctx)), None)


def _field(ctx: Any) -> str:
    return str(ctx.params.get("label_field") or DEFAULT_FIELD)


def _meaning(ctx: Any) -> str:
    return str(ctx.params.get("meaning") or OBJECT_ON)


def _model_name(ctx: Any) -> str:
    return str(ctx.params.get("model") or default_model())


def _place(x: float, y: float, state: PanelState) -> tuple[float, float]:
    """A point of the image in pixels, from its place in [0, 1]."""
    height, width = state.size
    return min(max(float(x), 0), 1) * width, min(max(float(y), 0), 1) * height


def _labels(count: int) -> str:
    """A count of labels with its verb."""
    return "1 label is" if count == 1 else f"{count} labels are"


def _current_sample(ctx: Any) -> Any:
    """The open sample, or the first selected one, or the first one of the view."""
    if ctx.dataset is None:
        return None
    chosen = ctx.current_sample or next(iter(ctx.selected or []), None)
    if chosen is not None:
        return ctx.dataset[chosen]
    return ctx.view.first() if len(ctx.view) else None
