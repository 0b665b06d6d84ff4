"""A model made under a seed, whatever of it is made only when a Trainer sets it up."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lt_lightning.fit import frozen, lazy
from lt_lightning.fit.hooks import overrides
from lt_lightning.seeding import seeded
from lt_lightning.sharded import local
from lt_lightning.ticket import unwrap_compiled
from lt_lightning.twins import twins

Model = nn.Module | Callable[[], nn.Module]
"""A function that makes a fresh LightningModule, or a LightningModule; `torch.compile` may be around it."""

_BEGINNING = ("on_fit_start", "on_train_start")

HOOKS = (*lazy.MAKING, *_BEGINNING)
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
    hooks = dict.fromkeys(lazy.MAKING, _under_seed) | dict.fromkeys(_BEGINNING, _begin)
    for name in (name for name in hooks if overrides(module, name)):
        setattr(module, name, partial(hooks[name], module, name, seed))
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
    with seeded(seed), frozen.by_itself(module):
        getattr(type(module), name)(module, *arguments, **options)


def _begin(module: Any, name: str, seed: int) -> None:
    """The same at the start of a fit; one from a checkpoint keeps what was loaded, in which such weights are too."""
    path = module.trainer.ckpt_path
    loaded = [(local(each), local(each).detach().clone()) for each in module.parameters()] if path else []
    with seeded(seed):
        getattr(type(module), name)(module)
    written = [(each, before) for each, before in loaded if not torch.equal(each, before)]
    with torch.no_grad():
        for each, before in written:
            each.copy_(before)
    if written:
        rank_zero_info(f"weights that {name} of {type(module).__name__} wrote are again those of {path}")
