"""What the next round starts from.

A rewind takes two Lightning checkpoints, the rewind point and the end of the round, and answers with the one to start
the next round from: the point itself, a new one, or `None` for a fresh model at step 0; or with a change of the
rewind point's prunable weights. Masks are applied afterwards, to weights and optimizer state alike.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from lt_lightning import changes, require
from lt_lightning.changes import Change

State = Mapping[str, Any]
"""A Lightning checkpoint: `state_dict`, `optimizer_states`, `lr_schedulers`, `loops`, ..."""


@dataclass(frozen=True)
class Changed:
    """The rewind point with other prunable weights.

    Args:
        change: makes them, one by one.
    """

    change: Change


Rewind = Callable[[State, State], State | Changed | None]
"""(rewind point, end of the round) → where the next round starts; None: a fresh model of another seed at step 0."""


@dataclass(frozen=True)
class RewindStep:
    """When the rewind point is taken: after `count` optimizer steps, or after `count` epochs."""

    count: int
    unit: str = "steps"

    def __str__(self) -> str:
        return f"{self.count} {self.unit}"


def parse_step(value: int | str, name: str = "rewind_step", others: str = "0") -> RewindStep:
    """Read a rewind step: a number of steps, "500 steps" or "2 epochs"; `name` and `others` are for the error.

    Raises:
        ValueError: for anything else.

    >>> parse_step("500 steps"), parse_step("1 epoch"), parse_step(0)
    (RewindStep(count=500, unit='steps'), RewindStep(count=1, unit='epochs'), RewindStep(count=0, unit='steps'))
    """
    found = None if isinstance(value, float) else re.fullmatch(r"\s*(\d+)\s*(?:(step|epoch)s?)?\s*", str(value))
    if not found:
        raise ValueError(f'{name}={value!r} is not understood: write {others}, 500, "500 steps" or "2 epochs".')
    return RewindStep(int(found[1]), f"{found[2] or 'step'}s")


def to_point(point: State, trained: State, *, rewind_optimizer: bool = True) -> State:
    """Rewind everything: weights, buffers, optimizer state, schedule, counters, data position, random state.

    Args:
        point: the checkpoint at the rewind point.
        trained: the checkpoint at the end of the round.
        rewind_optimizer: False starts a fresh optimizer on the advanced schedule, as OpenLTH does.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), section 2; late: Frankle et al. 2019 (1903.01611), section 3.

    Example:
        >>> to_point({"state_dict": "early"}, {"state_dict": "late"})
        {'state_dict': 'early'}
    """
    if require.flag("rewind_optimizer", rewind_optimizer, "prune.rewind.rewind_optimizer"):
        return point
    fresh = [{**optimizer, "state": {}} for optimizer in point["optimizer_states"]]
    return {**point, "optimizer_states": fresh}


def keep_weights(point: State, trained: State) -> State:
    """Learning-rate rewinding: keep the trained weights and buffers, rewind everything else.

    Source: Renda, Frankle & Carbin 2020 (arXiv 2003.02389), section 3.

    Example:
        >>> keep_weights({"state_dict": "early", "epoch": 0}, {"state_dict": "late", "epoch": 9})
        {'state_dict': 'late', 'epoch': 0}
    """
    return {**point, **_weights(trained, averaged="averaging_state" in point)}


def fine_tune(point: State, trained: State) -> State:
    """Train on: trained weights and optimizer, the point's counters, and the learning rate of the last step held.

    It is the rate of the last step that was taken, not the one that a scheduler set after it: a cosine ends at 0. The
    round is as long as any other. An empty `lr_schedulers` tells the ticket to hold the learning rate.

    Source: Han et al. 2015 (arXiv 1506.02626); as the baseline in Renda et al. 2020 (2003.02389), section 3.
    """
    weights = _weights(trained, averaged="averaging_state" in point)
    states = _with_rates(trained["optimizer_states"], trained.get("learning_rates"))
    return {**point, **weights, "optimizer_states": states, "lr_schedulers": []}


def _with_rates(states: Sequence[State], rates: Sequence[Sequence[float | None]] | None) -> Sequence[State]:
    """States of optimizers with other learning rates: for each optimizer those of its parameter groups."""
    if rates is None:
        return states
    return [
        {**state, "param_groups": [_with_rate(*pair) for pair in zip(state["param_groups"], own, strict=True)]}
        for state, own in zip(states, rates, strict=True)
    ]


def _with_rate(group: State, rate: float | None) -> State:
    if rate is None:
        return group
    return {**group, "lr": group["lr"].new_tensor(rate) if isinstance(group["lr"], Tensor) else rate}


def redraw(point: State, trained: State) -> None:
    """Rewind to nothing: a fresh model of another seed at step 0, under the masks that were found.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), section 2, "random reinitialization".

    Example:
        >>> redraw({"state_dict": "early"}, {"state_dict": "late"}) is None
        True
    """
    return None


def signed_constant(point: State, trained: State) -> Changed:
    """The rewind point, and of its weights the signs alone: sign times the layer's standard deviation at step 0.

    Source: Zhou et al. 2019 (arXiv 1905.01067), section 3; `signed_constant` in its code.

    Example:
        >>> signed_constant({"state_dict": "early"}, {"state_dict": "late"}).change.__name__
        'signed_constant'
    """
    return Changed(changes.signed_constant)


def keep_signs(point: State, trained: State) -> Changed:
    """The rewind point, and of its weights the signs alone: magnitudes are those of the layer at step 0, shuffled.

    As in the code of the paper (github.com/uber-research/deconstructing-lottery-tickets, `signed_reinit`), magnitudes
    are drawn anew from those that the layer has, so that no initialization has to be known.

    Source: Zhou et al. 2019 (arXiv 1905.01067), section 3.
    """
    return Changed(changes.kept_signs)


def shuffle_weights(point: State, trained: State) -> Changed:
    """The rewind point, and in each layer the kept weights at each other's places.

    Source: Zhou et al. 2019 (arXiv 1905.01067), section 3, `random_reshuffle` in its code; at an early step Frankle,
    Schwab & Morcos 2020 (2002.10365), section 5.
    """
    return Changed(changes.shuffled)


def noise(sigma: float) -> Rewind:
    """The rewind point, and Gaussian noise on its weights.

    Args:
        sigma: standard deviation of the noise, in those of each layer's weights at step 0; positive.

    Source: Frankle, Schwab & Morcos 2020 (arXiv 2002.10365), section 5.

    Example:
        >>> noise(0.5)({"state_dict": "early"}, {"state_dict": "late"}).change.keywords
        {'sigma': 0.5}
    """
    return partial(_noise, sigma=changes.require_sigma(sigma))


def _noise(point: State, trained: State, *, sigma: float) -> Changed:
    return Changed(partial(changes.noisy, sigma=sigma))


def _weights(trained: State, averaged: bool) -> dict[str, Any]:
    """The trained weights under every key from which the next fit reads weights."""
    weights = {"state_dict": trained["state_dict"]}
    return weights | {"current_model_state": trained["state_dict"]} if averaged else weights
