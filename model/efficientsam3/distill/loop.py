"""One training loop for all stages, on Lightning Fabric: CPU, one GPU, or torchrun over many."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import CheckpointError, EfficientSam3Error
from ..weights import replacing
from . import checkpoint
from .logs import Board, Means, Progress, Report, Table, write_pictures
from .machine import Carried, Objective, Signals, TrainingError, make_fabric, only_run
from .optimiser import Ema, load_state, named_state
from .settings import LoopSettings, SettingsError
from .state import (
    Random,
    Undo,
    buffers_of,
    copy_in,
    digest,
    kept_random,
    seed_all,
    unshared,
)
from .task import Task

__all__ = ["LoopSettings", "Outcome", "Progress", "Stopped", "Task", "TrainingError", "train"]

WEIGHTS_FILE, REPORT_FILE = "weights.safetensors", "report.json"
PATIENCE = 3  # steps in a row whose loss is not finite

_log = logging.getLogger(__name__)


class Stopped(EfficientSam3Error):
    """Training was asked to stop; all is saved."""


@dataclass(frozen=True)
class Outcome:
    """A run that reached its last step.

    Args:
        steps: of the run. seconds: trained in all. skipped: steps without a finite loss.
        figures: of the last validation.
        weights: file of the module's whole state, averaged weights if the run has them.
    """

    steps: int
    seconds: float
    skipped: int
    figures: Mapping[str, float]
    weights: Path


def train(
    task: Task,
    settings: LoopSettings,
    folder: str | Path,
    *,
    resume: bool = False,
    accept_changes: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Train a task; afterwards its module has the resulting weights.

    The folder gets ``log.csv``, ``validation.csv``, ``pictures/``, ``checkpoints/``,
    ``report.json``, and at the end ``weights.safetensors``. A resumed run takes the same steps
    as one that was not interrupted, bit for bit on the same machine. Ctrl-C and SIGTERM save
    after the current step.

    Args:
        resume: go on from the newest checkpoint in the folder, if there is one.
        accept_changes: go on although settings differ from the checkpoint's.
        on_progress: called whenever a row is logged.

    Raises:
        Stopped: by Ctrl-C or SIGTERM.
        TrainingError: the loss was not finite in three steps in a row.
        CheckpointError: a checkpoint is damaged, of other settings, or cannot be written.
    """
    folder = Path(folder)
    with kept_random(), only_run(folder):
        run = _Run(task, settings, folder, resume, accept_changes, on_progress)
        return run.go()


class _Run:
    def __init__(
        self,
        task: Task,
        settings: LoopSettings,
        folder: Path,
        resume: bool,
        accept_changes: bool,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.task, self.settings, self.folder = task, settings, folder
        self.on_progress = on_progress
        self.fabric = make_fabric(settings)
        seed_all(settings.seed, self.fabric.global_rank)
        task.freeze(settings)
        trained = {n: p for n, p in task.module.named_parameters() if p.requires_grad}
        if not trained:
            raise SettingsError("nothing trains: no parameter of the module requires a gradient")
        groups = task.parameter_groups(settings)
        fused = settings.precision != "16-mixed"  # its scaler clips before a fused step only
        optimiser = torch.optim.AdamW(groups, settings.lr, settings.betas, fused=fused)
        self.model, self.optimiser = self.fabric.setup(Objective(task), optimiser)
        self.module = task.module
        task.start(self.fabric.device)

        # Moving to a device, or casting, may have replaced them.
        trained = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        self.trained = trained
        buffers = buffers_of(self.module)
        self.saved_tensors: dict[str, Tensor] = {**trained, **buffers}
        self.ema = None if settings.ema is None else Ema(self.saved_tensors, settings.ema)
        self.undo = Undo(buffers)

        self.step, self.skipped, self.in_a_row = 0, 0, 0
        self.seconds_before = 0.0
        self.means = Means()
        self.figures: dict[str, float] = {}
        self.progress: Progress | None = None
        self.identity = self._identity()
        self._find(resume, accept_changes)
        self._open_logs()

    # Where it begins ------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        frozen = [p for p in self.module.parameters() if not p.requires_grad]
        return {
            "settings": self.settings.deciding(),
            "task": {"kind": type(self.task).__name__, **self.task.describe()},
            "processes": self.fabric.world_size,
            "trained": list(self.trained),
            "frozen weights": digest(frozen),
        }

    def _find(self, resume: bool, accept_changes: bool) -> None:
        found = checkpoint.saved(self.folder)
        if not found:
            return
        newest = found[max(found)]
        if not resume:
            raise CheckpointError(
                f"{self.folder} holds a run at step {max(found)}: resume it, or choose another "
                "folder"
            )
        content = checkpoint.load(newest)
        if not accept_changes:
            checkpoint.compare(newest, content["identity"], self.identity)
        self._restore(newest, content)
        _log.info("resumed %s at step %d", self.folder, self.step)

    def _restore(self, path: Path, content: dict[str, Any]) -> None:
        copy_in(path, self.saved_tensors, content["module"])
        if self.ema is not None:  # a run that had no average begins it here
            copy_in(path, self.ema.average, content["ema"] or self.ema.live)
        load_state(self.module, self.optimiser.optimizer, content["optimiser"])
        self.fabric.strategy.precision.load_state_dict(content["scaler"])
        self.step, self.skipped = content["step"], content["skipped"]
        self.seconds_before = content["seconds"]
        self.means = Means(content["means"])
        states = content["random"]
        if len(states) == self.fabric.world_size:
            Random.unpacked(states[self.fabric.global_rank]).apply()
        else:  # another number of processes, accepted
            seed_all(self.settings.seed + self.step, self.fabric.global_rank)

    def _open_logs(self) -> None:
        self.log: Table | None = None
        self.board: Board | None = None
        if not self.fabric.is_global_zero:
            return
        self.log = Table(self.folder / "log.csv", self.step)
        self.validations = Table(self.folder / "validation.csv", self.step)
        self.figures = self.validations.last()
        self.report = Report(self.folder / REPORT_FILE, self.step)
        if self.settings.tensorboard:
            self.board = Board(self.folder / "tensorboard", self.step)

    # Going through it -----------------------------------------------------------------------

    def go(self) -> Outcome:
        s = self.settings
        self.began = self.last_save = self.last_log = time.perf_counter()
        self.saved_step = self.last_logged = self.step
        self.waited = 0.0
        batches = self.task.batches(
            self.step * s.accumulate, self.fabric.global_rank, self.fabric.world_size
        )
        self.task.train_mode()
        try:
            with Signals() as signals:
                if self.step:
                    self._look(new=False)
                while self.step < s.steps:
                    self._step(batches, signals)
                    self._look(new=True)
            return self._finish()
        finally:
            _close(batches)
            if self.board is not None:
                self.board.close()

    def _step(self, batches: Iterator[Any], signals: Signals) -> None:
        """One step of the optimiser, and what is due after it but looking."""
        s = self.settings
        rate = s.lr_at(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        self.undo.keep()
        try:
            bad, parts = self._gradients(batches)
        except Exception as error:
            self._rescue()
            if signals.received:  # workers that were told to end, too
                raise self._stopped(signals) from error
            raise
        late = self._late()
        finite, stop, late = self._agree(bad is None, signals.received is not None, late)
        if finite:
            self.optimiser.step()
            for part in parts:
                self.means.add(part)
            self.in_a_row = 0
        else:
            self.undo.back()
            self.skipped += 1
            self.in_a_row += 1
            bad = bad or "something on another rank"
            _log.warning("step %d skipped, not finite: %s", self.step, bad)
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema is not None and finite:
            self.ema.update(self.step)
        hopeless = self.in_a_row >= PATIENCE
        if _due(self.step, s.log_every, s.steps):
            self._report()
        if stop or late or hopeless or _due(self.step, s.save_every, s.steps):
            self._save()
        if hopeless:
            raise TrainingError(
                f"step {self.step - 1}, as {PATIENCE - 1} before it, was not finite in: {bad}. "
                "They were skipped, and all is saved: resume to go on after them; if it comes "
                "back, lower lr or clip, or use 32-true"
            )
        if stop and self.step < s.steps:
            raise self._stopped(signals)

    def _stopped(self, signals: Signals) -> Stopped:
        return Stopped(
            f"stopped by {signals.received or 'a signal'} at step {self.step} of "
            f"{self.settings.steps}; all is saved in {self.folder}: resume to go on"
        )

    def _gradients(self, batches: Iterator[Any]) -> tuple[str | None, list[dict[str, Tensor]]]:
        """Gradients of one step, clipped.

        Returns:
            What was not finite, None if all was; and the parts of each batch.
        """
        s, fabric = self.settings, self.fabric
        collected = []
        for number in range(s.accumulate):
            before = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                raise TrainingError(
                    f"the task's batches ended at step {self.step}; they must go on without end"
                ) from None
            self.waited += time.perf_counter() - before
            if fabric.device.type != "cpu":
                batch = fabric.to_device(batch)
            with fabric.no_backward_sync(self.model, enabled=number + 1 < s.accumulate):
                parts = self.model(Carried(batch))
                loss = parts.get("loss")
                if loss is None or not loss.requires_grad:
                    raise TrainingError(
                        'the task\'s loss must return a scalar "loss" that depends on what '
                        f"trains; it returned {', '.join(parts) or 'nothing'}"
                    )
                fabric.backward(loss / s.accumulate)
            collected.append({k: torch.as_tensor(v).detach() for k, v in parts.items()})
        # Not Fabric's clipping: it would spread one bad gradient over all before we can name it.
        fabric.strategy.precision.unscale_gradients(self.optimiser.optimizer)
        weights = [p for p in self.trained.values() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
        total = torch.stack([p["loss"].float() for p in collected]).sum()
        scaled = s.precision == "16-mixed"  # its scaler deals with gradients that overflow
        if bool(torch.isfinite(total if scaled else total + norm)):
            if s.clip is not None:
                nn.utils.clip_grads_with_norm_(weights, s.clip, norm)
            collected[-1]["gradient_norm"] = norm
            return None, collected
        return self._not_finite(collected), collected

    def _not_finite(self, collected: list[dict[str, Tensor]]) -> str:
        names = [k for parts in collected for k, v in parts.items() if not bool(v.isfinite().all())]
        if not names:
            names = [
                f"the gradient of {n}"
                for n, p in self.module.named_parameters()
                if p.grad is not None and not bool(p.grad.isfinite().all())
            ]
        names = list(dict.fromkeys(names))
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return (", ".join(names[:5]) or "the gradients' norm") + more

    def _agree(self, finite: bool, stop: bool, late: bool) -> tuple[bool, bool, bool]:
        """The same answer on all ranks: else one would wait for the others for ever."""
        if self.fabric.world_size == 1:
            return finite, stop, late
        flags = torch.tensor([not finite, stop, late], device=self.fabric.device).float()
        flags = torch.as_tensor(self.fabric.all_reduce(flags, reduce_op="sum"))
        bad, stop, late = (v > 0 for v in flags.tolist())
        return not bad, stop, late

    def _late(self) -> bool:
        minutes = self.settings.save_minutes
        return minutes > 0 and time.perf_counter() - self.last_save > 60 * minutes

    # What it leaves -------------------------------------------------------------------------

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.began

    def _save(self) -> None:
        seconds = self._seconds()
        content = {
            "identity": self.identity,
            "module": {k: v.detach() for k, v in self.saved_tensors.items()},
            "ema": None if self.ema is None else self.ema.average,
            "optimiser": named_state(self.module, self.optimiser.optimizer),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "skipped": self.skipped,
            "seconds": seconds,
            "means": self.means.pending(),
            "random": self._random_states(),
        }
        if self.fabric.is_global_zero:
            checkpoint.save(self.folder, self.step, content, self.settings.keep)
            self.report.update(self.step, seconds - self.seconds_before, skipped=self.skipped)
        self.last_save, self.saved_step = time.perf_counter(), self.step

    def _random_states(self) -> list[dict[str, Any]]:
        state = Random.now().packed()
        if self.fabric.world_size == 1:
            return [state]
        states: list[Any] = [None] * self.fabric.world_size
        torch.distributed.all_gather_object(states, state)
        return states

    def _rescue(self) -> None:
        """Something in the task failed: what was learned until now is kept."""
        if self.fabric.world_size == 1 and self.step > self.saved_step:  # saving needs all ranks
            self.undo.back(random_too=True)
            self._save()

    def _report(self) -> None:
        """A row of the log, and a call to who listens."""
        now = time.perf_counter()
        passed, steps = max(now - self.last_log, 1e-9), self.step - self.last_logged
        parts = self.means.take()
        rate = steps / passed
        progress = Progress(
            step=self.step,
            steps=self.settings.steps,
            loss=parts.pop("loss", None),
            parts=parts,
            lr=self.settings.lr_at(self.step - 1),
            rate=rate,
            eta=(self.settings.steps - self.step) / rate if rate else math.inf,
            seconds=self._seconds(),
            waited=min(1.0, self.waited / passed),
            skipped=self.skipped,
        )
        self.last_log, self.last_logged, self.waited = now, self.step, 0.0
        self.progress = progress
        if self.log is None:
            return
        row: dict[str, float | int] = {"step": self.step}
        if progress.loss is not None:
            row["loss"] = progress.loss
        row |= {"lr": progress.lr, **parts, "skipped": self.skipped}
        times = {"rate": rate, "waited": progress.waited, "seconds": progress.seconds}
        self.log.add({**row, **times})
        if self.board is not None:
            values = {k: v for k, v in row.items() if k != "step"}
            self.board.add("train", self.step, {**values, **times})
        if self.on_progress is not None:
            self.on_progress(progress)

    def _look(self, *, new: bool) -> None:
        """Validate and draw, if it is due; a run that was killed before it looked does it now."""
        s = self.settings
        validate = _due(self.step, s.validate_every, s.steps)
        draw = _due(self.step, s.picture_every, s.steps) and s.picture_every > 0
        if not (validate or draw):
            return
        if self.fabric.is_global_zero and (new or not self.validations.has(self.step)):
            before = time.perf_counter()
            self.undo.keep()
            try:
                with self._in_use():
                    if validate:
                        self._validate()
                    if draw:
                        pictures = self.task.pictures(self.module)
                        write_pictures(self.folder, self.step, pictures)
            except Exception:
                self._rescue()
                raise
            self.last_log += time.perf_counter() - before  # no part of the rate
        self.fabric.barrier()

    def _validate(self) -> None:
        self.figures = {k: float(v) for k, v in self.task.validate(self.module).items()}
        if not self.figures:
            return
        self.validations.add({"step": self.step, **self.figures})
        if self.board is not None:
            self.board.add("validation", self.step, self.figures)
        if self.on_progress is not None and self.progress is not None:
            self.on_progress(dataclasses.replace(self.progress, figures=self.figures))

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """The module as its users will have it; afterwards as it was."""
        average = contextlib.nullcontext() if self.ema is None else self.ema.applied()
        with kept_random(), torch.no_grad(), self.fabric.autocast(), average:
            self.module.eval()
            try:
                yield
            finally:
                self.task.train_mode()

    def _finish(self) -> Outcome:
        if self.ema is not None:
            self.ema.store()
        self.module.eval()
        path, seconds = self.folder / WEIGHTS_FILE, self._seconds()
        if self.fabric.is_global_zero:
            with replacing(path) as temporary:
                save_file(unshared(self.module.state_dict()), temporary, {"format": "pt"})
            self.report.update(
                self.step,
                seconds - self.seconds_before,
                finished=True,
                seconds=round(seconds, 3),
                skipped=self.skipped,
                figures=self.figures,
            )
        self.fabric.barrier()
        return Outcome(self.step, seconds, self.skipped, self.figures, path)


def _due(step: int, every: int, steps: int) -> bool:
    return step == steps or (every > 0 and step % every == 0)


def _close(batches: Iterator[Any]) -> None:
    close = getattr(batches, "close", None)
    if close is not None:
        close()
