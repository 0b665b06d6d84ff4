"""How good each weight is: a criterion scores every prunable weight, and the higher ones are kept.

A criterion is one function of the evidence. Yours is as good as ours:

>>> def grew_fastest(evidence):
...     return {name: (w / evidence.initial[name]).abs() for name, w in evidence.trained.items()}

Below, w_f is a weight after training and w_i at step 0. Those that score a gradient are in `at_init.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lt_lightning.masks import Density, Masks, Scores, Weights
from lt_lightning.seeding import generator
from lt_lightning.sharded import spread, whole


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a criterion may look at; each part is made only when asked for.

    Args:
        round: the round that has just been trained.
        masks: the masks it was trained under, on the CPU.
        density: that of the next round, or one per name pattern.
        scope: which weights will compete, as `lottery` was given it.
        seed: of the experiment; with the round it seeds `generator`.
        read_initial: makes `initial`.
        read_point: makes `point`.
        read_trained: makes `trained`.
        model: `model(weights, *inputs)` runs the module's forward with these weights in place of its own.
        batches: `batches()` iterates over the training batches of epoch 0, on the module's device.
        make_module: makes a copy of the LightningModule, with the weights and buffers of the rewind point, in training
            mode, which logs nothing; whatever is done to it stays its own. See `fit/probe.py` for its loss.
    """

    round: int
    masks: Masks
    density: Density
    scope: Callable[[Scores, Masks, float], Masks]
    seed: int
    read_initial: Callable[[], Weights]
    read_point: Callable[[], Weights]
    read_trained: Callable[[], Weights]
    model: Callable[..., Any]
    batches: Callable[[], Iterator[Any]]
    make_module: Callable[[], Any]

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
    """`|w_f|`: keep the largest weights.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), section 2; `large_final` in Zhou et al. 2019 (1905.01067).
    """
    return {name: weight.abs() for name, weight in evidence.trained.items()}


large_final = magnitude
"""The name of `magnitude` in Zhou et al. 2019 (arXiv 1905.01067), section 2."""


def small_final(evidence: Evidence) -> Scores:
    """`-|w_f|`: keep the smallest weights.

    Source: Zhou et al. 2019 (arXiv 1905.01067), section 2, `small_final`.
    """
    return {name: -weight.abs() for name, weight in evidence.trained.items()}


def large_init(evidence: Evidence) -> Scores:
    """`|w_i|`: keep what was largest at step 0.

    Source: Zhou et al. 2019 (arXiv 1905.01067), section 2, `large_init`; without dense training it is the magnitude
    pruning at initialization of Frankle et al. 2021 (2009.08576).
    """
    return {name: weight.abs() for name, weight in evidence.initial.items()}


def small_init(evidence: Evidence) -> Scores:
    """`-|w_i|`: keep what was smallest at step 0.

    Source: Zhou et al. 2019 (arXiv 1905.01067), section 2, `small_init`.
    """
    return {name: -weight.abs() for name, weight in evidence.initial.items()}


def large_init_large_final(evidence: Evidence) -> Scores:
    """`min(a |w_f|, |w_i|)`: keep what was large and is large.

    The paper adjusts a so that percentiles of w_i and w_f are aligned; here the score is the smaller of the two
    percentiles that a weight has among the kept ones of its tensor. If weights are sharded, one tensor at a time is put
    together.

    Source: Zhou et al. 2019 (arXiv 1905.01067), figure 2, `large_init_large_final`.
    """
    initial, trained = large_init(evidence), magnitude(evidence)
    return {name: _worse_percentile(initial[name], trained[name], mask) for name, mask in evidence.masks.items()}


def small_init_small_final(evidence: Evidence) -> Scores:
    """`-max(a |w_f|, |w_i|)`: keep what was small and is small; percentiles as in `large_init_large_final`.

    Source: Zhou et al. 2019 (arXiv 1905.01067), figure 2, `small_init_small_final`.
    """
    initial, trained = small_init(evidence), small_final(evidence)
    return {name: _worse_percentile(initial[name], trained[name], mask) for name, mask in evidence.masks.items()}


def magnitude_increase(evidence: Evidence) -> Scores:
    """`|w_f| - |w_i|`: keep what grew most.

    Source: Zhou et al. 2019 (arXiv 1905.01067), section 2, `magnitude_increase`.
    """
    return {name: weight.abs() - evidence.initial[name].abs() for name, weight in evidence.trained.items()}


def movement(evidence: Evidence) -> Scores:
    """`|w_f - w_i|`: keep what moved most.

    Source: Zhou et al. 2019 (arXiv 1905.01067), section 2, `movement`.
    """
    return {name: (weight - evidence.initial[name]).abs() for name, weight in evidence.trained.items()}


def random(evidence: Evidence) -> Scores:
    """Uniform noise in [0, 1): keep any weights. The same noise on any number of processes.

    Source: Zhou et al. 2019 (arXiv 1905.01067), section 2, `random`.
    """
    draws = evidence.generator
    return {name: spread(torch.rand(mask.shape, generator=draws), mask) for name, mask in evidence.masks.items()}


def large_final_same_sign(evidence: Evidence) -> Scores:
    """`|w_f|` where w_f has the sign of w_i, 0 elsewhere.

    Source: Zhou et al. 2019 (arXiv 1905.01067), section 3; github.com/uber-research/deconstructing-lottery-tickets.
    """
    return _where_signs(evidence, magnitude(evidence), agree=True)


def large_final_diff_sign(evidence: Evidence) -> Scores:
    """`|w_f|` where w_f has another sign than w_i, 0 elsewhere.

    Source: as `large_final_same_sign`.
    """
    return _where_signs(evidence, magnitude(evidence), agree=False)


def magnitude_increase_same_sign(evidence: Evidence) -> Scores:
    """`|w_f| - |w_i|` where w_f has the sign of w_i, 0 elsewhere: what shrank is worse than what changed its sign.

    Source: as `large_final_same_sign`.
    """
    return _where_signs(evidence, magnitude_increase(evidence), agree=True)


def magnitude_increase_diff_sign(evidence: Evidence) -> Scores:
    """`|w_f| - |w_i|` where w_f has another sign than w_i, 0 elsewhere.

    Source: as `large_final_same_sign`.
    """
    return _where_signs(evidence, magnitude_increase(evidence), agree=False)


def _where_signs(evidence: Evidence, scores: Scores, *, agree: bool) -> Scores:
    same = {name: weight.sign() == evidence.initial[name].sign() for name, weight in evidence.trained.items()}
    return {name: score * (same[name] if agree else ~same[name]) for name, score in scores.items()}


def _worse_percentile(one: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    kept = whole(mask)
    return spread(torch.minimum(_percentiles(whole(one), kept), _percentiles(whole(other), kept)), mask)


def _percentiles(scores: Tensor, mask: Tensor) -> Tensor:
    """The share of the candidates that are worse than each weight, in [0, 1].

    >>> _percentiles(torch.tensor([3.0, 1.0, 1.0, 2.0]), torch.tensor([True, True, False, True])).tolist()
    [0.6666666666666666, 0.0, 0.0, 0.3333333333333333]
    """
    candidates = scores[mask].sort().values
    worse = torch.searchsorted(candidates, scores.contiguous().view(-1)).view(scores.shape)
    return worse.double() / max(len(candidates), 1)
