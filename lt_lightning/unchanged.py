"""Whether what a rewind or a control promises to change did change: one that changes nothing is an error.

Weights that are drawn anew are compared with those of step 0, one prunable tensor at a time. One that is equal breaks
the promise, unless it is constant, such as zeros: those are equal under every seed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lt_lightning.controls import Ingredients, random_mask, random_mask_globally, reinit, step_of
from lt_lightning.disk.rundir import Checkpoint, model_state
from lt_lightning.fit.hooks import overrides
from lt_lightning.fit.lazy import is_made_late
from lt_lightning.fresh import HOOKS, Made, Model, make
from lt_lightning.masks import Density, Masks, Weights, few, plain_name
from lt_lightning.plan import Plan, control_name, unwrap
from lt_lightning.prunable import find_prunable, weights_of
from lt_lightning.rewinds import RewindStep, redraw, to_point
from lt_lightning.seeding import derive
from lt_lightning.sharded import any_sharded
from lt_lightning.ticket import unwrap_compiled

_OUT = "Leave it out, or choose another one (prune.controls)."
_DRAWS = "let it draw weights from torch's global generator, which is seeded before each call"


def redrawing(plan: Plan) -> dict[str, int]:
    """Name of each rewind and control of ours that draws new weights → the seed of its first fresh model."""
    kinds: Any = {reinit: "reinit", redraw: "redraw"}
    functions: list[Callable[..., Any]] = [plan.rewind, *plan.controls]
    named = {control_name(each): kinds.get(unwrap(each)) for each in functions}
    return {name: derive(plan.seed, kind, 1) for name, kind in named.items() if kind and plan.rounds > 0}


def check_controls(plan: Plan) -> None:
    """Raise a ValueError for a control of ours of which it is known at once that it changes nothing."""
    same = RewindStep(0) if plan.rewind_step.count == 0 else plan.rewind_step
    for control in plan.controls:
        name, step = control_name(control), step_of(control)
        if step is not None and RewindStep(step) == same and plan.rewind is to_point:
            raise ValueError(
                f"the control {name} changes nothing: the ticket starts there (rewind_step={same}). {_OUT}"
            )
        full = [round for round in range(1, plan.rounds + 1) if _keeps_all(plan.schedule(round))]
        if control in (random_mask, random_mask_globally) and full:
            raise ValueError(
                f"the control {name} changes nothing in round {full[0]}, whose masks keep every weight: choose a lower "
                f"density there (prune.schedule). {_OUT}"
            )


def _keeps_all(density: Density) -> bool:
    return set(density.values() if isinstance(density, Mapping) else [density]) == {1.0}


def check_redrawn(plan: Plan, model: Model) -> None:
    """Raise a ValueError if something redraws weights and a fresh model of another seed has those of step 0.

    Layers that a Trainer lets the module make are left to `check_redrawn_late`.
    """
    for who, seed in list(redrawing(plan).items())[:1]:
        first, other = make(model, derive(plan.seed_init, "init")), make(model, seed)
        _compare(plan, who, other, _prunable_so_far(plan, unwrap_compiled(first.model)))


def _prunable_so_far(plan: Plan, module: L.LightningModule) -> Weights:
    """The prunable weights that a module has before a Trainer lets it make more; there may be none."""
    try:
        return find_prunable(module, plan.prunable)
    except ValueError:
        if is_made_late(module):
            return {}
        raise


def check_redrawn_late(plan: Plan, model: Model, masks: Masks, trainer: L.Trainer) -> None:
    """As `check_redrawn`, of weights that come from hooks. Call at the start of round 0, before they are trained.

    The model is made again with as few hooks as give it the weights that it has; hooks that only load data are left
    alone. Weights that something else has written are compared when they are drawn anew.
    """
    if any_sharded(masks) or not overrides(trainer.lightning_module, *HOOKS):
        return
    weights = weights_of(trainer.lightning_module, masks)
    for who, seed in list(redrawing(plan).items())[:1]:
        count = _hooks_needed(plan, model, weights, trainer)
        if count:
            _compare(plan, who, Made(*_set_up(model, seed, trainer, count)), weights)


def _hooks_needed(plan: Plan, model: Model, weights: Weights, trainer: L.Trainer) -> int | None:
    """How many hooks a fresh model needs to have these weights; None: they are not its own."""
    for count in range(len(HOOKS) + 1):
        module, _ = _set_up(model, derive(plan.seed_init, "init"), trainer, count)
        first = weights_of(module, weights)
        if len(first) == len(weights) and all(_equal(weights[name], each, None) for name, each in first.items()):
            return count
    return None


def _set_up(model: Model, seed: int, trainer: L.Trainer, count: int) -> tuple[Any, bool]:
    """A fresh module whose first hooks were called as a Trainer does, and whether the model seeds itself."""
    made = make(model, seed)
    module: Any = unwrap_compiled(made.model)
    module.trainer = trainer
    for name in HOOKS[:count]:
        getattr(module, name)(*(["fit"] if name == "setup" else []))
    return module, made.seeds_itself


def _compare(plan: Plan, who: str, other: Made, weights: Weights) -> None:
    others = weights_of(unwrap_compiled(other.model), weights)
    shared = [name for name, each in others.items() if each.data_ptr() == weights[name].data_ptr() and each.numel()]
    alike = unchanged({name: weights[name] for name in others}, others)
    if shared:
        raise ValueError(
            f"{who} draws new weights, but the modules that make_model returns share {few(shared)}, which are trained "
            f"by the time {who} starts: make the network within make_model, as in lambda: Lit(Net()), or leave {who} "
            f"out ({_key(plan, who)})."
        )
    if alike:
        raise ValueError(
            f"{who} draws new weights, but {few(alike)} of a model that make_model returns under another seed "
            f"{'is' if len(alike) == 1 else 'are'} equal to step 0: {_why(other)}. {_DRAWS[0].upper()}{_DRAWS[1:]}, or "
            f'leave weights out (prunable=["!{alike[0]}"], prune.prunable), or leave {who} out ({_key(plan, who)}).'
        )


def _why(other: Made) -> str:
    if other.seeds_itself:
        return "make_model seeds the random numbers itself (seed_everything, torch.manual_seed)"
    return "make_model loads them, such as from a checkpoint, or draws them from a seed of its own"


def _key(plan: Plan, who: str) -> str:
    return "prune.rewind" if who == control_name(plan.rewind) else "prune.controls"


def check_seed(plan: Plan, model: Model, made: Made) -> None:
    """Raise a ValueError if a seed was chosen, and the model seeds itself so that it makes no difference.

    The model is made once more only if it does seed itself.
    """
    if not made.seeds_itself or plan.seed_init == 0:
        return
    module = unwrap_compiled(made.model)
    other = unwrap_compiled(make(model, derive(plan.seed_init + 1, "init")).model)
    weights = {name: each for name, each in module.named_parameters() if not _is_constant(each)}
    name = "seed" if plan.seed_init == plan.seed else "seed_init"
    if weights and len(unchanged(weights, weights_of(other, weights))) == len(weights):
        raise ValueError(
            f"{name}={plan.seed_init} does not reach the weights: make_model seeds the random numbers itself "
            "(seed_everything, torch.manual_seed), so they are the same under every seed. Take that out of make_model; "
            "where a class does so, pass it torch.initial_seed() % 2**32; or choose another order of the data alone: "
            f"seed_data={plan.seed_init} (prune.seed_data)."
        )


def check_control(arm: str, control: Ingredients, ticket: Ingredients) -> None:
    """Raise a ValueError if a control has the ingredients of its ticket."""
    same_start = _place(control.start) == _place(ticket.start) and control.change is None
    same_weights = same_start and (control.start is not None or control.init_seed == ticket.init_seed)
    if same_weights and _same_masks(control.masks, ticket.masks):
        raise ValueError(
            f"the control {arm} changes nothing in round {ticket.round}: it has the masks of the ticket and starts "
            f"where it does. {_OUT}"
        )


def check_start(arm: str, before: Mapping[str, Any], after: Mapping[str, Any], masks: Masks) -> None:
    """Raise a ValueError if a control that changes weights has left every kept one as it was."""
    names = {plain_name(name): name for name in before}
    pairs = {name: (before[names[name]], after[names[name]]) for name in masks}
    if all(_equal(one, other, masks[name]) for name, (one, other) in pairs.items()):
        raise ValueError(f"the control {arm} changes nothing: every kept weight is what it is in the ticket. {_OUT}")


def check_fresh(plan: Plan, arm: str, ingredients: Ingredients, model: Model, module: nn.Module) -> None:
    """Raise a ValueError if a fresh model, of another seed than step 0's, has weights of step 0 or of a fit.

    Layers that the Trainer lets it make are left to `check_drawn`.
    """
    first = derive(plan.seed_init, "init")
    module = unwrap_compiled(module)
    weights = weights_of(module, ingredients.masks)
    if arm not in redrawing(plan):  # a function of the user's own
        again = weights_of(unwrap_compiled(make(model, ingredients.init_seed).model), weights)
        shared = [name for name, each in again.items() if each.data_ptr() == weights[name].data_ptr()]
        if shared:
            raise ValueError(
                f"{arm} starts from a fresh model, but the modules that the model argument gives share {few(shared)}, "
                "which are trained by now: pass a function that makes the network anew, as in lambda: Lit(Net()), or "
                f"leave {arm} out (prune.controls)."
            )
    if ingredients.init_seed != first and not is_made_late(module):
        check_drawn(plan, arm, weights, {})


def check_drawn(plan: Plan, arm: str, weights: Weights, masks: Masks) -> None:
    """Raise a ValueError if weights drawn anew are those of step 0; with masks, at the kept places.

    Call before they are trained.
    """
    state = model_state(Checkpoint(plan.directory.point(0)))
    names = {plain_name(name): name for name in state}
    alike = unchanged({name: state[names[name]] for name in weights}, weights, masks)
    if alike:
        raise ValueError(
            f"{arm} starts from weights drawn anew, but {few(alike)} {'is' if len(alike) == 1 else 'are'} equal to "
            f"step 0, so it would repeat what was trained. In the function that makes the model, {_DRAWS}; or leave "
            f"{arm} out (prune.controls, prune.rewind)."
        )


def check_drawn_late(plan: Plan, arm: str, seed: int, masks: Masks, trainer: L.Trainer) -> None:
    """As `check_drawn`, of a fit that is about to train a model made under another seed than that of step 0."""
    module = trainer.lightning_module
    if seed != derive(plan.seed_init, "init") and not any_sharded(masks):
        check_drawn(plan, arm, weights_of(module, masks), masks)


def unchanged(before: Weights, after: Weights, masks: Masks | None = None) -> list[str]:
    """Names of the weights that are equal, though they are not constant; all names, if nothing differs at all.

    Args:
        before: parameter name → tensor.
        after: the same names → tensors, which may have another precision or device.
        masks: parameter name → where to look; everywhere, where there is none.

    >>> before = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2)}
    >>> unchanged(before, {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2)})
    ['a', 'b']
    >>> unchanged(before, {"a": torch.tensor([1.0, 3.0]), "b": torch.zeros(2)})
    []
    """
    equal = [name for name, each in after.items() if _equal(before[name], each, (masks or {}).get(name))]
    return equal if len(equal) == len(after) else [name for name in equal if not _is_constant(before[name])]


def _equal(one: Tensor, other: Tensor, mask: Tensor | None) -> bool:
    if one.shape != other.shape:
        return False
    one, other = one.detach().cpu(), other.detach().cpu()
    other = other.to(one.dtype)
    return torch.equal(one, other) if mask is None else torch.equal(one[mask], other[mask])


def _is_constant(value: Tensor) -> bool:
    return value.numel() < 2 or bool(value.min() == value.max())


def _same_masks(one: Masks, other: Masks) -> bool:
    return one is other or (one.keys() == other.keys() and all(torch.equal(mask, other[n]) for n, mask in one.items()))


def _place(start: str | None) -> Path | None:
    return Path(start).resolve() if start else None
