"""A model made under a seed, whatever of it is made only when a Trainer sets it up."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import nn

from lt_lightning.fit import frozen, lazy, start
from lt_lightning.fit.hooks import overrides
from lt_lightning.seeding import seeded
from lt_lightning.ticket import unwrap_compiled
from lt_lightning.twins import twins

Model = nn.Module | Callable[[], nn.Module]
"""A function that makes a fresh LightningModule, or a LightningModule; `torch.compile` may be around it."""

HOOKS = (*lazy.MAKING, *start.HOOKS)
"""Hooks in which a module may draw weights before it is trained, in the order in which a Trainer calls them."""


class Made(NamedTuple):
    """A fresh model, and whether it took its random numbers from a seed of its own."""

    model: nn.Module
    seeds_itself: bool


def fresh_module(model: Model, seed: int, *, configure: bool = False) -> nn.Module:
    """A model made under a seed, whose parameters have shapes; `configure` does what the Trainer would do for that.

    What the module draws later, in the hooks in which it may make layers or draw weights, is drawn under the seed too.
    """
    return make(model, seed, configure=configure).model


def make(model: Model, seed: int, *, configure: bool = False) -> Made:
    """As `fresh_module`, and tell whether the model seeds the global generators itself."""
    with seeded(seed):
        made = model if isinstance(model, nn.Module) else model()
        seeds_itself = torch.initial_seed() != seed
        module = unwrap_compiled(made)
        if not isinstance(module, twins(L.LightningModule)):
            raise ValueError(f"the model must be a LightningModule, got {type(made).__name__}: wrap it in one.")
        if isinstance(model, nn.Module):
            frozen.come_back(module)
        if configure:
            _configure(module)
        lazy.materialise(module)
    for name in (name for name in HOOKS if overrides(module, name)):
        setattr(module, name, partial(_under_seed, module, name, seed))
    return Made(made, seeds_itself)


def _configure(module: Any) -> None:
    if overrides(module, "setup") and next(module.parameters(), None) is None:
        _set_up_alone(module)
    if overrides(module, "configure_model"):
        module.configure_model()


def _set_up_alone(module: Any) -> None:
    try:
        module.setup("fit")
    except Exception as error:
        name = type(module).__name__
        raise ValueError(
            f"{name} makes its layers in setup(), which fails without a Trainer ({type(error).__name__}: {error}), so "
            f"they cannot be shown: leave out dry_run=True, or make them in __init__ or configure_model of {name}."
        ) from error


def _under_seed(module: nn.Module, name: str, seed: int, *arguments: Any, **options: Any) -> None:
    """Weights that a model draws in a hook that the Trainer calls are those of its seed too."""
    own = frozen.by_itself(module) if name in lazy.MAKING else nullcontext()
    with seeded(seed), own:
        getattr(type(module), name)(module, *arguments, **options)
