"""Layers that are not there at once: lazy ones get their shapes, and others are made when a Trainer sets them up."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch.nn.parameter import is_lazy

from lt_lightning.fit.hooks import overrides

MAKING = ("setup", "configure_model")
"""Hooks in which a module may make its layers."""


def is_made_late(module: L.LightningModule) -> bool:
    """Whether a module may make layers when a Trainer calls it to.

    >>> is_made_late(L.LightningModule())
    False
    """
    return overrides(module, *MAKING)


def materialise(module: L.LightningModule) -> None:
    """Run the module once on its `example_input_array` if any parameter or buffer has no shape yet.

    It runs in evaluation mode, so that statistics stay as they are; the parameters are drawn from the global
    generators.

    Raises:
        ValueError: if there is no example, or it does not reach all lazy layers.
    """
    if not _without_shape(module):
        return
    _require(module.example_input_array is not None, module)
    training = {each: each.training for each in module.modules()}
    module.eval()
    with torch.no_grad():
        _call(module, module.example_input_array)
    for each, was_training in training.items():
        each.training = was_training
    _require(not _without_shape(module), module)


def _call(module: L.LightningModule, example: Any) -> None:
    """Call the module with a tensor, a tuple of arguments or a dictionary of them, which is what Lightning allows."""
    if isinstance(example, Mapping):
        module(**example)
    elif isinstance(example, tuple):
        module(*example)
    else:
        module(example)


def _require(fulfilled: bool, module: L.LightningModule) -> None:
    if not fulfilled:
        first, *others = _without_shape(module)
        more = f" and {len(others)} more" if others else ""
        seen = "no example_input_array" if module.example_input_array is None else "an example that does not reach it"
        raise ValueError(
            f"{first}{more} of {type(module).__name__} has no shape yet, so it cannot be pruned: the module has lazy "
            f"layers and {seen}. Add self.example_input_array = torch.zeros(1, ...) with the shape of an input to "
            "its __init__, or call the module once in the function that makes it."
        )


def _without_shape(module: L.LightningModule) -> list[str]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return [name for name, tensor in named if is_lazy(tensor)]
