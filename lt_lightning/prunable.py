"""Which parameters may be pruned: chosen by the default, by name patterns or by a predicate, with reasons."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from lt_lightning import require
from lt_lightning.layers import layer_weights, why_left
from lt_lightning.masks import Masks, few, matches, plain_name, require_match
from lt_lightning.parametrized import empty_rows, source

Predicate = Callable[[str, nn.Parameter, nn.Module], bool]

Prunable = Sequence[str] | Predicate
"""Which parameters may be pruned: name patterns, or a predicate of (name, parameter, layer)."""


@dataclass(frozen=True, eq=False)
class Row:
    """One parameter in a survey.

    Args:
        name: without the prefixes that `torch.compile` and wrappers add; of tied ones the first.
        parameter: the parameter.
        reason: why it is not pruned, as a short phrase; None if it may be pruned.
    """

    name: str
    parameter: nn.Parameter
    reason: str | None


def checked(prunable: Any) -> Prunable:
    """Name patterns as a list, or a predicate.

    Raises:
        ValueError: for anything else, such as the (module, name) pairs of Lightning's ModelPruning.

    >>> checked("hidden*")
    ['hidden*']
    """
    example = '["*.weight"], or a function of (name, parameter, layer)'
    if callable(prunable):
        return require.function("prunable", prunable, ["name", "parameter", "layer"], example)
    patterns = require.listed("prunable", prunable, example)
    wrong = [each for each in patterns if not isinstance(each, str) or not each.strip("!+ ")]
    if wrong and any(isinstance(each, tuple) for each in wrong):
        raise ValueError(
            f"prunable holds a pair of {type(wrong[0][0]).__name__} and {wrong[0][-1]!r}, as ModelPruning takes them: "
            'name the parameters, prunable=["hidden.weight"], or patterns of their names.'
        )
    if wrong or not patterns:
        raise ValueError(
            f"prunable={prunable!r} must hold patterns of parameter names: prunable={example}; prunable=None "
            "(prune.prunable=null) are the weights of layers."
        )
    return list(patterns)


def find_prunable(module: nn.Module, prunable: Prunable = layer_weights) -> dict[str, nn.Parameter]:
    """The parameters of `module` that may be pruned, in the module's own order, tied ones once.

    Args:
        module: any module; names lose the prefixes that `torch.compile` and wrappers add.
        prunable: a predicate of (name, parameter, layer), or name patterns as in `fnmatch`. Plain patterns choose; one
            that opens with `!` leaves out what it matches, one with `+` adds it to the default. Patterns that only
            leave out or add start from the default. A tied parameter has several names: a pattern may match any, and
            a predicate has to accept all.

    Raises:
        ValueError: if nothing is prunable, or a pattern matches nothing.

    Example:
        >>> list(find_prunable(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)), ["!2.*"]))
        ['0.weight']
    """
    rows = survey(module, prunable)
    found = {row.name: row.parameter for row in rows if row.reason is None}
    if not found:
        raise ValueError(
            f"nothing is prunable: of the {len(rows)} parameters of {type(module).__name__} "
            f"({few([row.name for row in rows])}) none was chosen by prunable={prunable!r}. "
            "Pass lottery(..., prunable=[name patterns]) or a predicate that accepts at least one; "
            "dry_run=True says why each was not."
        )
    return found


def weights_of(module: nn.Module, masks: Masks) -> dict[str, nn.Parameter]:
    """The parameters that masks are for, whether or not they would be chosen now; those that are missing are left out.

    >>> list(weights_of(nn.Linear(2, 2).requires_grad_(False), {"weight": nn.Linear(2, 2).weight, "gone": None}))
    ['weight']
    """
    held = {each.name: each.parameter for each in _held(module)}
    return {name: held[name] for name in masks if name in held}


def survey(module: nn.Module, prunable: Prunable = layer_weights) -> list[Row]:
    """Every parameter of `module` in its own order, and why it is not pruned; arguments and errors as above.

    >>> [(row.name, row.reason) for row in survey(nn.Linear(2, 2))]
    [('weight', None), ('bias', 'bias')]
    """
    held = list(_held(module))
    against = partial(_against, prunable) if callable(prunable) else _by_patterns(list(prunable), held)
    return [Row(each.name, each.parameter, against(each)) for each in held]


def ties(module: nn.Module, masks: Masks) -> dict[str, str]:
    """Further name of a masked parameter that several layers hold → the name that its mask has.

    >>> layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> layers[1].weight = layers[0].weight
    >>> ties(layers, find_prunable(layers))
    {'1.weight': '0.weight'}
    """
    return {name: each.name for each in _held(module) if each.name in masks for name, _ in each.holders[1:]}


def empty_norms(masks: Masks, module: nn.Module) -> dict[str, int]:
    """Name → how many norms that its layer divides by would be zero under the masks; 0/0 is NaN."""
    counts = {name: empty_rows(masks[name], norm_dim) for name, norm_dim in _norms(module) if name in masks}
    return {name: count for name, count in counts.items() if count}


def check_norms(masks: Masks, module: nn.Module) -> None:
    """Raise a ValueError if the masks leave nothing of what a layer divides by."""
    for name, count in empty_norms(masks, module).items():
        raise ValueError(
            f"the masks leave nothing of {count} {'row' if count == 1 else 'rows'} of {name}, by whose norm its layer "
            f'divides: that gives NaN. Leave it out with prunable=["!{name}"], or choose another scope or a higher '
            "density."
        )


def _norms(module: nn.Module) -> Iterator[tuple[str, int]]:
    """(name of a parameter, its `norm_dim`) where there is a norm."""
    for each in _held(module):
        for computed in (source(name, layer) for name, layer in each.holders):
            if computed is not None and computed.norm_dim is not None:
                yield each.name, computed.norm_dim


@dataclass(frozen=True, eq=False)
class _Held:
    """A parameter and where it is held: several times if it is tied."""

    parameter: nn.Parameter
    holders: list[tuple[str, nn.Module]]

    @property
    def name(self) -> str:
        return self.holders[0][0]

    def matches(self, pattern: str) -> bool:
        return any(matches(name, [pattern]) for name, _ in self.holders)


def _held(module: nn.Module) -> Iterator[_Held]:
    modules = dict(module.named_modules())
    found: dict[int, _Held] = {}
    for path, owner in modules.items():
        # What a layer computes from a parametrization is held two floors down, as in 0.parametrizations.weight.
        layer = modules[".".join(path.split(".")[:-2])] if isinstance(owner, ParametrizationList) else owner
        for leaf, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            name = plain_name(f"{path}.{leaf}" if path else leaf)
            found.setdefault(id(parameter), _Held(parameter, [])).holders.append((name, layer))
    yield from found.values()


def _against(predicate: Predicate, held: _Held) -> str | None:
    """Why a predicate refuses a parameter; a tied one has to be accepted in all the modules that hold it."""
    first, *others = [name for name, _ in held.holders]
    for name, layer in held.holders:
        reason = _ask(predicate, name, held.parameter, layer)
        if reason and name != first:
            return f"tied to {name}: {reason}"
        if reason:
            return f"{reason} (tied to {', '.join(others)})" if others else reason
    return None


def _ask(predicate: Predicate, name: str, parameter: nn.Parameter, layer: nn.Module) -> str | None:
    if predicate is layer_weights:
        return why_left(name, parameter, layer)
    return None if predicate(name, parameter, layer) else f"not accepted by {_name(predicate)}"


def _name(predicate: Any) -> str:
    function = getattr(predicate, "func", predicate)
    return getattr(function, "__name__", type(function).__name__)


def _by_patterns(patterns: list[str], held: list[_Held]) -> Callable[[_Held], str | None]:
    marked: Mapping[str, list[str]] = {mark: [p[1:] for p in patterns if p[:1] == mark] for mark in "!+"}
    chosen = [pattern for pattern in patterns if pattern[:1] not in marked]
    names = [name for each in held for name, _ in each.holders]
    for pattern in (*chosen, *marked["+"], *marked["!"]):
        require_match(pattern, names)
    if chosen and marked["+"]:
        raise ValueError(
            f"prunable={_quoted(patterns)} both chooses and adds to the default: write {_quoted('+' + chosen[0])} to "
            f"add that to the default as well, or {_quoted(marked['+'][0])} to choose these alone."
        )

    def against(each: _Held) -> str | None:
        refusing = [pattern for pattern in marked["!"] if each.matches(pattern)]
        if refusing:
            return f"left out by {_quoted('!' + refusing[0])}"
        if any(each.matches(pattern) for pattern in chosen + marked["+"]):
            return None
        return f"not chosen by prunable={_quoted(patterns)}" if chosen else _against(layer_weights, each)

    return against


def _quoted(value: str | list[str]) -> str:
    return json.dumps(value, ensure_ascii=False)
