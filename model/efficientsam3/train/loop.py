"""The training loop of all tasks, on Lightning Fabric: CPU, one GPU, or torchrun over many."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..io.tensor_files import replacing_tensors
from . import checkpoint
from .errors import SettingsError, TrainingError, TrainingStopped
from .fabric import (
    LossModule,
    StopSignals,
    UncastBatch,
    lock_folder,
    make_fabric,
    of_all_ranks,
    without_hints_of_ddp,
)
from .logs import (
    CsvLog,
    Progress,
    RunningMeans,
    RunReport,
    join_values,
    mean_values,
    tensorboard_logger,
    write_pictures,
)
from .optim import Ema, load_named_state, make_optimizer, named_state
from .settings import LoopSettings
from .state import (
    RandomState,
    StepSnapshot,
    copy_tensors,
    persistent_buffers,
    preserve_random_state,
    seed_generators,
    separate_memory,
    weights_checksum,
)
from .task import Task

WEIGHTS_FILE = "weights.safetensors"
REPORT_FILE = "report.json"
LOG_FILE, VALIDATION_FILE = "log.csv", "validation.csv"
# Training stops after this many steps in a row whose loss or gradients are not finite.
MAX_SKIPS_IN_A_ROW = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """What ``train`` returns when a run has reached its last step.

    Attributes:
        steps: Steps of the run.
        seconds: Seconds trained, all sessions together.
        skipped: Steps that were skipped because the loss or a gradient was not finite.
        metrics: Metrics of the last validation.
        weights: File of the task's result; averaged weights if the run averages them.
    """

    steps: int
    seconds: float
    skipped: int
    metrics: Mapping[str, float]
    weights: Path


def train(
    task: Task,
    settings: LoopSettings,
    folder: str | Path,
    *,
    restart: bool = False,
    accept_changes: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainingResult:
    """Train a task's module; afterwards it has the resulting weights.

    A run in a folder is continued from its newest checkpoint. It then takes the same steps as a run
    that was not interrupted, bit for bit on the same machine. Ctrl-C and SIGTERM save after the
    current step. The folder gets ``log.csv``, ``validation.csv``, ``pictures/``, ``checkpoints/``,
    ``report.json``, and at the end ``weights.safetensors``.

    Args:
        task: What to train.
        settings: How to train it.
        folder: Folder of the run; it is created if it is missing.
        restart: Delete the run in the folder, and start again.
        accept_changes: Continue although settings or the task differ from the checkpoint's.
        on_progress: Called whenever a row is logged, and after each validation.

    Returns:
        Where the weights are, and what the run took.

    Raises:
        TrainingStopped: Ctrl-C or SIGTERM stopped the run.
        TrainingError: The loss was not finite in three steps in a row; batches ended; another
            process trains in the folder.
        SettingsError: Nothing trains, or the settings do not fit the module or the machine.
        CheckpointError: A checkpoint is damaged, of other settings, or cannot be written.
    """
    folder = Path(folder)
    with preserve_random_state(), lock_folder(folder):
        run = _TrainingRun(task, settings, folder, restart, accept_changes, on_progress)
        return run.run()


class _TrainingRun:
    def __init__(
        self,
        task: Task,
        settings: LoopSettings,
        folder: Path,
        restart: bool,
        accept_changes: bool,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.task, self.settings, self.folder = task, settings, folder
        self.on_progress = on_progress
        self.fabric = make_fabric(settings)
        seed_generators(settings.seed, self.fabric.global_rank)
        task.freeze(settings)
        if not any(p.requires_grad for p in task.module.parameters()):
            raise SettingsError("nothing trains: no parameter of the module requires a gradient")
        groups = task.parameter_groups(settings)
        optimizer = make_optimizer(groups, settings)
        self.model, self.optimizer = self.fabric.setup(LossModule(task), optimizer)
        self.module = task.module
        task.start(self.fabric.device)

        # Listed only now: moving to a device, or casting, may have replaced the parameters.
        self.trained = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        buffers = persistent_buffers(self.module)
        self.saved_tensors: dict[str, Tensor] = {**self.trained, **buffers}
        self.ema = None if settings.ema is None else Ema(self.saved_tensors, settings.ema)
        self.snapshot = StepSnapshot(buffers)

        self.step, self.skipped, self.skipped_in_a_row = 0, 0, 0
        self.earlier_seconds = 0.0
        self.means = RunningMeans()
        self.metrics: dict[str, float] = {}
        self.progress: Progress | None = None
        self.identity = self._identity()
        if restart and self.fabric.is_global_zero:
            _delete_run(folder)
        self.fabric.barrier()
        self._resume(accept_changes)
        self._open_logs()

    # Where it starts ------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """What decides the numbers of the run, as plain values."""
        frozen = [p for p in self.module.parameters() if not p.requires_grad]
        return {
            "settings": self.settings.identity(),
            "task": {"kind": type(self.task).__name__, **self.task.describe()},
            "processes": self.fabric.world_size,
            "trained": list(self.trained),
            "frozen weights": weights_checksum(frozen),
        }

    def _resume(self, accept_changes: bool) -> None:
        """Restore the newest checkpoint of the folder, if there is one."""
        found = checkpoint.list_checkpoints(self.folder)
        if not found:
            return
        path = found[max(found)]
        content = checkpoint.load_checkpoint(path)
        if not accept_changes:
            checkpoint.require_same(path, content["identity"], self.identity)
        copy_tensors(path, self.saved_tensors, content["module"])
        if self.ema is not None:  # without an average in the checkpoint it starts here
            copy_tensors(path, self.ema.average, content["ema"] or self.ema.weights)
        load_named_state(self.module, self.optimizer.optimizer, content["optimizer"])
        self.fabric.strategy.precision.load_state_dict(content["scaler"])
        self.step, self.skipped = content["step"], content["skipped"]
        self.earlier_seconds = content["seconds"]
        # The values of all ranks; one of them goes on with these.
        self.means = RunningMeans(content["means"] if self.fabric.is_global_zero else None)
        states = content["random"]
        if len(states) == self.fabric.world_size:
            RandomState.from_dict(states[self.fabric.global_rank]).restore()
        else:  # another number of processes, which accept_changes allows
            seed_generators(self.settings.seed + self.step, self.fabric.global_rank)
        _log.info("continuing %s at step %d", self.folder, self.step)

    def _open_logs(self) -> None:
        self.log: CsvLog | None = None
        self.tensorboard: Any = None
        if not self.fabric.is_global_zero:
            return
        self.log = CsvLog(self.folder / LOG_FILE, self.step)
        self.validations = CsvLog(self.folder / VALIDATION_FILE, self.step)
        self.metrics = self.validations.last()
        self.report = RunReport(self.folder / REPORT_FILE, self.step)
        if self.settings.tensorboard:
            self.tensorboard = tensorboard_logger(self.folder / "tensorboard", self.step)

    # Steps ----------------------------------------------------------------------------------

    def run(self) -> TrainingResult:
        """Take the remaining steps."""
        s = self.settings
        self.began = self.last_save = self.last_log = time.perf_counter()
        self.saved_step = self.logged_step = self.step
        self.data_seconds = 0.0
        batches = self.task.batches(
            self.step * s.accumulate, self.fabric.global_rank, self.fabric.world_size
        )
        self.task.train_mode()
        try:
            with StopSignals() as signals, without_hints_of_ddp():
                if self.step or s.validate_first:
                    self._evaluate(started=True)
                while self.step < s.steps:
                    self._take_step(batches, signals)
                    self._evaluate()
            return self._finish()
        finally:
            if hasattr(batches, "close"):
                batches.close()
            if self.tensorboard is not None:
                self.tensorboard.finalize("finished")

    def _take_step(self, batches: Iterator[Any], signals: StopSignals) -> None:
        """Take one step of the optimizer, then log and save if they are due."""
        s = self.settings
        lr = s.lr_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("scale", 1.0)
        self.snapshot.take()
        try:
            not_finite, collected = self._gradients(batches)
        except Exception as error:
            self._save_before_failing()
            if signals.received:  # it may have stopped workers, too
                raise self._stopped(signals) from error
            raise
        failed, stop, overdue = self._agree(
            not_finite is not None, signals.received is not None, self._save_is_overdue()
        )
        if failed:
            self.snapshot.restore()
            self.skipped += 1
            self.skipped_in_a_row += 1
            not_finite = not_finite or "something on another rank"
            _log.warning("step %d skipped, not finite: %s", self.step, not_finite)
        else:
            self.optimizer.step()
            for scalars in collected:
                self.means.add(scalars)
            self.skipped_in_a_row = 0
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema is not None and not failed:
            self.ema.update(self.step)
        give_up = self.skipped_in_a_row >= MAX_SKIPS_IN_A_ROW
        if _is_due(self.step, s.log_every, s.steps):
            self._log_progress()
        if stop or overdue or give_up or _is_due(self.step, s.save_every, s.steps):
            self._save()
        if give_up:
            raise TrainingError(
                f"step {self.step - 1}, as {MAX_SKIPS_IN_A_ROW - 1} before it, was not finite in: "
                f"{not_finite}. They were skipped, and everything is saved: run the same command "
                "again to continue after them; if it happens again, lower lr or clip, or use "
                "precision 32-true"
            )
        if stop and self.step < s.steps:
            raise self._stopped(signals)

    def _stopped(self, signals: StopSignals) -> TrainingStopped:
        return TrainingStopped(
            f"stopped by {signals.received or 'a signal'} at step {self.step} of "
            f"{self.settings.steps}; everything is saved in {self.folder}: run the same command "
            "again to continue"
        )

    def _gradients(self, batches: Iterator[Any]) -> tuple[str | None, list[dict[str, Tensor]]]:
        """Compute the clipped gradients of one step.

        Returns:
            The names of what was not finite, None if all was; and the scalars of each batch.
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
            self.data_seconds += time.perf_counter() - before
            if fabric.device.type != "cpu":
                batch = fabric.to_device(batch)
            with fabric.no_backward_sync(self.model, enabled=number + 1 < s.accumulate):
                scalars = self.model(UncastBatch(batch))
                loss = scalars.get("loss")
                if loss is None or not loss.requires_grad:
                    raise TrainingError(
                        'the task\'s loss must return a scalar "loss" that depends on what '
                        f"trains; it returned {', '.join(scalars) or 'nothing'}"
                    )
                fabric.backward(loss / s.accumulate)
            collected.append({k: torch.as_tensor(v).detach() for k, v in scalars.items()})
        # Fabric's own clipping would spread one bad gradient over all before it can be named.
        fabric.strategy.precision.unscale_gradients(self.optimizer.optimizer)
        weights = [p for p in self.trained.values() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
        total = torch.stack([c["loss"].float() for c in collected]).sum()
        scaled = s.precision == "16-mixed"  # its scaler deals with gradients that overflow
        if bool(torch.isfinite(total if scaled else total + norm)):
            if s.clip is not None:
                nn.utils.clip_grads_with_norm_(weights, s.clip, norm)
            collected[-1]["gradient_norm"] = norm
            return None, collected
        return self._name_not_finite(collected), collected

    def _name_not_finite(self, collected: list[dict[str, Tensor]]) -> str:
        names = [k for c in collected for k, v in c.items() if not bool(v.isfinite().all())]
        if not names:
            names = [
                f"the gradient of {n}"
                for n, p in self.trained.items()
                if p.grad is not None and not bool(p.grad.isfinite().all())
            ]
        names = list(dict.fromkeys(names))
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return (", ".join(names[:5]) or "the norm of the gradients") + more

    def _agree(self, *flags: bool) -> list[bool]:
        """Which flags are set on any rank. Ranks that decided differently would wait for ever."""
        if self.fabric.world_size == 1:
            return list(flags)
        values = torch.tensor(flags, device=self.fabric.device).float()
        values = torch.as_tensor(self.fabric.all_reduce(values, reduce_op="sum"))
        return [v > 0 for v in values.tolist()]

    def _save_is_overdue(self) -> bool:
        minutes = self.settings.save_minutes
        return minutes > 0 and time.perf_counter() - self.last_save > 60 * minutes

    # What it leaves -------------------------------------------------------------------------

    def _session_seconds(self) -> float:
        return time.perf_counter() - self.began

    def _save(self) -> None:
        seconds = self._session_seconds()
        content = {
            "identity": self.identity,
            "module": {k: v.detach() for k, v in self.saved_tensors.items()},
            "ema": None if self.ema is None else self.ema.average,
            "optimizer": named_state(self.module, self.optimizer.optimizer),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "skipped": self.skipped,
            "seconds": self.earlier_seconds + seconds,
            "means": join_values(of_all_ranks(self.means.state())),
            "random": of_all_ranks(RandomState.capture().to_dict()),
        }
        if self.fabric.is_global_zero:
            checkpoint.save_checkpoint(self.folder, self.step, content, self.settings.keep)
            self.report.update(self.step, seconds, skipped=self.skipped)
        self.last_save, self.saved_step = time.perf_counter(), self.step

    def _save_before_failing(self) -> None:
        """Save the last complete step before an error of the task ends the run."""
        if self.fabric.world_size == 1 and self.step > self.saved_step:  # saving needs all ranks
            self.snapshot.restore(random_state=True)
            self._save()

    def _log_progress(self) -> None:
        now = time.perf_counter()
        elapsed, steps = max(now - self.last_log, 1e-9), self.step - self.logged_step
        means = mean_values(of_all_ranks(self.means.take()))
        loss = means.pop("loss", None)
        rate = steps / elapsed
        self.progress = progress = Progress(
            step=self.step,
            steps=self.settings.steps,
            loss=loss,
            values=means,
            lr=self.settings.lr_at(self.step - 1),
            rate=rate,
            eta=(self.settings.steps - self.step) / rate if rate else math.inf,
            seconds=self.earlier_seconds + self._session_seconds(),
            data_wait=min(1.0, self.data_seconds / elapsed),
            skipped=self.skipped,
        )
        self.last_log, self.logged_step, self.data_seconds = now, self.step, 0.0
        if self.log is None:
            return
        row: dict[str, float] = {} if loss is None else {"loss": loss}
        row |= {"lr": progress.lr, **means, "skipped": self.skipped, "rate": rate}
        row |= {"data_wait": progress.data_wait, "seconds": progress.seconds}
        self._write_row(self.log, "train", row)
        if self.on_progress is not None:
            self.on_progress(progress)

    def _write_row(self, log: CsvLog, name: str, row: Mapping[str, float]) -> None:
        log.add({"step": self.step, **row})
        if self.tensorboard is not None:
            self.tensorboard.log_metrics({f"{name}/{k}": v for k, v in row.items()}, self.step)

    def _evaluate(self, *, started: bool = False) -> None:
        """Validate and draw pictures, if they are due.

        Args:
            started: The session starts at this step; what an earlier one did is not repeated.
        """
        s = self.settings
        validate = not self.step or _is_due(self.step, s.validate_every, s.steps)
        draw = s.picture_every > 0 and _is_due(self.step, s.picture_every, s.steps)
        if not (validate or draw):
            return
        if self.fabric.is_global_zero and not (started and self.validations.has(self.step)):
            before = time.perf_counter()
            self.snapshot.take()
            try:
                with self._inference():
                    if validate:
                        self._validate()
                    if draw:
                        pictures = self.task.pictures(self.module)
                        write_pictures(self.folder, self.step, pictures)
            except Exception:
                self._save_before_failing()
                raise
            self.last_log += time.perf_counter() - before  # not counted in the rate
        self.fabric.barrier()

    def _validate(self) -> None:
        self.metrics = {k: float(v) for k, v in self.task.validate(self.module).items()}
        if not self.metrics:
            return
        self._write_row(self.validations, "validation", self.metrics)
        if self.on_progress is not None:
            progress = self.progress or Progress(self.step, self.settings.steps)
            self.on_progress(dataclasses.replace(progress, metrics=self.metrics))

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """The module as its users will have it; training continues as before the block."""
        average = contextlib.nullcontext() if self.ema is None else self.ema.applied()
        with preserve_random_state(), torch.no_grad(), self.fabric.autocast(), average:
            self.module.eval()
            try:
                yield
            finally:
                self.task.train_mode()

    def _finish(self) -> TrainingResult:
        if self.ema is not None:
            self.ema.copy_to_weights()
        self.module.eval()
        path, session = self.folder / WEIGHTS_FILE, self._session_seconds()
        seconds = self.earlier_seconds + session
        if self.fabric.is_global_zero:
            with replacing_tensors(path) as temporary:
                save_file(separate_memory(self.task.result()), temporary, {"format": "pt"})
            self.report.update(
                self.step,
                session,
                finished=True,
                seconds=round(seconds, 3),
                skipped=self.skipped,
                metrics=self.metrics,
            )
        self.fabric.barrier()
        return TrainingResult(self.step, seconds, self.skipped, self.metrics, path)


def _is_due(step: int, every: int, steps: int) -> bool:
    return step == steps or (every > 0 and step % every == 0)


def _delete_run(folder: Path) -> None:
    for name in (checkpoint.FOLDER, "pictures", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (WEIGHTS_FILE, REPORT_FILE, LOG_FILE, VALIDATION_FILE):
        (folder / name).unlink(missing_ok=True)
