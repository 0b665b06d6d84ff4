"""The learning rates of the last steps: what a scheduler sets after the last step is for a step that never comes."""

from typing import Any

import lightning as L
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

Rates = list[list[float | None]]
"""For each optimizer the learning rate of each of its parameter groups; None where it has none."""


class LearningRates:
    """The learning rates with which the optimizers of a fit took their last steps."""

    def __init__(self) -> None:
        self._last: dict[int, list[Any]] = {}
        self._handle: Any = None

    def begin(self, trainer: L.Trainer) -> None:
        """Take note of every step from now on: of any optimizer that shares its groups with one of the Trainer's."""
        self.release()

        def note(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            for number, each in enumerate(trainer.optimizers):
                if each.param_groups is optimizer.param_groups:  # as those of wrappers, which have no hooks
                    self._last[number] = [_copy(group.get("lr")) for group in each.param_groups]

        self._handle = register_optimizer_step_post_hook(note)

    def release(self) -> None:
        """Take note of no further step."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def state(self, trainer: L.Trainer) -> Rates:
        """What a checkpoint keeps; of an optimizer that has taken no step, its learning rates now."""
        now = [[_copy(group.get("lr")) for group in each.param_groups] for each in trainer.optimizers]
        last = (self._last.get(number, rates) for number, rates in enumerate(now))
        pairs = (rates if len(rates) == len(others) else others for rates, others in zip(last, now, strict=True))
        return [[None if rate is None else float(rate) for rate in rates] for rates in pairs]

    def load(self, state: Rates) -> None:
        """Go on from what a checkpoint of the same fit kept."""
        self._last = dict(enumerate(state))


def hold(trainer: L.Trainer) -> None:
    """Hold the learning rates where they are, whatever the schedulers would do.

    A module that steps its schedulers itself finds them, and nothing comes of it.
    """
    if trainer.lightning_module.automatic_optimization:
        trainer.strategy.lr_scheduler_configs = []
    for config in trainer.lr_scheduler_configs:
        scheduler: Any = config.scheduler
        scheduler.step = _nothing


def _nothing(*arguments: Any, **options: Any) -> None:
    """The step of a scheduler that is held."""


def _copy(rate: Any) -> Any:
    """A learning rate that no scheduler changes any more; a tensor is changed in place."""
    return rate.detach().clone() if isinstance(rate, Tensor) else rate
