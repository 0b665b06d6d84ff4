"""Which parameters a module trains: as it was made, and as it stands in the middle of a fit.

Callbacks and hooks freeze and thaw parameters while a fit runs. What is prunable does not follow them: it depends on
how the module was made, before any callback's `setup`, and on what its own `setup` and `configure_model` do. A
checkpoint holds no `requires_grad`, so the ticket saves what is switched off, and a restart switches it off again.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning as L
from torch import nn

from lt_lightning.masks import plain_name

_AS_MADE = "_lt_lightning_as_made"


def switches(module: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """(name, owner, attribute) of all that freezing changes: `requires_grad`, `training`, `track_running_stats`.

    >>> [name for name, *_ in switches(nn.BatchNorm1d(2, affine=False))]
    ['training', 'track_running_stats']
    """
    for name, parameter in module.named_parameters():
        yield plain_name(f"{name}.requires_grad"), parameter, "requires_grad"
    for path, each in module.named_modules():
        for attribute in ("training", "track_running_stats"):
            if hasattr(each, attribute):
                yield plain_name(f"{path}.{attribute}".lstrip(".")), each, attribute


def switched_off(module: nn.Module) -> list[str]:
    """The names of what is switched off: frozen parameters, and layers in evaluation mode or without statistics.

    >>> switched_off(nn.Linear(2, 2).requires_grad_(False))
    ['weight.requires_grad', 'bias.requires_grad']
    """
    return [name for name, owner, attribute in switches(module) if not getattr(owner, attribute)]


def switch_off(module: nn.Module, names: Iterable[str]) -> None:
    """Switch off what is named, and everything else on.

    >>> layer = nn.Linear(2, 2)
    >>> switch_off(layer, ["bias.requires_grad"])
    >>> layer.weight.requires_grad, layer.bias.requires_grad
    (True, False)
    """
    off = set(names)
    _switch(module, {name: name not in off for name, *_ in switches(module)})


@dataclass(frozen=True)
class Standing:
    """How a fit stands, beyond what Lightning's checkpoints hold.

    Args:
        off: the names of what is switched off.
        groups: of each optimizer, the names of the parameters in each of its groups; empty if none was added.
    """

    off: list[str]
    groups: list[list[list[str]]]

    def add_groups(self, trainer: Any, module: nn.Module) -> None:
        """Add the groups that were added to optimizers while the fit ran, so that their states can be loaded."""
        held = {plain_name(name): parameter for name, parameter in module.named_parameters()}
        for optimizer, groups in zip(trainer.optimizers, self.groups, strict=False):
            for names in groups[len(optimizer.param_groups) :]:
                optimizer.add_param_group({"params": [held[name] for name in names]})


def standing(module: L.LightningModule, counts: Sequence[int]) -> dict[str, Any]:
    """What `Standing` is made of, now; the counts are those of groups when the optimizers were made."""
    optimizers: Any = module.trainer.optimizers
    if [len(each.param_groups) for each in optimizers] == list(counts):
        return {"off": switched_off(module), "groups": []}
    names = {parameter: plain_name(name) for name, parameter in module.named_parameters()}
    groups = [[[names[p] for p in group["params"]] for group in each.param_groups] for each in optimizers]
    return {"off": switched_off(module), "groups": groups}


def note(module: nn.Module) -> None:
    """Note how the module was made, or bring it back there if a fit of it has begun before. Call before any `setup`."""
    if _AS_MADE in vars(module):
        _switch(module, vars(module)[_AS_MADE])
    vars(module)[_AS_MADE] = _now(module)


def was_fitted(module: nn.Module) -> bool:
    """Whether a fit of the module has begun in this process.

    >>> was_fitted(nn.Linear(2, 2))
    False
    """
    return _AS_MADE in vars(module)


def come_back(module: nn.Module) -> None:
    """Bring a module that was fitted before, and may have been frozen since, back to how it was made."""
    _switch(module, vars(module).pop(_AS_MADE, {}))


@contextmanager
def by_itself(module: nn.Module) -> Iterator[None]:
    """Count what a block freezes, thaws or makes as the module's own doing."""
    before = _now(module)
    yield
    changed = {name: value for name, value in _now(module).items() if before.get(name) != value}
    vars(module).get(_AS_MADE, {}).update(changed)


@contextmanager
def as_made(module: nn.Module) -> Iterator[None]:
    """Let a module look as it was made while a block runs."""
    before = _now(module)
    _switch(module, vars(module).get(_AS_MADE, {}))
    try:
        yield
    finally:
        _switch(module, before)


def _now(module: nn.Module) -> dict[str, bool]:
    return {name: getattr(owner, attribute) for name, owner, attribute in switches(module)}


def _switch(module: nn.Module, values: Mapping[str, bool]) -> None:
    for name, owner, attribute in switches(module):
        if values.get(name, getattr(owner, attribute)) != getattr(owner, attribute):
            setattr(owner, attribute, values[name])
