"""Lottery tickets for PyTorch Lightning: prune, rewind and retrain between fits.

Names are imported when they are asked for, so that `python -m lt_lightning status` need not wait for torch.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lt_lightning.at_init import grasp, snip, synflow
    from lt_lightning.controls import (
        Control,
        Ingredients,
        at_step,
        kept_signs,
        random_mask,
        random_mask_globally,
        reinit,
        shuffled_weights,
    )
    from lt_lightning.criteria import (
        Criterion,
        Evidence,
        large_final,
        large_final_diff_sign,
        large_final_same_sign,
        large_init,
        large_init_large_final,
        magnitude,
        magnitude_increase,
        magnitude_increase_diff_sign,
        magnitude_increase_same_sign,
        movement,
        random,
        small_final,
        small_init,
        small_init_small_final,
    )
    from lt_lightning.early_bird import EarlyBird, settled
    from lt_lightning.exchange.export import to_onnx, to_torch_prune
    from lt_lightning.exchange.publish import push_ticket
    from lt_lightning.exchange.ticketfile import TicketFile, load_ticket
    from lt_lightning.gradual import Gradual, cubically, geometrically, linearly
    from lt_lightning.layers import layer_weights
    from lt_lightning.lottery import lottery
    from lt_lightning.masks import Masks, Scores, Weights, density
    from lt_lightning.prunable import Prunable
    from lt_lightning.rewinds import (
        Changed,
        Rewind,
        State,
        fine_tune,
        keep_signs,
        keep_weights,
        redraw,
        shuffle_weights,
        to_point,
    )
    from lt_lightning.schedules import Schedule, cubic, explicit, geometric, one_shot, rounds_to
    from lt_lightning.scopes import Scope, balanced, channels, erk, globally, layerwise, n_m
    from lt_lightning.stopping import StopWhen, worse_than_dense
    from lt_lightning.ticket import Ticket
    from lt_lightning.transfer import transfer

__version__ = "0.1.0"

__all__ = [
    "Changed",
    "Control",
    "Criterion",
    "EarlyBird",
    "Evidence",
    "Gradual",
    "Ingredients",
    "Masks",
    "Prunable",
    "Rewind",
    "Schedule",
    "Scope",
    "Scores",
    "State",
    "StopWhen",
    "Ticket",
    "TicketFile",
    "Weights",
    "at_step",
    "balanced",
    "channels",
    "cubic",
    "cubically",
    "density",
    "erk",
    "explicit",
    "fine_tune",
    "geometric",
    "geometrically",
    "globally",
    "grasp",
    "keep_signs",
    "keep_weights",
    "kept_signs",
    "large_final",
    "large_final_diff_sign",
    "large_final_same_sign",
    "large_init",
    "large_init_large_final",
    "layer_weights",
    "layerwise",
    "linearly",
    "load_ticket",
    "lottery",
    "magnitude",
    "magnitude_increase",
    "magnitude_increase_diff_sign",
    "magnitude_increase_same_sign",
    "movement",
    "n_m",
    "one_shot",
    "push_ticket",
    "random",
    "random_mask",
    "random_mask_globally",
    "redraw",
    "reinit",
    "rounds_to",
    "settled",
    "shuffle_weights",
    "shuffled_weights",
    "small_final",
    "small_init",
    "small_init_small_final",
    "snip",
    "synflow",
    "to_onnx",
    "to_point",
    "to_torch_prune",
    "transfer",
    "worse_than_dense",
]

_MODULES = {
    "at_init": ("grasp", "snip", "synflow"),
    "controls": (
        "Control",
        "Ingredients",
        "at_step",
        "kept_signs",
        "random_mask",
        "random_mask_globally",
        "reinit",
        "shuffled_weights",
    ),
    "criteria": (
        "Criterion",
        "Evidence",
        "large_final",
        "large_final_diff_sign",
        "large_final_same_sign",
        "large_init",
        "large_init_large_final",
        "magnitude",
        "magnitude_increase",
        "magnitude_increase_diff_sign",
        "magnitude_increase_same_sign",
        "movement",
        "random",
        "small_final",
        "small_init",
        "small_init_small_final",
    ),
    "early_bird": ("EarlyBird", "settled"),
    "gradual": ("Gradual", "cubically", "geometrically", "linearly"),
    "exchange.export": ("to_onnx", "to_torch_prune"),
    "layers": ("layer_weights",),
    "lottery": ("lottery",),
    "masks": ("Masks", "Scores", "Weights", "density"),
    "prunable": ("Prunable",),
    "exchange.publish": ("push_ticket",),
    "rewinds": (
        "Changed",
        "Rewind",
        "State",
        "fine_tune",
        "keep_signs",
        "keep_weights",
        "redraw",
        "shuffle_weights",
        "to_point",
    ),
    "schedules": ("Schedule", "cubic", "explicit", "geometric", "one_shot", "rounds_to"),
    "scopes": ("Scope", "balanced", "channels", "erk", "globally", "layerwise", "n_m"),
    "stopping": ("StopWhen", "worse_than_dense"),
    "ticket": ("Ticket",),
    "exchange.ticketfile": ("TicketFile", "load_ticket"),
    "transfer": ("transfer",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


class _Package(ModuleType):
    """The package, in which `lottery` stays the function: Python sets a submodule that it has imported as attribute."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, getattr(value, name) if name in _HOME and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _HOME:
        globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        return globals()[name]
    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
