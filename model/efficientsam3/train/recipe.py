"""Recipes: named stages that train one after the other, each from the result of earlier ones."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from ..data.json_records import read_json
from ..errors import AnnotationError, CheckpointError
from ..io.atomic import replacing
from . import checkpoint
from .errors import RecipeError, SettingsError
from .fabric import wait_for_processes
from .logs import Progress
from .loop import WEIGHTS_FILE, TrainingResult, train
from .recipes import RECIPES
from .settings import LoopSettings, to_plain, with_overrides, with_steps
from .task import Task

RECIPE_FILE = "recipe.json"
# Seconds between looks at what the first process has done.
POLL_SECONDS = 1.0
# Prefix of overrides that hold for the loop of every stage.
EVERY_STAGE = "loop"
# Entry points by which other packages add recipes: name = "module:RECIPE".
ENTRY_POINTS = "efficientsam3.recipes"


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        name: Name of the stage, and of its folder.
        prepare: Returns what to train and how; or does the work itself and returns None. A stage of
            the second kind starts again if it is interrupted.
        about: One line for people.
        finish: Called after training, on the first rank only, for instance to write a model's
            folder.
        alone: Whether the first of several processes does the work of ``prepare``, for which the
            others wait.
    """

    name: str
    prepare: Callable[[Run], tuple[Task, LoopSettings] | None]
    about: str = ""
    finish: Callable[[Run, Task], None] | None = None
    alone: bool = False


@dataclass(frozen=True)
class Recipe:
    """Stages in their order.

    Attributes:
        name: Name of the recipe.
        about: One line for people.
        stages: The stages, in their order.
        options: A frozen dataclass of the recipe's own options with their defaults; None: no
            options.

    Raises:
        RecipeError: There are no stages, or two of the same name.
    """

    name: str
    about: str
    stages: tuple[Stage, ...]
    options: Any = None

    def __post_init__(self) -> None:
        names = [s.name for s in self.stages]
        if not names or len(set(names)) < len(names) or EVERY_STAGE in names:
            raise RecipeError(
                f"recipe {self.name!r} has the stages {names}: it needs at least one, each with a "
                f"name of its own other than {EVERY_STAGE!r}"
            )

    def stage(self, name: str) -> Stage:
        """The stage of a name.

        Args:
            name: Name of the stage.

        Raises:
            RecipeError: There is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = ", ".join(s.name for s in self.stages)
        raise RecipeError(f"recipe {self.name!r} has no stage {name!r}; it has: {names}")


@dataclass(frozen=True)
class Run:
    """A recipe at work in a folder, as a stage sees it.

    Attributes:
        recipe: The recipe.
        folder: Folder of the whole run; each stage has a folder in it.
        stage: Name of the stage that runs.
        options: The recipe's options, with the user's changes.
        done: Names of the stages that are done.
    """

    recipe: Recipe
    folder: Path
    stage: str
    options: Any
    done: frozenset[str] = frozenset()

    @property
    def stage_folder(self) -> Path:
        """Folder of the stage that runs."""
        return self.folder / self.stage

    def folder_of(self, stage: str) -> Path:
        """Folder of an earlier stage.

        Args:
            stage: Name of the stage.

        Raises:
            RecipeError: It is not done.
        """
        self.recipe.stage(stage)
        if stage not in self.done:
            raise RecipeError(
                f"stage {self.stage!r} needs {stage!r}, which is not done in {self.folder}: run "
                "that stage first"
            )
        return self.folder / stage

    def weights(self, stage: str) -> Path:
        """File of the weights that an earlier stage trained: its module's state.

        Args:
            stage: Name of the stage.

        Raises:
            RecipeError: It is not done.
        """
        return self.folder_of(stage) / WEIGHTS_FILE


def known_recipes() -> dict[str, EntryPoint]:
    """The recipes of this package and of others that are installed, by name. Nothing is loaded."""
    points = [EntryPoint(name, value, ENTRY_POINTS) for name, value in RECIPES.items()]
    return {point.name: point for point in (*points, *entry_points(group=ENTRY_POINTS))}


def find_recipe(name: str) -> Recipe:
    """Load a recipe.

    Args:
        name: A name of ``known_recipes()``, or ``package.module:NAME`` for one of your own.

    Raises:
        RecipeError: There is none, or it cannot be loaded.
    """
    known = known_recipes()
    if name not in known and ":" not in name:
        raise RecipeError(
            f"unknown recipe {name!r}; known: {', '.join(known)}, or package.module:NAME"
        )
    point = known.get(name) or EntryPoint(name, name, ENTRY_POINTS)
    try:
        recipe = point.load()
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"recipe {name!r} cannot be loaded: {error}") from error
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"{name} is a {type(recipe).__name__}, not a Recipe")
    return recipe


def run_recipe(
    recipe: Recipe,
    folder: str | Path,
    *,
    stages: Sequence[str] = (),
    steps: int | None = None,
    overrides: Mapping[str, str] | None = None,
    restart: bool = False,
    accept_changes: bool = False,
    on_stage: Callable[[Stage, bool], None] | None = None,
    on_progress: Callable[[Stage, Progress], None] | None = None,
) -> dict[str, Any]:
    """Run the stages of a recipe that are not done yet; a stage that was interrupted continues.

    Args:
        recipe: The recipe.
        folder: Folder of the run; it is created if it is missing.
        stages: Names of the stages to run, in the recipe's order; empty: all.
        steps: Steps of each stage, for a trial; warm-up and cool-down shrink with them. None: as
            the recipe says.
        overrides: Option of the recipe -> value as text. ``loop.NAME`` is a setting of every
            stage's loop, ``STAGE.NAME`` of one stage's.
        restart: Delete what the folder has of these stages, and start them again.
        accept_changes: Continue although options or settings differ from those of the folder's run.
        on_stage: Called with each stage at its turn, and whether it is done already.
        on_progress: Called whenever a stage logs.

    Returns:
        The content of the folder's ``recipe.json``: seconds, steps and metrics by stage.

    Raises:
        RecipeError: A stage that does not exist, or that needs one that is not done.
        SettingsError: An option or setting that does not exist, or a value that is not allowed.
        CheckpointError: The folder holds another run.
        TrainingStopped: A signal stopped the run.
    """
    folder = Path(folder)
    options, by_stage = _apply_overrides(recipe, overrides or {})
    chosen = {recipe.stage(name).name for name in stages or [s.name for s in recipe.stages]}
    record = _open_record(recipe, folder, options, restart or accept_changes)
    if restart:
        _reset_stages(folder, record, chosen)
    for stage in recipe.stages:
        if stage.name not in chosen:
            continue
        entry = record["stages"].setdefault(stage.name, {"done": False, "seconds": 0.0})
        if on_stage is not None:
            on_stage(stage, bool(entry["done"]))
        if entry["done"]:
            continue
        done = frozenset(k for k, v in record["stages"].items() if v["done"])
        run = Run(recipe, folder, stage.name, options, done)
        started, earlier = time.perf_counter(), float(entry["seconds"])
        try:
            result = _run_stage(
                run,
                stage,
                steps,
                {**by_stage[EVERY_STAGE], **by_stage[stage.name]},
                accept_changes=accept_changes,
                on_progress=on_progress,
            )
            if result is not None:
                entry |= {
                    "steps": result.steps,
                    "seconds_per_step": round(result.seconds / result.steps, 4),
                    "skipped": result.skipped,
                    "metrics": dict(result.metrics),
                }
            entry["done"] = True
        finally:
            entry["seconds"] = round(earlier + time.perf_counter() - started, 3)
            _write_record(folder, record)
    return record


def _run_stage(
    run: Run,
    stage: Stage,
    steps: int | None,
    overrides: Mapping[str, str],
    *,
    accept_changes: bool,
    on_progress: Callable[[Stage, Progress], None] | None,
) -> TrainingResult | None:
    if stage.alone and not _is_first_rank():
        while not _is_done(run.folder, stage.name):
            time.sleep(POLL_SECONDS)
        return None
    prepared = stage.prepare(run)
    if prepared is None:
        return None
    task, settings = prepared
    if steps is not None:
        settings = with_steps(settings, steps)
    result = train(
        task,
        with_overrides(settings, overrides),
        run.stage_folder,
        accept_changes=accept_changes,
        on_progress=None if on_progress is None else lambda p: on_progress(stage, p),
    )
    if stage.finish is not None:
        if _is_first_rank():
            stage.finish(run, task)
        wait_for_processes()  # the next stage reads what this one wrote
    return result


def _is_done(folder: Path, stage: str) -> bool:
    """Whether the first process has written that a stage is done."""
    path = folder / RECIPE_FILE
    record = read_json(path, CheckpointError) if path.exists() else {"stages": {}}
    return bool(record["stages"].get(stage, {}).get("done"))


def _is_first_rank() -> bool:
    """Whether this process writes: of the processes that torchrun started, only one does."""
    return os.environ.get("RANK", "0") == "0"


def _apply_overrides(
    recipe: Recipe, overrides: Mapping[str, str]
) -> tuple[Any, dict[str, dict[str, str]]]:
    """The options, and overrides of the loop by stage. Unknown names are found before any work."""
    by_stage: dict[str, dict[str, str]] = {s.name: {} for s in recipe.stages}
    by_stage[EVERY_STAGE] = {}
    own = {}
    for key, text in overrides.items():
        first, _, rest = key.partition(".")
        if rest and first in by_stage:
            by_stage[first][rest] = text
        else:
            own[key] = text
    for texts in by_stage.values():
        with_overrides(LoopSettings(steps=10**9), texts)
    if own and recipe.options is None:
        raise SettingsError(
            f"recipe {recipe.name!r} has no options, so not {', '.join(own)}; settings of the "
            f"loop are {EVERY_STAGE}.NAME or STAGE.NAME"
        )
    return (with_overrides(recipe.options, own) if own else recipe.options), by_stage


def _open_record(
    recipe: Recipe, folder: Path, options: Any, accept_changes: bool
) -> dict[str, Any]:
    """Read ``recipe.json``, or start it; the options must be those of the folder's run."""
    path = folder / RECIPE_FILE
    plain = {} if options is None else to_plain(options)
    record: dict[str, Any] = {}
    if path.exists():
        try:
            content = read_json(path)
        except AnnotationError as error:
            raise CheckpointError(f"{path} is damaged ({error}): choose another folder") from error
        stages = content.get("stages") if isinstance(content, dict) else None
        if not isinstance(stages, dict) or not all(
            isinstance(stage, dict) and "done" in stage for stage in stages.values()
        ):
            raise CheckpointError(f"{path} is not the record of a run: choose another folder")
        record = content
    if record and _is_first_rank():
        if record.get("recipe") != recipe.name:
            raise CheckpointError(
                f"{folder} holds a run of recipe {record.get('recipe')!r}, not {recipe.name!r}: "
                "choose another folder"
            )
        if not accept_changes:
            checkpoint.require_same(path, record.get("options", {}), plain)
    record = {"recipe": recipe.name, "stages": {}, **record, "options": plain}
    _write_record(folder, record)
    return record


def _reset_stages(folder: Path, record: dict[str, Any], names: set[str]) -> None:
    """Forget what earlier runs of some stages did, and delete their folders."""
    for name in names:
        record["stages"].pop(name, None)
        if _is_first_rank():
            shutil.rmtree(folder / name, ignore_errors=True)
    _write_record(folder, record)


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    if not _is_first_rank():
        return
    with replacing(folder / RECIPE_FILE) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
