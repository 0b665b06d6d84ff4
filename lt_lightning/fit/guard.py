"""Notices a Trainer without the ticket, or with a strategy that cannot be, before it trains.

Lightning asks the model for callbacks before every fit, which is the last chance to see that the ticket is missing.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from lt_lightning import strategies
from lt_lightning.fit import frozen


class Guard(Callback):
    """Refuses a fit by a Trainer that does not have the ticket.

    Args:
        ticket: the callback that has to be there, with a `name`.
    """

    def __init__(self, ticket: Any) -> None:
        self._ticket = ticket

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raise a RuntimeError that names the line to change."""
        if stage == "fit" and self._ticket not in trainer.callbacks:  # type: ignore[attr-defined]
            raise RuntimeError(
                f"this Trainer does not have the ticket of {self._ticket.name} among its callbacks, so nothing would "
                "be pruned. Make a new one inside the loop: trainer = L.Trainer(..., callbacks=[ticket])."
            )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the Trainer; the model brings a guard to its next call, which Lightning would announce as a clash."""
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
