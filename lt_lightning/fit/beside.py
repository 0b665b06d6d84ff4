"""What else a Trainer has, and would carry an earlier round into this one: used callbacks, an open run of W&B."""

import weakref
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, ModelPruning
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.model_helpers import is_overridden

from lt_lightning.twins import twins


class _Seen(NamedTuple):
    """In which fit something took part first, and the state that it had before."""

    fit: str
    ticket: "weakref.ref[Any]"
    state: str = ""


_callbacks: "weakref.WeakKeyDictionary[Any, _Seen]" = weakref.WeakKeyDictionary()

_runs: "weakref.WeakKeyDictionary[Any, _Seen]" = weakref.WeakKeyDictionary()


def check(trainer: L.Trainer, ticket: Any, resumes: bool) -> None:
    """Refuse what an earlier round has left on this Trainer. Call in `setup`, before anything is trained.

    Args:
        trainer: of the fit.
        ticket: with a `name`.
        resumes: whether callbacks are given the state that this very fit has saved.

    Raises:
        ValueError: with the line to change.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, twins(ModelPruning)):
            raise ValueError(
                f"{type(callback).__name__} prunes weights of which the ticket does not know: leave it out of the "
                "callbacks, as the ticket prunes (lottery(..., schedule=...); prune.schedule on the command line)."
            )
        if callback is not ticket and _keeps_state(callback):
            _check_callback(callback, ticket, resumes)
    for logger in trainer.loggers:
        run = getattr(logger, "_experiment", None) if isinstance(logger, twins(WandbLogger)) else None
        if run is not None and not getattr(run, "disabled", False):
            _check_run(run, ticket)


def _keeps_state(callback: Any) -> bool:
    return is_overridden("state_dict", callback, twins(Callback)[-1]) and is_overridden(
        "state_dict", callback, Callback
    )


def _check_callback(callback: Any, ticket: Any, resumes: bool) -> None:
    try:
        state = repr(callback.state_dict())
        seen = _callbacks.get(callback)
    except Exception:  # one of the user's own that has no state before it trains, or cannot be told from others
        return
    if seen is None:
        _callbacks[callback] = _Seen(ticket.name, weakref.ref(ticket), state)
    is_used = _was_used(callback) if seen is None else seen.ticket() is not ticket and seen.state != state
    if resumes or not is_used:
        return
    kind = type(callback).__name__
    raise ValueError(
        f"this {kind} has the state of an earlier fit, so that {ticket.name} would go on with it, and may end at once: "
        f"make a new one inside the loop: L.Trainer(..., callbacks=[{kind}(...), ticket])."
    )


def _was_used(callback: Any) -> bool:
    """Whether a callback of Lightning's was part of a fit outside of any lottery."""
    if isinstance(callback, twins(EarlyStopping)):
        return bool(callback.wait_count or callback.stopped_epoch or abs(float(callback.best_score)) < float("inf"))
    return isinstance(callback, twins(ModelCheckpoint)) and bool(callback.best_model_path)


def _check_run(run: Any, ticket: Any) -> None:
    seen = _runs.setdefault(run, _Seen(ticket.name, weakref.ref(ticket)))
    if seen.ticket() is ticket:
        return
    raise ValueError(
        f"the W&B run {run.name or run.id} is that of {seen.fit}, and {ticket.name} would be logged into it: write "
        "wandb.finish() at the end of the loop's body, and make the WandbLogger(...) inside the loop."
    )
