"""Recipes: named stages that train one after the other, each from what earlier ones left."""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, EfficientSam3Error
from ..weights import replacing
from . import checkpoint
from .logs import Progress
from .loop import WEIGHTS_FILE, Outcome, train
from .recipes import RECIPES
from .settings import LoopSettings, SettingsError, changed, plain, with_steps
from .task import Task

RECIPE_FILE = "recipe.json"
EVERY_STAGE = "loop"


class RecipeError(EfficientSam3Error, ValueError):
    """A recipe or stage that is not there, or is asked for out of turn."""


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Args:
        name: of its folder, too.
        work: makes what is to be trained, or does the whole work itself and returns None (such
            a stage is begun anew if it is interrupted).
        about: one line for people.
        finish: called after training, as to write a model's folder; by the first rank alone.
    """

    name: str
    work: Callable[[Run], tuple[Task, LoopSettings] | None]
    about: str = ""
    finish: Callable[[Run, Task], None] | None = None


@dataclass(frozen=True)
class Recipe:
    """Stages in their order.

    Args:
        options: a frozen dataclass of the recipe's own numbers, with their defaults; what
            ``run.options`` is, after the user's changes.
    """

    name: str
    about: str
    stages: tuple[Stage, ...]
    options: Any = None

    def __post_init__(self) -> None:
        names = [s.name for s in self.stages]
        if not names or len(set(names)) < len(names) or EVERY_STAGE in names:
            raise RecipeError(
                f"recipe {self.name!r} has the stages {names}: it needs some, each with a name "
                f"of its own other than {EVERY_STAGE!r}"
            )


@dataclass(frozen=True)
class Run:
    """A recipe at work in a folder; what a stage sees.

    Args:
        folder: of the whole run; each stage has one inside it.
        stage: name of the stage that is asked.
        options: of the recipe.
        done: stages that are.
    """

    recipe: Recipe
    folder: Path
    stage: str
    options: Any
    done: frozenset[str] = frozenset()

    @property
    def stage_folder(self) -> Path:
        """Where this stage writes."""
        return self.folder / self.stage

    def of(self, stage: str) -> Path:
        """The folder of an earlier stage, which must be done.

        Raises:
            RecipeError: it is not done.
        """
        _find(self.recipe, stage)
        if stage not in self.done:
            raise RecipeError(
                f"stage {self.stage!r} needs {stage!r}, which is not done in {self.folder}: run "
                "that stage first"
            )
        return self.folder / stage

    def weights(self, stage: str) -> Path:
        """The resulting weights of an earlier stage: its module's state, as safetensors."""
        return self.of(stage) / WEIGHTS_FILE


@dataclass(frozen=True)
class Asked:
    """What is asked of a recipe, beyond its defaults.

    Args:
        stages: only these, in the recipe's order; None: all.
        steps: of each stage, for a trial; warm-up and cool-down shrink with them.
        words: option -> value as text; ``loop.lr`` a setting of every stage's loop,
            ``STAGE.lr`` of one stage's.
        resume: go on where the folder's run was.
        accept_changes: although options or settings differ.
    """

    stages: Sequence[str] | None = None
    steps: int | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    resume: bool = False
    accept_changes: bool = False


def find_recipe(name: str) -> Recipe:
    """A recipe by its name, or one of your own as ``package.module:NAME``.

    Raises:
        RecipeError: there is none.
    """
    if name in RECIPES:
        module, attribute = RECIPES[name][0], "RECIPE"
    elif ":" in name:
        module, _, attribute = name.partition(":")
    else:
        raise RecipeError(
            f"unknown recipe {name!r}; known: {', '.join(RECIPES)}, or package.module:NAME"
        )
    try:
        recipe = getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise RecipeError(f"recipe {name!r} cannot be had: {error}") from error
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"{name} is a {type(recipe).__name__}, not a Recipe")
    return recipe


def run_recipe(
    recipe: Recipe,
    folder: str | Path,
    asked: Asked | None = None,
    *,
    on_stage: Callable[[Stage, bool], None] | None = None,
    on_progress: Callable[[Stage, Progress], None] | None = None,
) -> dict[str, Any]:
    """Run the stages that are not done yet.

    Args:
        on_stage: called with each stage at its turn, and whether it is done already.
        on_progress: called whenever a stage logs.

    Returns:
        What ``recipe.json`` in the folder then holds: seconds, steps and figures by stage.

    Raises:
        RecipeError, SettingsError: something asked for does not exist.
        CheckpointError: the folder holds another run.
    """
    asked, folder = asked or Asked(), Path(folder)
    options, by_stage = _sort(recipe, asked)
    wanted = [_find(recipe, name).name for name in asked.stages or ()]
    record = _begin(recipe, folder, options, asked)
    for stage in recipe.stages:
        if wanted and stage.name not in wanted:
            continue
        entry = record["stages"].setdefault(stage.name, {"done": False, "seconds": 0.0})
        if on_stage is not None:
            on_stage(stage, bool(entry["done"]))
        if entry["done"]:
            continue
        done = frozenset(k for k, v in record["stages"].items() if v["done"])
        run = Run(recipe, folder, stage.name, options, done)
        before, earlier = time.perf_counter(), float(entry["seconds"])
        try:
            outcome = _work(run, stage, asked, by_stage, on_progress)
            if outcome is not None:
                entry |= {
                    "steps": outcome.steps,
                    "seconds_per_step": round(outcome.seconds / outcome.steps, 4),
                    "skipped": outcome.skipped,
                    "figures": dict(outcome.figures),
                }
            entry["done"] = True
        finally:
            entry["seconds"] = round(earlier + time.perf_counter() - before, 3)
            _write(folder, record)
    return record


def _work(
    run: Run,
    stage: Stage,
    asked: Asked,
    by_stage: Mapping[str, Mapping[str, str]],
    on_progress: Callable[[Stage, Progress], None] | None,
) -> Outcome | None:
    made = stage.work(run)
    if made is None:
        return None
    task, settings = made
    if asked.steps is not None:
        settings = with_steps(settings, asked.steps)
    settings = changed(settings, {**by_stage[EVERY_STAGE], **by_stage[stage.name]})
    outcome = train(
        task,
        settings,
        run.stage_folder,
        resume=asked.resume,
        accept_changes=asked.accept_changes,
        on_progress=None if on_progress is None else lambda p: on_progress(stage, p),
    )
    if stage.finish is not None and _first_rank():
        stage.finish(run, task)
    return outcome


def _first_rank() -> bool:
    """Of the processes that torchrun started, one writes."""
    return os.environ.get("RANK", "0") == "0"


def _sort(recipe: Recipe, asked: Asked) -> tuple[Any, dict[str, dict[str, str]]]:
    """The user's changes: options, and settings by stage. A typing error is found here."""
    by_stage: dict[str, dict[str, str]] = {s.name: {} for s in recipe.stages}
    by_stage[EVERY_STAGE] = {}
    own = {}
    for key, text in asked.words.items():
        first, _, rest = key.partition(".")
        if rest and first in by_stage:
            by_stage[first][rest] = text
        else:
            own[key] = text
    for words in by_stage.values():
        changed(LoopSettings(steps=10**9), words)
    if own and recipe.options is None:
        raise SettingsError(
            f"recipe {recipe.name!r} has no options, so not {', '.join(own)}; settings of the "
            f"loop are {EVERY_STAGE}.NAME or STAGE.NAME"
        )
    return (changed(recipe.options, own) if own else recipe.options), by_stage


def _begin(recipe: Recipe, folder: Path, options: Any, asked: Asked) -> dict[str, Any]:
    path = folder / RECIPE_FILE
    ours = {} if options is None else json.loads(json.dumps(plain(options)))
    record = _read(folder)
    if record and _first_rank():
        if record.get("recipe") != recipe.name:
            raise CheckpointError(
                f"{folder} holds a run of recipe {record.get('recipe')!r}, not {recipe.name!r}: "
                "choose another folder"
            )
        if not asked.resume:
            raise CheckpointError(
                f"{folder} holds a run of recipe {recipe.name!r}: resume it, or choose another "
                "folder"
            )
        if not asked.accept_changes:
            checkpoint.compare(path, record["options"], ours)
    record = {"recipe": recipe.name, "stages": {}, **record, "options": ours}
    _write(folder, record)
    return record


def _read(folder: Path) -> dict[str, Any]:
    path = folder / RECIPE_FILE
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}): choose another folder") from error
    return dict(record)


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    if not _first_rank():
        return
    with replacing(folder / RECIPE_FILE) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _find(recipe: Recipe, name: str) -> Stage:
    for stage in recipe.stages:
        if stage.name == name:
            return stage
    names = ", ".join(s.name for s in recipe.stages)
    raise RecipeError(f"recipe {recipe.name!r} has no stage {name!r}; it has: {names}")
