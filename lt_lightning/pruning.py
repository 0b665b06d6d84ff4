"""From a trained round to the next ticket on disk."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lt_lightning.changes import Change, Weight
from lt_lightning.criteria import Evidence
from lt_lightning.disk import checkpoints
from lt_lightning.disk.loading import read_into
from lt_lightning.disk.parts import Stored
from lt_lightning.disk.rundir import MARK, TICKET, ArmDirectory, Checkpoint, model_state
from lt_lightning.exchange.ticketfile import TicketFile, read, tensors_of
from lt_lightning.fit import position
from lt_lightning.fit.probe import probe
from lt_lightning.identity import mark
from lt_lightning.masks import Masks, plain_name
from lt_lightning.plan import Plan, control_name, unwrap
from lt_lightning.processes import broadcast, is_writer
from lt_lightning.prunable import check_norms, empty_norms, ties, weights_of
from lt_lightning.rewinds import Changed, State
from lt_lightning.scopes import emptied, require_pruned, select
from lt_lightning.seeding import generator
from lt_lightning.sharded import any_sharded


def write_dense(plan: Plan, masks: Masks, module: nn.Module) -> None:
    """Write the ticket of round 0: everything is kept, and its weights are those of the rewind point."""
    state = tensors_of(model_state(Checkpoint(plan.directory.rewind_point))) if is_writer() else {}
    ticket = TicketFile(masks, state, start="fresh", config=plan.fingerprint, tied=ties(module, masks))
    ticket.write(plan.directory.arm(0).ticket)


def draw_next(plan: Plan, round: int, masks: Masks, trainer: L.Trainer) -> None:
    """Select the next round's masks from the trained module and write its ticket.

    Under `gradual` that round starts with the masks that there are, and tightens them itself.

    Call on one process; if masks are sharded on all, which select together while one writes.

    Raises:
        ValueError: if the trained weights cannot be ranked, or the masks would make a weight norm NaN; the weights
            are kept.
    """
    arm = plan.directory.arm(round)
    together = any_sharded(masks)
    in_use = _in_use(plan.directory.arm(round + 1))
    if broadcast(in_use) if together else in_use:
        return
    try:
        if together:
            _require_no_change(plan, arm)
        chosen = masks if plan.gradual else _choose(plan, round, masks, trainer)
        if round == plan.rounds and empty_norms(chosen, trainer.lightning_module):
            return  # nobody has asked for that round; whoever does is told
        check_norms(chosen, trainer.lightning_module)
    except ValueError as error:
        raise ValueError(f"no ticket can be drawn from round {round}: {error} Its weights: {arm.final}") from error
    target = plan.directory.arm(round + 1) if round < plan.rounds else ArmDirectory(arm.next)
    start, state = _write_start(plan, arm, target, round + 1, chosen) if is_writer() else ("", {})
    tied = ties(trainer.lightning_module, chosen)
    ticket = TicketFile(chosen, state, round + 1, start=start, config=plan.fingerprint, tied=tied)
    ticket.write(target.ticket)


def _choose(plan: Plan, round: int, masks: Masks, trainer: L.Trainer) -> Masks:
    density = plan.schedule(round + 1)
    scores = dict(plan.criterion(gather_evidence(plan, round, masks, trainer)))
    chosen = select(scores, masks, density, plan.scope)
    if round == 0:
        require_pruned(chosen, density)
    warn_of_emptied(chosen, masks, round + 1)
    return chosen


def warn_of_emptied(chosen: Masks, masks: Masks, round: int) -> None:
    """Warn of layers of which nothing is kept: nothing gets through them, however well the others are chosen."""
    for name, size in emptied(chosen, masks).items():
        rank_zero_warn(
            f"nothing is kept of {name} in round {round}: 0 of {size:,} weights. scope=partial(globally, least=0.01) "
            f'keeps a hundredth of every layer (prune.scope.least=0.01), prunable=["!{name}"] leaves it dense.'
        )


def write_tightened(arm: ArmDirectory, masks: Masks) -> None:
    """Put the masks that a round has ended with into its ticket file."""
    before = read(arm.ticket, state=True)
    warn_of_emptied(masks, before.masks, before.round)
    replace(before, masks=masks).write(arm.ticket)


def _in_use(arm: ArmDirectory) -> bool:
    """Whether a fit has begun with the ticket there; it stays, should this round be trained again."""
    if not (arm.done.exists() or arm.last.exists()) or not arm.ticket.exists():
        return False
    return arm.start.exists() or read(arm.ticket).start != "file"


def _write_start(
    plan: Plan, arm: ArmDirectory, target: ArmDirectory, round: int, masks: Masks
) -> tuple[str, Mapping[str, Tensor]]:
    """Where the next round starts, as the ticket file words it, and with which weights and buffers."""
    point = Checkpoint(plan.directory.rewind_point)
    start = plan.rewind(point, Checkpoint(arm.last))
    if start is None:
        return "fresh", {}
    if isinstance(start, Changed):
        start = changed(plan, point, start.change, round, masks)
    if start is not point:
        target.path.mkdir(parents=True, exist_ok=True)
        own = mark(plan, round, TICKET, target.start.name)
        checkpoints.write({**start, MARK: own}, target.start)
    return "point" if start is point else "file", tensors_of(model_state(start))


def _require_no_change(plan: Plan, arm: ArmDirectory) -> None:
    """Raise a ValueError, on every process, if the rewind changes weights that lie in parts."""
    if isinstance(plan.rewind(Checkpoint(plan.directory.rewind_point), Checkpoint(arm.last)), Changed):
        raise ValueError(in_parts(f"the rewind {control_name(plan.rewind)}"))


def changed(plan: Plan, start: Checkpoint, change: Change, round: int, masks: Masks) -> State:
    """A checkpoint with other prunable weights, and everything else as it was.

    Raises:
        ValueError: if the checkpoint lies in parts, as under FSDP2.
    """
    state = model_state(start)
    if isinstance(state, Stored):
        raise ValueError(in_parts(control_name(change)))
    names = {plain_name(name): name for name in state}
    first = _by_plain_name(model_state(Checkpoint(_first_point(plan, "a control or rewind that changes weights"))))
    draws = generator(plan.seed, "change", control_name(unwrap(change)), round)
    weights: dict[str, Tensor] = {}
    for name, mask in masks.items():
        old = state[names[name]]
        new = change(Weight(old, first[name], mask, draws))
        weights |= dict.fromkeys((each for each, value in state.items() if _is_same(value, old)), new)  # tied ones too
    kinds = [key for key in ("state_dict", "current_model_state") if key in start]
    return {**start, **{key: {**start[key], **weights} for key in kinds}}


def _first_point(plan: Plan, what: str) -> Path:
    """The point at step 0, whose weights something asks for."""
    point, maker = plan.directory.point(0), plan.directory.arm(0).done
    if not point.exists():
        raise FileNotFoundError(
            f"{point} is missing, whose weights {what} looks at. Put it back, or remove {maker} and run again: round 0 "
            "is trained again then, and no other."
        )
    return point


def _by_plain_name(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {plain_name(name): value for name, value in state.items()}


def _is_same(one: Any, other: Tensor) -> bool:
    """Whether two tensors of a state lie at one place in memory."""
    return isinstance(one, Tensor) and one.data_ptr() == other.data_ptr() and one.shape == other.shape


def in_parts(what: str) -> str:
    """What to say of a change of weights under a sharded strategy."""
    return (
        f"{what} changes the weights that a round starts from, which is not possible where checkpoints lie in parts: "
        'train under strategy="ddp" or on one device.'
    )


def gather_evidence(plan: Plan, round: int, masks: Masks, trainer: L.Trainer) -> Evidence:
    """The evidence of a fit that has just ended."""
    module = trainer.lightning_module
    parameters = weights_of(module, masks)

    def batches() -> Iterator[Any]:
        position.return_to_start(trainer, plan.seed_data)
        for batch in cast(Iterable[Any], trainer.train_dataloader):
            batch = trainer.precision_plugin.convert_input(batch)
            batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
            yield trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    def read(path: Path) -> dict[str, Tensor]:
        if any_sharded(parameters):
            targets = {name: torch.empty_like(parameter.detach()) for name, parameter in parameters.items()}
            read_into(Checkpoint(path, mapped=True), targets)
            return targets
        state = _by_plain_name(model_state(Checkpoint(path)))
        return {name: state[name] for name in parameters}

    def trained() -> dict[str, Tensor]:
        found = {name: parameter.detach() for name, parameter in parameters.items()}
        return found if any_sharded(found) else {name: weight.cpu() for name, weight in found.items()}

    return Evidence(
        round=round,
        masks=masks,
        density=plan.schedule(round + 1),
        scope=plan.scope,
        seed=plan.seed,
        read_initial=lambda: read(_first_point(plan, f"the criterion {control_name(plan.criterion)}")),
        read_point=lambda: read(plan.directory.rewind_point),
        read_trained=trained,
        model=lambda weights, *inputs: torch.func.functional_call(module, dict(weights), inputs),
        batches=batches,
        make_module=lambda: probe(trainer, model_state(Checkpoint(plan.directory.rewind_point))),
    )
