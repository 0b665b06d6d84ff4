"""Weights that a layer computes from other parameters: which of those a mask may act on.

Weight norm makes `weight` from a direction and a length, spectral norm from one parameter; in both a zero of the
parameter is a zero of the weight. Of other parametrizations nobody knows.
"""

import re
from typing import NamedTuple, cast

from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_PARAMETER = re.compile(r"(?:.*\.)?parametrizations\.(?P<tensor>[^.]+)\.(?P<part>original\d*)")

WHOLE = -1
"""As a `norm_dim`: the norm of the whole tensor."""


class Source(NamedTuple):
    """A parameter from which a layer computes a tensor.

    Args:
        tensor: name of the computed tensor within its layer, such as "weight".
        norm_dim: the norm that is divided by runs over all dimensions but this one; `WHOLE`: over all; None: there is
            no such norm.
        reason: why a mask must not act on this parameter; None if it may.
    """

    tensor: str
    norm_dim: int | None = None
    reason: str | None = None


def source(name: str, layer: nn.Module) -> Source | None:
    """What the layer computes from this parameter of it; None: nothing, it is an ordinary one.

    >>> source("0.parametrizations.weight.original1", parametrizations.weight_norm(nn.Linear(3, 2)))
    Source(tensor='weight', norm_dim=0, reason=None)
    """
    found = _PARAMETER.fullmatch(name)
    if found:
        chains = cast(nn.ModuleDict, layer.parametrizations)
        return _new_style(found["tensor"], found["part"], list(chains[found["tensor"]].children()))
    return _old_style(name.rpartition(".")[2], layer)


def _new_style(tensor: str, part: str, chain: list[nn.Module]) -> Source:
    kinds = [type(each) for each in chain]
    if kinds == [parametrizations._WeightNorm]:
        return Source(tensor, cast(int, chain[0].dim)) if part == "original1" else _length(tensor)
    if kinds == [parametrizations._SpectralNorm]:
        return Source(tensor, WHOLE)
    named = " and ".join(kind.__name__.lstrip("_") for kind in kinds)
    return Source(tensor, reason=f"its parametrization ({named}) does not keep zeros, as far as we know")


def _old_style(leaf: str, layer: nn.Module) -> Source | None:
    """`torch.nn.utils.weight_norm` and `spectral_norm` hang a hook on the layer and rename the parameter."""
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and leaf in (f"{hook.name}_v", f"{hook.name}_g"):
            return Source(hook.name, hook.dim) if leaf.endswith("_v") else _length(hook.name)
        if isinstance(hook, SpectralNorm) and leaf == f"{hook.name}_orig":
            return Source(hook.name, WHOLE)
    return None


def _length(tensor: str) -> Source:
    return Source(tensor, reason=f"the length in the weight norm of {tensor}")


def empty_rows(mask: Tensor, norm_dim: int) -> int:
    """How many of the norms that are divided by would be zero: 0/0 is NaN, and so is all that is computed from it.

    >>> from torch import tensor
    >>> empty_rows(tensor([[True, False], [False, False]]), 0)
    1
    """
    rows = mask.reshape(1, -1) if norm_dim == WHOLE else mask.movedim(norm_dim, 0).reshape(mask.shape[norm_dim], -1)
    return int((~rows.any(1)).sum())
