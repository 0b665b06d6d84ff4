"""Masks that are chosen while a round trains: those that tighten it, and those that tell when round 0 may end."""

from dataclasses import replace
from typing import Any

import lightning as L

from lt_lightning.criteria import Evidence
from lt_lightning.early_bird import mask_distance
from lt_lightning.exchange.ticketfile import pack, unpack
from lt_lightning.fit import position
from lt_lightning.gradual import density_at
from lt_lightning.masks import Density, Masks
from lt_lightning.plan import Plan
from lt_lightning.processes import broadcast, is_writer
from lt_lightning.prunable import check_norms
from lt_lightning.pruning import gather_evidence
from lt_lightning.scopes import select
from lt_lightning.strategies import is_sharded


class Tightening:
    """The masks of one fit, as training goes on.

    Args:
        plan: of the lottery, with `gradual`.
        round: whose fit it is; it begins at the density of the round before and ends at its own.
    """

    def __init__(self, plan: Plan, round: int) -> None:
        self._plan, self._round = plan, round
        self._before, self._after = plan.schedule(round - 1), plan.schedule(round)
        self._now = self._before
        self._steps = 0

    @property
    def is_over(self) -> bool:
        """Whether the round's density is reached."""
        return self._now == self._after

    def check(self, trainer: L.Trainer) -> None:
        """Raise a ValueError if masks cannot tighten under this Trainer."""
        require_whole(trainer, "gradual")
        if not position.has_end(trainer):
            raise ValueError(
                "gradual prunes by how much of the fit is done, but this Trainer has no end: pass max_steps or "
                "max_epochs."
            )

    def begin(self, trainer: L.Trainer, masks: Masks) -> None:
        """Ask the criterion once, so that one that cannot be asked while training says so before it."""
        self._steps = trainer.global_step
        if is_writer() and not self.is_over:
            self._plan.criterion(evidence_now(self._plan, self._round, masks, trainer))

    def tighten(self, trainer: L.Trainer, masks: Masks) -> Masks | None:
        """The masks from now on, if others are due at the end of this batch. Call after each, on every process."""
        before, self._steps = self._steps, trainer.global_step
        if self.is_over:
            return None
        now = self._density(trainer)
        if now == self._now or not (now == self._after or self._is_time(trainer, before)):
            return None
        self._now = now
        chosen = choose_now(self._plan, self._round, masks, now, trainer)
        check_norms(chosen, trainer.lightning_module)
        return chosen

    def due_in(self, trainer: L.Trainer, most: int) -> int:
        """In how many steps `tighten` has to be called, if within the epoch and in at most so many."""
        if self.is_over:
            return most
        every = self._plan.gradual_every
        if every.unit == "steps":
            most = min(most, every.count - trainer.global_step % every.count)
        return next((n for n in range(1, most) if self._density(trainer, n) == self._after), most)

    def _density(self, trainer: L.Trainer, ahead: int = 0) -> Density:
        done = position.progress(trainer, ahead)
        return density_at(self._plan.gradual, done, self._before, self._after)  # type: ignore[arg-type]

    def _is_time(self, trainer: L.Trainer, before: int) -> bool:
        every = self._plan.gradual_every
        if every.unit == "epochs":
            return trainer.is_last_batch and (trainer.current_epoch + 1) % every.count == 0
        return trainer.global_step // every.count > before // every.count

    def require_end(self, trainer: L.Trainer, density: float) -> None:
        """Raise a RuntimeError if the fit has ended at another density than the round's."""
        if not self.is_over:
            raise RuntimeError(
                f"round {self._round} ended after {trainer.global_step} steps at a density of {density:.4g}, before "
                f"its masks had come to {self._after}: what ended it early (an EarlyStopping, max_time) must not do so "
                "before gradual is at its end. Take it out, or let gradual end sooner (prune.gradual.end=0.5)."
            )

    def state_dict(self, masks: Masks) -> dict[str, Any]:
        """What a checkpoint keeps: the masks of the moment, eight weights a byte."""
        return {"density": self._now, "masks": {name: pack(mask) for name, mask in masks.items()}}

    def load_state_dict(self, state: dict[str, Any], masks: Masks) -> Masks:
        """The masks that a checkpoint kept; the shapes are those of `masks`."""
        self._now = state["density"]
        return {name: unpack(state["masks"][name], list(mask.shape)) for name, mask in masks.items()}


DISTANCE = "mask_distance"
"""The metric that early_bird logs."""


class Settling:
    """The masks that would be drawn from round 0 after each of its epochs, and how far they moved.

    Args:
        plan: of the lottery, with `early_bird`.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._last: dict[str, Any] = {}
        self._distances: list[float] = []

    def check(self, trainer: L.Trainer) -> None:
        """Raise a ValueError if masks cannot be drawn under this Trainer."""
        require_whole(trainer, "early_bird")

    def begin(self, trainer: L.Trainer, masks: Masks) -> None:
        """As for `Tightening`."""
        if is_writer():
            self._plan.criterion(evidence_now(self._plan, 1, masks, trainer))

    def end_epoch(self, trainer: L.Trainer, masks: Masks) -> float | None:
        """How far the masks moved in this epoch; None after the first. Call on every process.

        Raises:
            ValueError: if the module logs a metric of the name under which the distances are recorded.
        """
        if not self._distances and DISTANCE in trainer.callback_metrics:
            raise ValueError(
                f"the module logs {DISTANCE!r}, which is the column of what early_bird measures: log it under another "
                "name, or leave early_bird out (prune=iterative)."
            )
        drawn = choose_now(self._plan, 1, masks, self._plan.schedule(1), trainer)
        last = {name: unpack(self._last[name], list(mask.shape)) for name, mask in masks.items() if self._last}
        self._last = {name: pack(mask) for name, mask in drawn.items()}
        if not last:
            return None
        self._distances.append(mask_distance(drawn, last))
        return self._distances[-1]

    @property
    def is_over(self) -> bool:
        """Whether round 0 ends here."""
        return self._plan.early_bird is not None and bool(self._plan.early_bird(self._distances))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the last masks, eight weights a byte, and all distances."""
        return {"masks": self._last, "distances": self._distances}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what a checkpoint kept."""
        self._last, self._distances = dict(state["masks"]), list(state["distances"])


def require_whole(trainer: L.Trainer, what: str) -> None:
    """Raise a ValueError if each process holds parts of the weights."""
    if is_sharded(trainer.strategy):
        raise ValueError(
            f"{what} chooses masks while a round trains, and saves them with it, which is not possible where weights "
            'lie in parts: train under strategy="ddp" or on one device.'
        )


def choose_now(plan: Plan, round: int, masks: Masks, density: Density, trainer: L.Trainer) -> Masks:
    """The masks that the weights of this moment would get in `round`: one process chooses for all."""
    packed: dict[str, Any] = {}
    if is_writer():
        scores = dict(plan.criterion(evidence_now(plan, round, masks, trainer, density)))
        packed = {name: pack(mask) for name, mask in select(scores, masks, density, plan.scope).items()}
    packed = broadcast(packed)
    return {name: unpack(packed[name], list(mask.shape)) for name, mask in masks.items()}


def evidence_now(plan: Plan, round: int, masks: Masks, trainer: L.Trainer, density: Density | None = None) -> Evidence:
    """The evidence in the middle of a fit, for the masks of `round`: weights, but no batches of the running epoch."""
    evidence = gather_evidence(plan, round - 1, masks, trainer)
    now = evidence.density if density is None else density
    return replace(evidence, density=now, batches=_no_batches, make_module=_no_batches)


def _no_batches() -> Any:
    raise ValueError(
        "this criterion asks for batches or for a copy of the module, and while a round trains (gradual, early_bird) "
        "there are neither: choose one that looks at the weights, such as prune/criterion=magnitude or movement."
    )
