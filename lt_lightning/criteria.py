"""How good each weight is: a criterion scores every prunable weight, and the higher ones are kept.

A criterion is one function of the evidence. Yours is as good as ours:

>>> def largest_at_init(evidence):
...     return {name: weight.abs() for name, weight in evidence.initial.items()}
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from lt_lightning.masks import Masks, Scores, Weights
from lt_lightning.seeding import generator
from lt_lightning.sharded import spread


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a criterion may look at; each part is made only when asked for.

    Args:
        round: the round that has just been trained.
        masks: the masks it was trained under, on the CPU.
        seed: of the experiment; with the round it seeds `generator`.
        read_initial: makes `initial`.
        read_point: makes `point`.
        read_trained: makes `trained`.
        model: `model(weights, *inputs)` runs the module's forward with these weights in place of its own.
        batches: `batches()` iterates over training batches, on the module's device.
    """

    round: int
    masks: Masks
    seed: int
    read_initial: Callable[[], Weights]
    read_point: Callable[[], Weights]
    read_trained: Callable[[], Weights]
    model: Callable[..., Any]
    batches: Callable[[], Iterator[Any]]

    @cached_property
    def initial(self) -> Weights:
        """The prunable weights at step 0, on the CPU."""
        return self.read_initial()

    @cached_property
    def point(self) -> Weights:
        """The prunable weights at the rewind point, on the CPU."""
        return self.read_point()

    @cached_property
    def trained(self) -> Weights:
        """The prunable weights after training, on the CPU."""
        return self.read_trained()

    @cached_property
    def generator(self) -> torch.Generator:
        """A CPU generator seeded by (seed, round)."""
        return generator(self.seed, "criterion", self.round)


Criterion = Callable[[Evidence], Scores]
"""Evidence → scores."""


def magnitude(evidence: Evidence) -> Scores:
    """|w| after training: keep the largest weights.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), section 2; `large_final` in Zhou et al. 2019 (1905.01067).
    """
    return {name: weight.abs() for name, weight in evidence.trained.items()}


def random(evidence: Evidence) -> Scores:
    """Uniform noise in [0, 1): keep any weights. The same noise on any number of processes.

    Source: Zhou et al. 2019 (arXiv 1905.01067), section 2, `random`.
    """
    draws = evidence.generator
    return {name: spread(torch.rand(mask.shape, generator=draws), mask) for name, mask in evidence.masks.items()}


def magnitude_increase(evidence: Evidence) -> Scores:
    """|w after training| - |w at step 0|: keep what grew most.

    Source: Zhou et al. 2019 (arXiv 1905.01067), section 2, `magnitude_increase`.
    """
    return {name: weight.abs() - evidence.initial[name].abs() for name, weight in evidence.trained.items()}


def movement(evidence: Evidence) -> Scores:
    """|w after training - w at step 0|: keep what moved most.

    Source: Zhou et al. 2019 (arXiv 1905.01067), section 2, `movement`.
    """
    return {name: (weight - evidence.initial[name]).abs() for name, weight in evidence.trained.items()}
