"""A ticket that was found elsewhere, trained here: on other data, with another optimizer, under a new head."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lt_lightning.disk.checksum import digest_of
from lt_lightning.disk.parts import Stored
from lt_lightning.exchange.ticketfile import TicketFile, load_ticket, read
from lt_lightning.fit.hooks import overrides
from lt_lightning.fresh import Model, fresh_module
from lt_lightning.layers import layer_weights
from lt_lightning.lottery import lottery
from lt_lightning.masks import Masks, Scores, few, plain_name
from lt_lightning.masks import density as density_of
from lt_lightning.prunable import find_prunable
from lt_lightning.pruning import in_parts
from lt_lightning.rewinds import State, to_point
from lt_lightning.seeding import derive
from lt_lightning.sharded import spread
from lt_lightning.ticket import Ticket, unwrap_compiled

_OWN = ("schedule", "density", "criterion", "scope", "rewind", "gradual", "stop_when")
"""Arguments of `lottery` that the ticket takes the place of."""


def transfer(
    model: Model,
    *,
    path: str | Path | None,
    weights: str = "ticket",
    rounds: int = 1,
    dense: bool = False,
    **arguments: Any,
) -> Iterator[Ticket]:
    """Train a saved ticket: a lottery of one round, whose masks come from a file instead of a criterion.

    Round 0 ends where it begins (`dense=True` trains it, to compare), round 1 trains under the masks. They are found by
    parameter name. A prunable parameter that the ticket does not have, or has in another shape, such as a new head,
    stays dense; a warning lists these, and what of the ticket is of no use here.

    Args:
        model: as for `lottery`.
        path: of a `ticket.safetensors`.
        weights: "ticket": round 1 starts from the ticket's weights and buffers, by name and shape, and where it has
            none from the fresh ones; "fresh": from fresh ones alone, drawn from `seed`.
        rounds: 1.
        dense: whether the dense network is trained too, as round 0.
        **arguments: of `lottery`: directory, controls, prunable, monitor, seed, ... but none that chooses masks.

    Yields:
        A `Ticket`, as `lottery` does.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no ticket, keeps everything, or fits nothing of the model; for arguments that cannot work.

    Source: Morcos et al. 2019 (arXiv 1906.02773), section 3: tickets across data sets and optimizers.

    Example:
        ```python
        for ticket in transfer(make_model, path="runs/mine/round-05/ticket.safetensors", directory="runs/other"):
            trainer = L.Trainer(max_epochs=20, default_root_dir=ticket.directory, callbacks=[ticket])
            trainer.fit(ticket.model, other_data, ckpt_path=ticket.ckpt_path)
        ```
    """
    _check(weights, rounds, arguments)
    if path is None:
        raise ValueError(
            "which ticket? Pass path=..., prune.path=... on the command line: a round-NN/ticket.safetensors."
        )
    saved = _opened(Path(path))
    source: dict[str, Any] = {"path": str(path), "sha256": digest_of(Path(path))}
    _look_at_fit(saved, model, arguments, str(path))
    return lottery(
        model,
        rounds=1,
        density=density_of(saved.masks),
        scope=partial(_saved_masks, **source),
        rewind=partial(_saved_weights, **source) if weights == "ticket" else to_point,
        dense=dense,
        **arguments,
    )


def _check(weights: str, rounds: int, arguments: Mapping[str, Any]) -> None:
    if weights not in ("ticket", "fresh"):
        raise ValueError(
            f'weights={weights!r} must be "ticket" or "fresh": which weights does round 1 start from (prune.weights)?'
        )
    if rounds != 1:
        raise ValueError(f"rounds={rounds}: a saved ticket is trained in one round, so leave rounds at 1.")
    own = [name for name in _OWN if arguments.get(name) is not None]
    if own:
        raise ValueError(f"{', '.join(own)}: masks come from the ticket here, so leave that out, or use lottery(...).")
    step = arguments.get("rewind_step", 0)
    if weights == "ticket" and str(step).split()[0] != "0":
        raise ValueError(
            f"rewind_step={step!r}: round 1 starts from the ticket's weights, so leave it at 0, or choose "
            'weights="fresh".'
        )


def _opened(path: Path) -> TicketFile:
    if not path.is_file():
        there = (
            sorted(map(str, path.rglob("ticket.safetensors")), key=lambda each: (len(each), each))
            if path.is_dir()
            else []
        )
        hint = f"Name one of its tickets: {few(there)}." if there else "Name a round-NN/ticket.safetensors."
        raise FileNotFoundError(f"path={str(path)!r} is no ticket file (prune.path on the command line). {hint}")
    saved = read(path)
    if density_of(saved.masks) == 1:
        raise ValueError(
            f"{path} keeps every weight: it is a ticket of round {saved.round}. Name one of a later round."
        )
    return saved


@dataclass(frozen=True)
class Fit:
    """How the masks of a ticket fit prunable parameters.

    Args:
        used: names of the parameters that get a mask.
        dense: those that the ticket does not have, or has in another shape.
        unused: masks of the ticket that no parameter gets.
    """

    used: list[str]
    dense: list[str]
    unused: list[str]


def fit(masks: Masks, parameters: Mapping[str, Tensor]) -> Fit:
    """Compare the masks of a ticket with the prunable parameters of a model, by name and shape.

    Raises:
        ValueError: if no mask fits.

    >>> import torch
    >>> masks = {"body": torch.ones(2, 2).bool(), "head": torch.ones(3, 2).bool()}
    >>> fit(masks, {"body": torch.zeros(2, 2), "head": torch.zeros(5, 2)})
    Fit(used=['body'], dense=['head'], unused=['head'])
    """
    used = [name for name, each in parameters.items() if name in masks and masks[name].shape == each.shape]
    if not used:
        raise ValueError(
            f"the ticket fits nothing of the model: it has masks for {_shapes(masks)}, and the model's prunable "
            f"parameters are {_shapes(parameters)}. Names and shapes must be the same: choose the model that it was "
            "found in, or one with the same body."
        )
    return Fit(used, [n for n in parameters if n not in used], [n for n in masks if n not in used])


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return few([f"{name} {tuple(tensors[name].shape)}" for name in tensors])


def _look_at_fit(saved: TicketFile, model: Model, arguments: Mapping[str, Any], path: str) -> None:
    """Say before any training what fits; a model that makes its layers later is looked at when masks are drawn."""
    seed = arguments.get("seed_init")
    module = unwrap_compiled(fresh_module(model, derive(arguments.get("seed", 0) if seed is None else seed, "init")))
    if overrides(module, "configure_model") or next(module.parameters(), None) is None:
        return
    prunable = arguments.get("prunable")
    prunable = [prunable] if isinstance(prunable, str) else prunable
    found = fit(saved.masks, find_prunable(module, layer_weights if prunable is None else prunable))
    if found.dense or found.unused:
        rank_zero_warn(
            f"{path}: {len(found.used)} masks fit the model. Without one, so dense: {few(found.dense, 20) or 'none'}. "
            f"Masks of no use here: {few(found.unused, 20) or 'none'}."
        )


def _saved_masks(scores: Scores, masks: Masks, density: float, *, path: str, sha256: str) -> Masks:
    """A scope that keeps what a ticket keeps, whatever the scores, and all where it has no mask."""
    _require_same(path, sha256)
    saved = read(Path(path)).masks
    used = set(fit(saved, masks).used)
    return {name: spread(saved[name], mask) if name in used else mask for name, mask in masks.items()}


def _saved_weights(point: State, trained: State, *, path: str, sha256: str) -> State:
    """A rewind to the point, with the weights and buffers of a ticket where name and shape are the same."""
    if isinstance(point["state_dict"], Stored):
        raise ValueError(in_parts("weights='ticket'"))
    _require_same(path, sha256)
    saved = {plain_name(name): value for name, value in load_ticket(path).state.items()}
    kinds = [key for key in ("state_dict", "current_model_state") if key in point]
    return {**point, **{key: _with(point[key], saved) for key in kinds}}


def _with(state: Mapping[str, Any], saved: Mapping[str, Tensor]) -> dict[str, Any]:
    fitting = {
        name: saved[plain_name(name)].to(value.dtype)
        for name, value in state.items()
        if isinstance(value, Tensor) and plain_name(name) in saved and saved[plain_name(name)].shape == value.shape
    }
    return {**state, **fitting}


def _require_same(path: str, sha256: str) -> None:
    if not Path(path).is_file() or digest_of(Path(path)) != sha256:
        raise ValueError(f"{path} is not any more the ticket that it was when the run began: put it back.")
