"""Fits that change exactly one ingredient of a ticket, to show what that ingredient is worth.

A control takes the ingredients of a round's ticket and returns them with one changed. It trains beside the ticket of
every round, and its function's name is its arm in the records, with what it was given: `noise(0.5)` is `noise_0.5`.
"""

import ast
import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lt_lightning import changes
from lt_lightning.changes import Change
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
        points: the folder of the checkpoints of round 0, `step-<steps>.ckpt`.
        change: what is done to each prunable weight of `start`; None: nothing.
    """

    round: int
    masks: Masks
    start: str | None
    init_seed: int
    seed: int
    points: str = ""
    change: Change | None = None


Control = Callable[[Ingredients], Ingredients]
"""The ticket's ingredients → the control's, one of them changed."""


def reinit(ticket: Ingredients) -> Ingredients:
    """Other initial weights: a fresh model of another seed, from step 0, under the ticket's masks.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), section 2, "random reinitialization".
    """
    return replace(ticket, start=None, init_seed=derive(ticket.seed, "reinit", ticket.round))


def random_mask(ticket: Ingredients) -> Ingredients:
    """Other masks: as many weights kept in each layer, at random places, from the ticket's own starting weights.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), appendix E, "random sparsity"; shuffling within layers in
    Frankle et al. 2021 (2009.08576), section 5.

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


def random_mask_globally(ticket: Ingredients) -> Ingredients:
    """Other masks: as many weights kept of all layers together, at random places of any.

    Source: random pruning in Frankle et al. 2021 (arXiv 2009.08576), section 3: every layer has about the same density.

    Example:
        >>> masks = {"a": torch.ones(2).bool(), "b": torch.zeros(6).bool()}
        >>> sum(int(mask.sum()) for mask in random_mask_globally(Ingredients(1, masks, None, 0, seed=3)).masks.values())
        2
    """
    draws = generator(ticket.seed, "random_mask_globally", ticket.round)
    masks = dict(ticket.masks)
    flat = torch.cat([mask.flatten() for mask in masks.values()])
    parts = flat[torch.randperm(len(flat), generator=draws)].split([mask.numel() for mask in masks.values()])
    return replace(ticket, masks={n: part.view(masks[n].shape).clone() for n, part in zip(masks, parts, strict=True)})


def signed_constant(ticket: Ingredients) -> Ingredients:
    """Other weights: of the ticket's the signs alone, times the standard deviation of their layer at step 0.

    Source: Zhou et al. 2019 (arXiv 1905.01067), section 3; `signed_constant` in its code.
    """
    return replace(ticket, change=changes.signed_constant)


def kept_signs(ticket: Ingredients) -> Ingredients:
    """Other weights: of the ticket's the signs alone, with magnitudes of their layer at step 0, shuffled.

    Source: Zhou et al. 2019 (arXiv 1905.01067), section 3; see `rewinds.keep_signs`.
    """
    return replace(ticket, change=changes.kept_signs)


def shuffled_weights(ticket: Ingredients) -> Ingredients:
    """Other weights: the kept ones of each layer at each other's places.

    Source: Zhou et al. 2019 (arXiv 1905.01067), section 3; `random_reshuffle` in its code.
    """
    return replace(ticket, change=changes.shuffled)


def noise(sigma: float) -> Control:
    """Other weights: the ticket's plus Gaussian noise.

    Args:
        sigma: standard deviation of the noise, in those of each layer's weights at step 0; positive.

    Source: Frankle, Schwab & Morcos 2020 (arXiv 2002.10365), section 5.

    Example:
        >>> noise(0.5)(Ingredients(1, {}, "rewind.ckpt", 0, 0)).change.keywords
        {'sigma': 0.5}
    """
    return partial(_noise, sigma=changes.require_sigma(sigma))


def _noise(ticket: Ingredients, *, sigma: float) -> Ingredients:
    return replace(ticket, change=partial(changes.noisy, sigma=sigma))


def at_step(step: int) -> Control:
    """Another start: the ticket's masks on round 0 after `step` steps, with all that was there.

    Round 0 saves that step for it.

    Raises:
        ValueError: if the step is none.
        FileNotFoundError: when a round comes to it, if round 0 was trained before the control was asked for.

    Source: Frankle et al. 2019 (arXiv 1903.01611), section 3: what rewinding to another step is worth.

    Example:
        >>> at_step("soon")
        Traceback (most recent call last):
        ...
        ValueError: step='soon' of at_step must be a number of steps, 0 or more: at_step(100).
    """
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"step={step!r} of at_step must be a number of steps, 0 or more: at_step(100).")
    return partial(_at_step, step=step)


def _at_step(ticket: Ingredients, *, step: int) -> Ingredients:
    path = Path(ticket.points, f"step-{step}.ckpt")
    if not path.exists():
        steps = sorted(int(each.stem.removeprefix("step-")) for each in path.parent.glob("step-*.ckpt"))
        raise FileNotFoundError(
            f"the control at_step({step}) starts from {path}, which is not there: round 0 has saved steps {steps}, as "
            "it was trained before this control was asked for. Choose one of them, or another directory."
        )
    return replace(ticket, start=str(path))


def step_of(control: Control) -> int | None:
    """The step of round 0 that a control starts from, if it is `at_step`.

    >>> step_of(at_step(100)), step_of(reinit)
    (100, None)
    """
    return control.keywords["step"] if isinstance(control, partial) and control.func is _at_step else None


CHANGING = (signed_constant, kept_signs, shuffled_weights, _noise)
"""Controls that change weights which lie in a checkpoint."""

_OURS: dict[str, Callable[..., Any]] = {
    "reinit": reinit,
    "random_mask": random_mask,
    "random_mask_globally": random_mask_globally,
    "signed_constant": signed_constant,
    "kept_signs": kept_signs,
    "shuffled_weights": shuffled_weights,
    "noise": noise,
    "at_step": at_step,
}

FACTORIES = {"noise": "noise(0.5)", "at_step": "at_step(100)"}
"""Names of ours that need a value, and an example."""


def named(text: str) -> Control:
    """The control of this name here, or at this dotted path; with values in parentheses, what the function returns.

    Raises:
        ValueError: if there is none.

    >>> named("reinit") is reinit, named("noise(0.5)").keywords
    (True, {'sigma': 0.5})
    """
    name, values = _parsed(text)
    if values is None and name in FACTORIES:
        raise ValueError(f"the control {name!r} needs a value: write {FACTORIES[name]!r}.")
    found = _OURS[name] if name in _OURS else _imported(name, text)
    if values is not None:
        found = found(*values[0], **values[1])
    if not callable(found):
        raise ValueError(_unknown(text))
    return found


def _parsed(text: str) -> tuple[str, tuple[list[Any], dict[str, Any]] | None]:
    """The name of a function, and the values that it is called with, if it is."""
    if not text.endswith(")"):
        return text, None
    try:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call)
        values = [ast.literal_eval(each) for each in call.args]
        named_values = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
        return ast.unparse(call.func), (values, named_values)
    except (SyntaxError, ValueError, AssertionError) as error:
        raise ValueError(_unknown(text)) from error


def _imported(name: str, text: str) -> Callable[..., Any]:
    try:
        module, _, function = name.rpartition(".")
        return getattr(importlib.import_module(module), function)
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        raise ValueError(_unknown(text)) from error


def _unknown(text: str) -> str:
    ours = [FACTORIES.get(name, name) for name in _OURS]
    return f"there is no control {text!r}: choose from {ours}, or give the dotted path of a function."
