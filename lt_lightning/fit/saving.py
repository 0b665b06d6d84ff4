"""When a fit is saved: rewind points in round 0, `last.ckpt` now and then or when a signal comes, the best and the end.

Everything is saved when all that belongs to a batch or an epoch is behind it (see `moments.py`).
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lt_lightning.disk import checkpoints
from lt_lightning.disk.atomic import link, remove
from lt_lightning.disk.rundir import MARK, ArmDirectory
from lt_lightning.fit import epoch_metrics, interruption, moments, points, position
from lt_lightning.fit.interruption import Interruption
from lt_lightning.plan import AUTO, Plan
from lt_lightning.processes import broadcast, gather, is_writer, wait
from lt_lightning.rewinds import RewindStep
from lt_lightning.sharded import share_buffers
from lt_lightning.strategies import is_sharded

SHARE = 1 / 40
"""The part of the time that saving `last.ckpt` may take if it is to be seldom enough."""


class Saving:
    """The checkpoints of one fit.

    Args:
        plan: of the lottery.
        files: of the fit.
        makes_points: whether it saves the rewind points.
        key: of the ticket's state in a checkpoint.
        write_curves: is called before `last.ckpt` is saved, so that both tell the same.
        mark: file name → what that checkpoint says of itself.
        mask_state: masks a module's state that is about to be written.
    """

    def __init__(
        self,
        plan: Plan,
        files: ArmDirectory,
        makes_points: bool,
        key: str,
        write_curves: Callable[[], None],
        mark: Callable[[str], dict[str, Any]],
        mask_state: Callable[[Any], Any],
    ) -> None:
        self._plan, self._files, self._makes_points, self._key = plan, files, makes_points, key
        self._write_curves, self._mark, self._mask_state = write_curves, mark, mask_state
        self._name = ""
        self._interruption = Interruption()
        self._together = 1
        self._saved_step = self._stepped = self._before = 0
        self._saved_at = self._saving_seconds = 0.0
        self._counters: dict[str, Any] = {}
        self._in_epoch = False
        self._trim: Callable[[dict[str, Any]], None] | None = None
        steps = [step.count for step in (plan.rewind_step, *plan.points) if step.unit == "steps"]
        self._point_steps = frozenset(steps if makes_points else ())

    def follow(self, interruption: Interruption, together: int) -> None:
        """Save as one of so many fits that are trained together, and leave it to them when signals are obeyed."""
        self._interruption, self._together = interruption, together

    def begin(self, trainer: L.Trainer) -> None:
        """Save the point at step 0, and from now on what is due. Call in `on_train_start`."""
        self._saved_step = self._stepped = self._before = trainer.global_step
        self._awaits_point = self._makes_points and not broadcast(self._plan.directory.rewind_point.exists())
        if self._makes_points:
            points.check(trainer, self._plan)
            self._save_point_if_due(trainer)
        self._end_at_point(trainer)
        self._saved_at = time.monotonic()
        moments.after_each_batch(trainer, partial(self._after_batch, trainer))
        moments.after_each_epoch(trainer, partial(self._after_epoch, trainer))
        _warn_of_requeue(trainer)
        self._interruption.note(alone=trainer.world_size == 1)
        if trainer.world_size > 1:
            interruption.agree_before_each_batch(trainer, self._interruption.agree)

    def release(self, trainer: L.Trainer) -> None:
        """Save nothing any more, and leave signals to others."""
        self._interruption.stop_noting()
        interruption.release(trainer)
        moments.release(trainer)

    def due_in(self, step: int) -> int | None:
        """In how many steps after `step` a save is due; 0: now, as a signal came; None: not within the epoch."""
        every = self._plan.every
        if self._interruption.signal is not None:
            return 0
        due = [point for point in self._point_steps if point > step]
        if isinstance(every, RewindStep) and every.unit == "steps":
            due.append(max(self._saved_step + every.count, step + 1))
        return min(due) - step if due else None

    def batch_ends(self, trainer: L.Trainer) -> None:
        """Take note of where a checkpoint of this batch would stand. Call in `on_train_batch_end`.

        Between two steps gradients may have gathered, which no checkpoint holds; at the last batch the epoch's end is
        the better moment.
        """
        self._before, self._stepped = self._stepped, trainer.global_step
        if self._stepped > self._before and not trainer.is_last_batch and self._is_due(trainer):
            self._counters, self._in_epoch = position.counters(trainer, in_epoch=True), True

    def epoch_ends(self, trainer: L.Trainer) -> None:
        """Take note of where a checkpoint of this epoch would stand. Call in `on_train_epoch_end`."""
        self._counters, self._in_epoch = position.counters(trainer, in_epoch=False), False

    def save_best(self, trainer: L.Trainer) -> None:
        """Save the weights of the best validation."""
        self._save(trainer, self._files.early_stop, checkpoints.trim_weights)

    def save_end(self, trainer: L.Trainer, trained: bool) -> None:
        """Save the end of the fit, whole and its weights alone; `trained` is whether anything was trained."""
        if trained:
            self._save(trainer, self._files.last, checkpoints.trim_last)
        if trained or not broadcast(self._files.final.exists()):
            self._save(trainer, self._files.final, checkpoints.trim_weights)

    def obey_signals(self) -> None:
        """Raise `Interrupted` if a signal came, now that all is saved."""
        if self._interruption.signal is not None:
            rank_zero_info(f"interrupted: {self._files.last} is saved, and the same program goes on from there")
        self._interruption.obey()

    def complete(self, trainer: L.Trainer, checkpoint: dict[str, Any], more: Mapping[str, Any]) -> None:
        """Complete the checkpoints that are saved here, with `more` too; those of others are left alone."""
        if self._trim is None:
            return
        checkpoint[MARK] = self._mark(self._name)
        if not self.saves_weights:
            checkpoint.update(more)
            checkpoint["should_stop"] = trainer.should_stop
            checkpoint["epoch_metrics"] = gather(epoch_metrics.state(trainer, self._in_epoch))
        if self._counters:
            position.put_counters(checkpoint, self._counters)

    @property
    def saves_weights(self) -> bool:
        """Whether weights and buffers are being saved alone, without the state of callbacks."""
        return self._trim is checkpoints.trim_weights

    def _is_due(self, trainer: L.Trainer) -> bool:
        return self._point_is_due(trainer, 0) or self._last_is_due(trainer)

    def _point_is_due(self, trainer: L.Trainer, epochs: int) -> bool:
        if not self._makes_points:
            return False
        awaited = self._awaits_point and points.reached(trainer, self._plan, epochs)
        return trainer.global_step == 0 or awaited or bool(self._further(trainer, epochs))

    def _further(self, trainer: L.Trainer, epochs: int) -> list[RewindStep]:
        return points.further(trainer, self._plan, epochs, self._before) if self._plan.points else []

    def _last_is_due(self, trainer: L.Trainer, epochs: int = 0) -> bool:
        """Whether it is time for `last.ckpt`; `epochs` is the number of finished epochs at the end of one."""
        every = self._plan.every
        if self._interruption.signal is not None:
            return True
        if every is None or isinstance(every, str):
            return every == AUTO and epochs > 0 and self._is_cheap(trainer)
        if every.unit == "epochs":
            return epochs > 0 and epochs % every.count == 0
        return trainer.global_step - self._saved_step >= every.count

    def _is_cheap(self, trainer: L.Trainer) -> bool:
        """Whether so much time has passed since the last save that another takes at most its share of it."""
        passed = time.monotonic() - self._saved_at
        return bool(trainer.strategy.broadcast(self._together * self._saving_seconds <= SHARE * passed))

    def _after_batch(self, trainer: L.Trainer) -> None:
        if self._counters:
            self._save_what_is_due(trainer, epochs=0)
        self._end_at_point(trainer)

    def _after_epoch(self, trainer: L.Trainer) -> None:
        self._save_what_is_due(trainer, position.epochs_run(trainer))

    def _save_what_is_due(self, trainer: L.Trainer, epochs: int) -> None:
        """`epochs` is the number of finished epochs at the end of one, else 0.

        The end of the fit is left to `save_end`: in a restarted fit the hooks of the last epoch's and of training's end
        would not run.
        """
        if self._makes_points:
            self._save_point_if_due(trainer, epochs)
        self._end_at_point(trainer, epochs)
        if not position.is_over(trainer):
            if self._last_is_due(trainer, epochs):
                self._save_last(trainer)
            self.obey_signals()
        self._counters = {}

    def _save_point_if_due(self, trainer: L.Trainer, epochs: int = 0) -> None:
        if not self._point_is_due(trainer, epochs):
            return
        path = self._plan.directory.point(trainer.global_step)
        if not broadcast(path.exists()):
            kept = [self._key, *points.rewound_keys(trainer)]
            self._save(trainer, path, partial(checkpoints.trim_point, callbacks=kept))
            self._require_readable(path)
        for step in self._further(trainer, epochs):
            name = points.path_of(self._plan.directory, step)
            if trainer.is_global_zero and name != path:
                link(path, name)
        if self._awaits_point and points.reached(trainer, self._plan, epochs):
            if trainer.is_global_zero:
                self._plan.directory.link_rewind_point(path)
            wait()  # others look at it when the fit ends, which may be now
            self._awaits_point = False

    def _require_readable(self, path: Path) -> None:
        try:
            checkpoints.require_readable(path)
        except ValueError:
            if is_writer():
                remove(path)  # so that the next start makes another
            raise

    def _end_at_point(self, trainer: L.Trainer, epochs: int = 0) -> None:
        """End round 0 where the next one starts, if it is to be no longer; the point may have been saved before."""
        if (
            self._makes_points
            and not self._plan.dense
            and not self._awaits_point
            and points.reached(trainer, self._plan, epochs)
        ):
            trainer.should_stop = True

    def _save_last(self, trainer: L.Trainer) -> None:
        start = time.monotonic()
        self._write_curves()
        self._save(trainer, self._files.last, checkpoints.trim_last)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        self._saving_seconds = self._saved_at - start

    def _save(self, trainer: L.Trainer, path: Path, trim: Callable[[dict[str, Any]], None]) -> None:
        if is_sharded(trainer.strategy):
            share_buffers(trainer.lightning_module)
        self._trim, self._name = trim, path.name
        try:
            checkpoints.save(trainer, path, partial(self._finish, trim))
        finally:
            self._trim = None

    def _finish(self, trim: Callable[[dict[str, Any]], None], checkpoint: dict[str, Any]) -> None:
        """Trim what is about to be written, and mask weights that a module has put there itself."""
        trim(checkpoint)
        for key in ("state_dict", "current_model_state"):
            if key in checkpoint:
                checkpoint[key] = self._mask_state(checkpoint[key])


def _warn_of_requeue(trainer: L.Trainer) -> None:
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        rank_zero_warn(
            "Lightning will not requeue this Slurm job: on SIGUSR1 and SIGTERM the ticket saves the step at hand and "
            "the program ends with 138 or 143. Let Slurm requeue it (sbatch --requeue), and pass "
            "Trainer(plugins=[SLURMEnvironment(auto_requeue=False)]) to say that you know."
        )
