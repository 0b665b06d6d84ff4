"""Fits that change exactly one ingredient of a ticket, to show what that ingredient is worth.

A control takes the ingredients of a round's ticket and returns them with one changed. It trains beside the ticket of
every round, and its function's name is its arm in the records.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from lt_lightning.masks import Masks
from lt_lightning.seeding import derive, generator


@dataclass(frozen=True)
class Ingredients:
    """What a fit is made of.

    Args:
        round: number of times that the ticket was pruned.
        masks: what is kept.
        start: path of the checkpoint to start from; None: a fresh model at step 0.
        init_seed: the seed under which a fresh model is made.
        seed: of the experiment, for controls that draw.
    """

    round: int
    masks: Masks
    start: str | None
    init_seed: int
    seed: int


Control = Callable[[Ingredients], Ingredients]
"""The ticket's ingredients → the control's, one of them changed."""


def reinit(ticket: Ingredients) -> Ingredients:
    """Other initial weights: a fresh model of another seed, from step 0, under the ticket's masks.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), section 2, "random reinitialization".
    """
    return replace(ticket, start=None, init_seed=derive(ticket.seed, "reinit", ticket.round))


def random_mask(ticket: Ingredients) -> Ingredients:
    """Other masks: as many weights kept in each layer, at random places, from the ticket's own starting weights.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), appendix E, "random sparsity".

    Example:
        >>> masks = {"w": torch.tensor([True, True, False, False])}
        >>> shuffled = random_mask(Ingredients(1, masks, None, 0, seed=3)).masks["w"]
        >>> int(shuffled.sum())
        2
    """
    draws = generator(ticket.seed, "random_mask", ticket.round)
    shuffled = {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=draws)].view(mask.shape)
        for name, mask in ticket.masks.items()
    }
    return replace(ticket, masks=shuffled)


_UNKNOWN = "there is no control {name!r}: choose from {ours}, or give the dotted path of a function."


def named(name: str) -> Control:
    """The control of this name here, or at this dotted path.

    Raises:
        ValueError: if there is none.

    >>> named("reinit") is reinit
    True
    """
    ours = {"reinit": reinit, "random_mask": random_mask}
    if name in ours:
        return ours[name]
    try:
        module, _, function = name.rpartition(".")
        found = getattr(importlib.import_module(module), function)
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        raise ValueError(_UNKNOWN.format(name=name, ours=list(ours))) from error
    if not callable(found):
        raise ValueError(_UNKNOWN.format(name=name, ours=list(ours)))
    return found
