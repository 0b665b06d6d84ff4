"""What a fit tells about itself while it runs: see `disk/liveness.py` for the file."""

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from lt_lightning.disk import liveness
from lt_lightning.fit import hooks
from lt_lightning.processes import is_writer

EVERY = 10.0
"""Seconds between two signs of life, at least."""


def add_to(trainer: L.Trainer, ticket: Any) -> "Pulse":
    """Let a Trainer tell how far the fit of a `Ticket` is, or the test after it."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    found = next((each for each in callbacks if isinstance(each, Pulse)), None)
    if found is None:
        found = Pulse(ticket)
        trainer.callbacks = [*callbacks, found]  # type: ignore[attr-defined]
    return found


class Pulse(Callback):
    """Keep `state.json` up to date, at most every `EVERY` seconds: a step costs one look at the clock."""

    def __init__(self, ticket: Any) -> None:
        self._ticket = ticket
        self._next = 0.0
        hooks.leave_out_empty(self)
        self._first: tuple[float, int] | None = None
        """When training began, and at which step."""

    @property
    def _path(self) -> Path | None:
        directory = self._ticket.plan.directory
        return directory.state if is_writer() and not directory.is_scratch else None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell which fit begins."""
        ticket, self._first = self._ticket, None
        about = {"round": ticket.round, "arm": ticket.arm, "density": ticket.density}  # in all processes: it may count
        if self._path is not None:
            done = sum(ticket.plan.directory.arm(*fit).done.exists() for fit in ticket.plan.arms)
            self._tell(**about, fits_done=done, step=None, steps=None, state="running", error=None)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell where training begins, and where it will end."""
        self._first = time.monotonic(), trainer.global_step
        self._tell(step=trainer.global_step, steps=steps(trainer))

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Give a sign of life now and then."""
        self.beat(trainer)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Give a sign of life now and then."""
        self.beat(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell the last step; what follows, such as drawing the next ticket, may take its time."""
        self._tell(**self._progress(trainer))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give a sign of life at the end."""
        self._tell()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Tell why the fit, or the test, has ended: in the lottery nobody hears of it."""
        liveness.tell_end(self._path, exception)

    def beat(self, trainer: L.Trainer) -> None:
        """Tell the step, now and then. The ticket calls it after each batch: a hook of its own would take longer."""
        if time.monotonic() >= self._next:
            self._tell(**self._progress(trainer))

    def _progress(self, trainer: L.Trainer) -> dict[str, Any]:
        if self._first is None or trainer.state.fn != "fit":
            return {}
        (began, first), step = self._first, trainer.global_step
        pace = {"seconds_per_step": (time.monotonic() - began) / (step - first)} if step > first else {}
        return {"step": step} | pace

    def _tell(self, **news: Any) -> None:
        self._next = time.monotonic() + EVERY
        liveness.tell(self._path, **news)


def steps(trainer: L.Trainer) -> int | None:
    """The step at which a fit ends; None where it has no fixed end, or none that Lightning can tell."""
    try:
        total = trainer.estimated_stepping_batches
    except Exception:  # such as an accumulation of gradients that changes from epoch to epoch
        return None
    return int(total) if 0 <= total < float("inf") else None
