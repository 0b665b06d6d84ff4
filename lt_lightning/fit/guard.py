"""Notices a Trainer without the ticket, or with a strategy that cannot be, before it trains.

Lightning asks the model for callbacks before every fit, which is the last chance to see that the ticket is missing; and
before every test, which may be another Trainer's.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from lt_lightning import strategies
from lt_lightning.fit import frozen


class Guard(Callback):
    """Refuse a fit by a Trainer that does not have the ticket; mask what such a Trainer tests, and notice the test.

    Args:
        ticket: the callback that has to be there, with a `name` and `show`.
    """

    def __init__(self, ticket: Any) -> None:
        self._ticket = ticket

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raise a RuntimeError that names the line to change; of a test, warn that it is not recorded."""
        if stage == "test" and self._ticket not in trainer.callbacks:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"{self._ticket.name}: this test is not recorded, as its Trainer does not have the ticket: test with "
                "the Trainer of the fit, or with L.Trainer(..., callbacks=[ticket])."
            )
        if stage == "fit" and self._ticket not in trainer.callbacks:  # type: ignore[attr-defined]
            raise RuntimeError(
                f"this Trainer does not have the ticket of {self._ticket.name} among its callbacks, so nothing would "
                "be pruned. Make a new one inside the loop: trainer = L.Trainer(..., callbacks=[ticket])."
            )

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let a validation by another Trainer see the ticket."""
        if trainer.state.fn != "fit":
            self._show(trainer, pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let a test by another Trainer see the ticket."""
        self._show(trainer, pl_module)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let predictions by another Trainer see the ticket."""
        self._show(trainer, pl_module)

    def _show(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._ticket not in trainer.callbacks:  # type: ignore[attr-defined]  # else it does so itself
            self._ticket.show(pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the Trainer; the model brings a guard to its next call, which Lightning would announce as a clash."""
        self._ticket.stop_showing()
        trainer.callbacks = [c for c in trainer.callbacks if c is not self]  # type: ignore[attr-defined]


def put_on(model: L.LightningModule, ticket: Any) -> None:
    """Let the model bring a guard to every Trainer, beside its own callbacks."""
    model.configure_callbacks = partial(_with_guard, model, ticket)  # type: ignore[method-assign]


def take_off(model: L.LightningModule) -> None:
    """Give the model its own callbacks back."""
    vars(model).pop("configure_callbacks", None)


def _with_guard(model: L.LightningModule, ticket: Any) -> list[Callback]:
    strategies.check(model.trainer.strategy, model.trainer.callbacks)  # type: ignore[attr-defined]  # before any setup
    if model.trainer.state.fn == "fit":
        frozen.note(model)
    configured = type(model).configure_callbacks(model)
    return [*(configured if isinstance(configured, Sequence) else [configured]), Guard(ticket)]
