"""What a round may start from in the place of a weight: functions from one prunable tensor to another.

Rewinds and controls of the same kind share them, and the draws: a function of (seed, change, round).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Weight:
    """One prunable weight, and what a change may look at.

    Args:
        start: where the round would start.
        initial: at step 0, as large.
        mask: of the round, True is kept.
        draws: for what is drawn.
    """

    start: Tensor
    initial: Tensor
    mask: Tensor
    draws: torch.Generator


Change = Callable[[Weight], Tensor]
"""One prunable weight → the tensor to start from, of the same shape and type; the mask is applied afterwards."""


def signed_constant(weight: Weight) -> Tensor:
    """The sign of each weight times the standard deviation that its tensor had at step 0.

    >>> weight = Weight(torch.tensor([3.0, -0.1]), torch.tensor([1.0, 3.0]), torch.ones(2).bool(), torch.Generator())
    >>> signed_constant(weight)
    tensor([ 1., -1.])
    """
    return weight.start.sign() * _deviation(weight.initial)


def kept_signs(weight: Weight) -> Tensor:
    """The sign of each weight and another magnitude: those of the tensor at step 0, shuffled."""
    magnitudes = weight.initial.abs().flatten()
    drawn = magnitudes[torch.randperm(len(magnitudes), generator=weight.draws)].view(weight.start.shape)
    return weight.start.sign() * drawn.to(weight.start.dtype)


def shuffled(weight: Weight) -> Tensor:
    """The kept weights of the tensor, at each other's places.

    >>> weight = Weight(torch.arange(4.0), torch.zeros(4), torch.tensor([True, True, True, False]), torch.Generator())
    >>> sorted(shuffled(weight).tolist())
    [0.0, 1.0, 2.0, 3.0]
    """
    kept = weight.start[weight.mask]
    result = weight.start.clone()
    result[weight.mask] = kept[torch.randperm(len(kept), generator=weight.draws)]
    return result


def noisy(weight: Weight, *, sigma: float) -> Tensor:
    """Each weight plus Gaussian noise; `sigma` is in standard deviations that its tensor had at step 0."""
    noise = torch.randn(weight.start.shape, generator=weight.draws, dtype=torch.float64)
    return (weight.start.double() + sigma * _deviation(weight.initial.double()) * noise).to(weight.start.dtype)


def _deviation(initial: Tensor) -> Tensor:
    return initial.double().std(correction=0).to(initial.dtype)


def require_sigma(sigma: float) -> float:
    """The sigma as a float, if it is a positive number.

    >>> require_sigma(1)
    1.0
    """
    if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0 < sigma < float("inf"):
        raise ValueError(
            f"sigma={sigma!r} of noise must be a positive number, in standard deviations of a layer's initial weights: "
            "noise(0.5)."
        )
    return float(sigma)
