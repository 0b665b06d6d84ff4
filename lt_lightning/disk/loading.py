"""Loading checkpoints, files or directories in parts, under any strategy and on any number of processes."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.optim import Optimizer

from lt_lightning.disk import parts
from lt_lightning.disk.rundir import Checkpoint, model_state
from lt_lightning.masks import plain_name
from lt_lightning.processes import broadcast
from lt_lightning.sharded import local, spread
from lt_lightning.strategies import is_sharded


def adapt(trainer: L.Trainer) -> None:
    """Let a Trainer's strategy load what a fit under another one has saved, and optimizers that had no state yet."""
    strategy: Any = trainer.strategy
    theirs = partial(type(strategy).load_checkpoint, strategy)
    strategy.load_checkpoint = partial(_load_sharded, strategy) if is_sharded(strategy) else partial(_load, theirs)


def _load(theirs: Callable[..., dict[str, Any]], path: Any, weights_only: bool | None = None) -> dict[str, Any]:
    """Load whole tensors; a file is unpickled only where the user has asked for it (`fit(weights_only=False)`)."""
    if not Path(path).is_dir():
        return theirs(path, weights_only=weights_only is not False)
    content = dict(Checkpoint(Path(path)))
    states = [_by_position(each, dict(each["state"])) if each else each for each in content["optimizer_states"]]
    return content | {"state_dict": dict(content["state_dict"]), "optimizer_states": states}


def _load_sharded(strategy: Any, path: Any, weights_only: bool | None = None) -> dict[str, Any]:
    """Load into the parts that this process holds; call on every process. Returns everything else."""
    checkpoint = Checkpoint(Path(broadcast(path)), mapped=True)
    module, content = strategy.model, dict(checkpoint)
    targets = get_model_state_dict(module)
    read_into(checkpoint, {name: target for name, target in targets.items() if isinstance(target, Tensor)})
    module.load_state_dict(targets, strict=strategy.lightning_module.strict_loading)
    for optimizer, state in zip(strategy.optimizers, content.get("optimizer_states", ()), strict=False):
        optimizer.load_state_dict(_optimizer_state(module, optimizer, state))
    return {key: value for key, value in content.items() if key not in ("state_dict", "optimizer_states")}


def read_into(checkpoint: Checkpoint, targets: Mapping[str, Tensor]) -> None:
    """Read weights and buffers into tensors, sharded ones too; call on every process.

    Raises:
        ValueError: if the checkpoint lacks some of them.
    """
    state = model_state(checkpoint)
    names = {plain_name(name): name for name in state}
    missing = sorted(set(targets) - set(names))
    if missing:
        raise ValueError(f"{checkpoint.path} holds no {', '.join(missing)}: it was saved by another model.")
    if isinstance(state, parts.Stored):
        parts.load_into(state, {names[name]: target for name, target in targets.items()})
        return
    with torch.no_grad():
        for name, target in targets.items():
            local(target).copy_(local(spread(state[names[name]], target)))


def _optimizer_state(module: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of an optimizer in the order of its parameters, sharded as they are."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if isinstance(state["state"], parts.Stored):
        parameters = {plain_name(name): parameter for name, parameter in module.named_parameters()}
        return _by_position(state, parts.load_like(state["state"], parameters))
    saved = (number for group in state["param_groups"] for number in group["params"])
    sharded = {
        number: {key: _like(value, parameter) for key, value in state["state"][number].items()}
        for number, parameter in zip(saved, held, strict=True)
        if number in state["state"]
    }
    return {"state": sharded, "param_groups": state["param_groups"]}


def _like(value: Any, parameter: Tensor) -> Any:
    return spread(value, parameter) if isinstance(value, Tensor) and value.shape == parameter.shape else value


def _by_position(state: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The state of an optimizer by the positions of its parameters instead of their names, as optimizers load it."""
    positions = {name: number for number, name in enumerate(_names(state))}
    groups = [{**group, "params": [positions[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {positions[name]: value for name, value in values.items()}, "param_groups": groups}


def _names(state: Mapping[str, Any]) -> Iterator[str]:
    return (name for group in state["param_groups"] for name in group["params"])
