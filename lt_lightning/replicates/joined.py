"""Checkpoints of several seeds as one of stacked weights, and taken apart again."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

OF_ALL = ("step", "mu_product", "eta", "mu")
"""What optimizers keep once for a whole parameter: it depends on the number of steps alone."""


def joined(checkpoints: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Checkpoints of seeds that stand at one place, as one of stacked weights; `own` takes them apart again."""
    first = dict(checkpoints[0])
    first["callbacks"] = {}
    states = [each["state_dict"] for each in checkpoints]
    first["state_dict"] = {name: torch.stack([each[name] for each in states]) for name in states[0]}
    if "optimizer_states" in first:
        pairs = zip(*(each["optimizer_states"] for each in checkpoints), strict=True)
        first["optimizer_states"] = [_joined_states(each) for each in pairs]
    if "loops" in first:
        loops = [each["loops"]["fit_loop"] for each in checkpoints]
        first["loops"] = {"fit_loop": _with_loaders(loops[0], [state for each in loops for state in _loaders(each)])}
    return first


def own(checkpoint: dict[str, Any], number: int) -> dict[str, Any]:
    """The checkpoint of one seed, out of one of its own weights and of the stacked optimizer and loaders."""
    for name, value in checkpoint["state_dict"].items():
        checkpoint["state_dict"][name] = value.clone()  # of a view torch.save would write all that it is a view of
    if "optimizer_states" in checkpoint:
        checkpoint["optimizer_states"] = [_own_state(each, number) for each in checkpoint["optimizer_states"]]
    if "loops" in checkpoint:
        loop = checkpoint["loops"]["fit_loop"]
        loaders = _loaders(loop)
        if len(loaders) > 1:  # at the end of the fit each seed has its own loader alone
            checkpoint["loops"]["fit_loop"] = _with_loaders(loop, [loaders[number]])
    return checkpoint


def _loaders(loop: Mapping[str, Any]) -> Sequence[Any]:
    """Where the loaders stand, in the state of Lightning's loop of a fit."""
    return loop["state_dict"].get("combined_loader", ())


def _with_loaders(loop: Mapping[str, Any], loaders: list[Any]) -> dict[str, Any]:
    return {**loop, "state_dict": {**loop["state_dict"], **({"combined_loader": loaders} if loaders else {})}}


def _joined_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def values(parameter: Any, key: str) -> Any:
        each = [state["state"][parameter][key] for state in states]
        return torch.stack(each) if isinstance(each[0], Tensor) and key not in OF_ALL else each[0]

    joint = {n: {key: values(n, key) for key in state} for n, state in states[0]["state"].items()}
    return {**states[0], "state": joint}


def _own_state(state: Mapping[str, Any], number: int) -> dict[str, Any]:
    def value(key: str, value: Any) -> Any:
        return value[number].clone() if isinstance(value, Tensor) and key not in OF_ALL else copy.copy(value)

    mine = {n: {key: value(key, each) for key, each in values.items()} for n, values in state["state"].items()}
    return {**state, "state": mine}
