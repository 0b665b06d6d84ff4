"""What a mask is: a bool tensor shaped like its weight, where `True` is kept.

Masks travel as a plain dictionary from parameter name to tensor and never live on the module: there they would be
broadcast in every distributed forward pass and saved twice. The mask of a sharded weight is sharded as it is.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from lt_lightning import sharded

Masks = Mapping[str, Tensor]
"""Parameter name → bool tensor of the parameter's shape."""

Weights = Mapping[str, Tensor]
"""Parameter name → float tensor."""

Scores = Mapping[str, Tensor]
"""Parameter name → float tensor of the parameter's shape; higher is kept."""

Density = float | Mapping[str, float]
"""A density in (0, 1], or one per name pattern; the first pattern that matches a name counts."""


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether any of the patterns matches the name.

    >>> matches("network.output.weight", ["*output*"])
    True
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def require_match(pattern: str, names: Mapping[str, object] | Sequence[str]) -> None:
    """Raise a ValueError that lists the names if the pattern matches none of them."""
    if not any(fnmatchcase(name, pattern) for name in names):
        raise ValueError(f"the pattern {pattern!r} matches nothing; the parameters are {few(names, 20)}.")


def plain_name(name: str) -> str:
    """A parameter's name without what `torch.compile` and wrappers put into it.

    >>> plain_name("network._orig_mod.hidden1.weight")
    'network.hidden1.weight'
    """
    for prefix in ("_orig_mod.", "_fsdp_wrapped_module.", "_forward_module."):
        name = name.replace(prefix, "")
    return name


def few(names: Mapping[str, object] | Sequence[str], limit: int = 5) -> str:
    """The first few names, as a text.

    >>> few(["a", "b", "c"], 2)
    'a, b, ...'
    """
    shown = list(names)[:limit]
    return ", ".join(shown) + (", ..." if len(names) > limit else "")


def all_kept(weights: Weights) -> Masks:
    """The masks of the dense network: everything is kept.

    >>> all_kept({"w": torch.zeros(2)})
    {'w': tensor([True, True])}
    """
    return {
        name: sharded.wrap(torch.ones(sharded.local(weight).shape, dtype=torch.bool), weight)
        for name, weight in weights.items()
    }


def kept(masks: Masks) -> int:
    """How many weights the masks keep; if any is sharded, all processes ask together."""
    if not isinstance(masks, dict):  # masks on disk: one at a time is enough
        return sum(int(mask.sum()) for mask in masks.values())
    return sharded.count(*masks.values())


def total(masks: Masks) -> int:
    """How many weights the masks cover."""
    return sum(mask.numel() for mask in masks.values())


def density(masks: Masks) -> float:
    """Kept weights over prunable weights, in [0, 1]: the paper's P_m (Frankle & Carbin 2019, section 2).

    >>> density({"w": torch.tensor([True, False, False, False])})
    0.25
    """
    return kept(masks) / total(masks)


def check_fit(masks: Masks, weights: Weights) -> None:
    """Raise a ValueError that lists names and shapes unless the masks fit the weights one by one.

    >>> check_fit({"w": torch.ones(2, dtype=torch.bool)}, {"w": torch.zeros(3)})
    Traceback (most recent call last):
    ...
    ValueError: the ticket does not fit the model:
      w: the mask is (2,), the weight is (3,)
    Use the ticket with the model that it was found in, or start in another directory.
    """
    problems = [f"{name}: in the ticket only" for name in masks if name not in weights]
    problems += [f"{name}: in the model only" for name in weights if name not in masks]
    problems += [
        f"{name}: the mask is {tuple(mask.shape)}, the weight is {tuple(weights[name].shape)}"
        for name, mask in masks.items()
        if name in weights and mask.shape != weights[name].shape
    ]
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(
            f"the ticket does not fit the model:{lines}\n"
            "Use the ticket with the model that it was found in, or start in another directory."
        )
