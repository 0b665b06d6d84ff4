"""Masks and starting weights into a model that somebody else has made."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lt_lightning import sharded
from lt_lightning.masks import Masks, few, matches, plain_name, require_match

T = TypeVar("T")


def apply(model: nn.Module, masks: Masks, state: Mapping[str, Tensor], *, complete: bool = False) -> dict[str, Tensor]:
    """Load weights and buffers into a model, and set what the masks prune to zero; all of it, or nothing.

    Args:
        model: any module: compiled, sharded and lazy ones too. A tied weight is masked in all layers that hold it.
        masks: parameter name → bool tensor of its shape, whole.
        state: name → weight or buffer, whole; what is missing here the model keeps.
        complete: refuse a state in which anything of the model's is missing.

    Returns:
        The masks, on the devices of their parameters and sharded as they are, in the order of `masks`.

    Raises:
        ValueError: if a mask or a tensor has no place in the model, or one of another shape.

    >>> import torch
    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = apply(model, {"weight": torch.tensor([[True, False]])}, {"weight": torch.tensor([[3.0, 4.0]])})
    >>> model.weight.tolist()
    [[3.0, 0.0]]
    """
    sharded.reshard(model)
    found = model.state_dict(keep_vars=True)
    keys = {plain_name(key): key for key, value in found.items() if isinstance(value, Tensor)}
    _check(state, {name: found[key] for name, key in keys.items()}, complete)
    _check(masks, _parameters(model))
    _check_lazy(masks, state, _parameters(model))
    values = {keys[name]: sharded.spread(value, found[keys[name]]) for name, value in state.items()}
    model.load_state_dict(values, strict=False)
    parameters = _parameters(model)  # lazy ones have just become others
    firsts = {parameters[name]: name for name in reversed(list(masks))}  # a tied one has several
    chosen = {name: masks[name] for name in masks if firsts[parameters[name]] == name}
    laid = {name: sharded.spread(mask, parameters[name]).to(parameters[name].device) for name, mask in chosen.items()}
    for name, mask in laid.items():
        sharded.local(parameters[name]).masked_fill_(~sharded.local(mask), 0)
    return laid


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name, tied ones under each of their names."""
    return {plain_name(name): each for name, each in model.named_parameters(remove_duplicate=False)}


def select(tensors: Mapping[str, T], only: Sequence[str] | None, prefix: str) -> dict[str, T]:
    """What is chosen of a ticket's tensors, under the names that the model has for them.

    Args:
        tensors: name → anything.
        only: patterns over the model's names; one that opens with `!` leaves out what it matches; None: all.
        prefix: what the ticket's names have in front; what does not open with it is left out.

    Raises:
        ValueError: if nothing opens with the prefix.

    >>> select({"network.hidden.weight": 1, "network.head.weight": 2}, ["!head*"], "network.")
    {'hidden.weight': 1}
    """
    plain = {plain_name(name): value for name, value in tensors.items()}
    named = {name.removeprefix(prefix): value for name, value in plain.items() if name.startswith(prefix)}
    if tensors and not named:
        raise ValueError(f"no name in the ticket opens with prefix={prefix!r}; they are {few(list(plain), 20)}.")
    patterns = [] if only is None else list(only)
    chosen = [pattern for pattern in patterns if not pattern.startswith("!")]
    left = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    return {
        name: value
        for name, value in named.items()
        if (not chosen or matches(name, chosen)) and not matches(name, left)
    }


def check_patterns(only: Sequence[str] | None, names: Sequence[str]) -> None:
    """Raise a ValueError if a pattern matches none of the names, or `only` is a text alone."""
    if isinstance(only, str):
        raise ValueError(f"only={only!r} must be a list of patterns: only=[{only!r}].")
    for pattern in only or ():
        require_match(pattern.removeprefix("!"), names)


def _check(tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor], complete: bool = False) -> None:
    """Raise a ValueError that lists names and shapes unless every tensor has a target of its shape.

    Args:
        tensors: of the ticket.
        targets: of the model; lazy ones take any shape.
        complete: whether every target must have a tensor too.
    """
    foreign = [name for name in tensors if name not in targets]
    problems = [f"{name}: in the ticket only" for name in foreign]
    problems += [f"{name}: in the model only" for name in targets if complete and name not in tensors]
    problems += [
        f"{name}: {tuple(value.shape)} in the ticket, {tuple(targets[name].shape)} in the model"
        for name, value in tensors.items()
        if name in targets and not is_lazy(targets[name]) and value.shape != targets[name].shape
    ]
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(f"the ticket does not fit the model:{lines}\n{_advice(foreign, list(targets))}")


def _check_lazy(masks: Masks, state: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    lazy = [name for name in masks if is_lazy(parameters[name]) and name not in state]
    if lazy:
        raise ValueError(f"{few(lazy)} has no shape yet, so there is nothing to mask: run the model on a batch first.")


def _advice(foreign: Sequence[str], own: Sequence[str]) -> str:
    """What may help: the model is a part of that of the ticket, or the other way round."""
    for name in foreign:
        for target in own:
            if name.endswith(f".{target}"):
                return f'The model seems to be a part of that of the ticket: pass prefix="{name.removesuffix(target)}".'
            if target.endswith(f".{name}"):
                return f"The ticket seems to be of a part of the model: give model.{target.removesuffix('.' + name)}."
    return (
        "Give the model that it was found in, or leave out what does not fit: "
        'only=["!head*"] leaves out what matches, only=["hidden*"] takes nothing else.'
    )
