"""What is asked between rounds, asked once before the first step: what cannot work then costs no dense round."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lt_lightning import controls, require, sharded
from lt_lightning.controls import Control, Ingredients
from lt_lightning.criteria import Evidence
from lt_lightning.disk.rundir import Checkpoint, RunDirectory
from lt_lightning.masks import Masks, all_kept
from lt_lightning.plan import Plan, control_name, unwrap
from lt_lightning.processes import broadcast, is_writer
from lt_lightning.prunable import find_prunable
from lt_lightning.pruning import gather_evidence
from lt_lightning.rewinds import Changed
from lt_lightning.scopes import require_pruned, select
from lt_lightning.seeding import derive, seeded


class NotYetError(Exception):
    """Raised where a criterion asks for what there is only after a round: batches, the module, a forward pass."""


def rehearse(plan: Plan, directory: RunDirectory, trainer: L.Trainer) -> None:
    """Ask a plan's criterion, scope, rewind and controls once, on the untrained network. Call on every process.

    Args:
        plan: of the lottery.
        directory: where the point at step 0 lies, which may be that of a shared dense round.
        trainer: of round 0, at step 0; its module is left alone.

    Raises:
        ValueError: on every process, if one of them cannot work.
    """
    parameters = find_prunable(trainer.lightning_module, plan.prunable)
    masks = all_kept(parameters)
    plan.check_patterns(masks)
    if plan.rounds == 0:
        return
    together = sharded.any_sharded(masks)
    problem = _problem(plan, directory, masks, trainer) if together or is_writer() else None
    problem = problem if together else broadcast(problem)
    if problem is not None:
        raise ValueError(problem)


def _problem(plan: Plan, directory: RunDirectory, masks: Masks, trainer: L.Trainer) -> str | None:
    try:
        with seeded(0):  # what a function draws here changes no draw of the fit
            _ask_criterion(plan, masks, trainer)
            last = plan.rounds if plan.stop_when is None else 1  # it may end the rounds before one that keeps nothing
            for _ in draw(plan, masks, sorted({1, last})):
                pass
            _ask_rewind(plan, directory)
            _ask_controls(plan, directory, masks)
    except ValueError as error:
        return str(error)
    return None


def _ask_criterion(plan: Plan, masks: Masks, trainer: L.Trainer) -> None:
    name = require.called_name(plan.criterion)
    try:
        scores = plan.criterion(_evidence(plan, masks, trainer))
    except (NotYetError, OSError, ArithmeticError):  # what has not moved may be nothing to divide by
        return
    except Exception as error:
        raise ValueError(_raised(f"criterion={name}", error)) from error
    check_scores_are_named(scores, masks, name)


def check_scores_are_named(scores: Any, masks: Masks, name: str) -> None:
    """Raise a ValueError unless a criterion returned a tensor for every mask.

    >>> check_scores_are_named(None, {"w": torch.ones(2).bool()}, "mine")
    Traceback (most recent call last):
    ...
    ValueError: criterion=mine returned None: it must return {name: scores} with a tensor for each of w.
    """
    missing = [n for n in masks if not isinstance(scores, Mapping) or not isinstance(scores.get(n), Tensor)]
    if missing:
        returned = f"a {type(scores).__name__} without {missing}" if isinstance(scores, Mapping) else repr(scores)
        raise ValueError(
            f"criterion={name} returned {returned}: it must return {{name: scores}} with a tensor for each of "
            f"{', '.join(masks)}."
        )
    misshapen = [n for n, mask in masks.items() if scores[n].shape != mask.shape]
    if misshapen:
        told = [f"{n} {tuple(scores[n].shape)} for {tuple(masks[n].shape)}" for n in misshapen]
        raise ValueError(f"criterion={name} must score every weight, and returned other shapes: {', '.join(told)}.")


def _evidence(plan: Plan, masks: Masks, trainer: L.Trainer) -> Evidence:
    """The evidence of round 0 before it is trained: copies, as a criterion may write into what it is shown."""
    evidence = gather_evidence(plan, 0, masks, trainer)
    at_start = lambda: {name: weight.clone() for name, weight in evidence.read_trained().items()}  # noqa: E731
    reads = {f"read_{when}": at_start for when in ("initial", "point", "trained")}
    return replace(evidence, **reads, model=_not_yet, batches=_not_yet, make_module=_not_yet)  # type: ignore[arg-type]


def _not_yet(*arguments: Any, **options: Any) -> Any:
    raise NotYetError


def draw(plan: Plan, masks: Masks, rounds: Iterable[int]) -> Iterator[Masks]:
    """The masks that a plan's scope would draw in these rounds from random scores, one after the other.

    Raises:
        ValueError: if the scope cannot, or the first round prunes nothing.
    """
    draws = torch.Generator().manual_seed(0)
    scores = {name: sharded.spread(torch.rand(mask.shape, generator=draws), mask) for name, mask in masks.items()}
    for round in rounds:
        density = plan.schedule(round)
        try:
            chosen = select(dict(scores), masks, density, plan.scope)
        except Exception as error:
            told = error if isinstance(error, ValueError) else _raised(f"scope={control_name(plan.scope)}", error)
            raise ValueError(f"no masks of round {round} can be drawn, whose density is {density}: {told}") from error
        if round == 1:
            require_pruned(chosen, density)
        masks = chosen
        yield masks


def _ask_rewind(plan: Plan, directory: RunDirectory) -> None:
    point, name = Checkpoint(directory.point(0), mapped=True), require.called_name(plan.rewind)
    try:
        start = plan.rewind(point, point)
    except (ValueError, TypeError) as error:
        raise ValueError(str(error) if isinstance(error, ValueError) else _raised(f"rewind={name}", error)) from error
    except Exception:  # an untrained checkpoint may lack what it looks at, such as the state of an optimizer
        return
    if not (start is None or isinstance(start, Changed | Mapping)):
        raise ValueError(
            f"rewind={name} returned {start!r}: it must return a checkpoint to start from, a Changed, or None."
        )


def _ask_controls(plan: Plan, directory: RunDirectory, masks: Masks) -> None:
    own = [control for control in plan.controls if unwrap(control).__module__ != controls.__name__]
    if not own:
        return
    kept = {name: torch.ones(mask.shape, dtype=torch.bool) for name, mask in masks.items()}
    point, init_seed = directory.point(0), derive(plan.seed_init, "init")
    ticket = Ingredients(1, kept, str(point), init_seed, plan.seed, str(point.parent))
    for control in own:
        _ask_control(control, ticket)


def _ask_control(control: Control, ticket: Ingredients) -> None:
    name = control_name(control)
    try:
        changed = control(ticket)
    except OSError:  # a point that is not there yet
        return
    except Exception as error:
        raise ValueError(_raised(f"the control {name}", error)) from error
    if not isinstance(changed, Ingredients):
        made = f": {name} makes one, so write {name}(...)" if callable(changed) else ""
        raise ValueError(
            f"the control {name} returned {changed!r} in the place of Ingredients{made}. A control takes the ticket's "
            "ingredients and returns them with one changed: dataclasses.replace(ticket, masks=...)."
        )
    _check_masks(name, changed, ticket)


def _check_masks(name: str, changed: Ingredients, ticket: Ingredients) -> None:
    """Raise a ValueError unless a control's masks are bool tensors of the names and shapes of the ticket's."""
    wanted = {key: (torch.bool, mask.shape) for key, mask in ticket.masks.items()}
    given = {key: (getattr(mask, "dtype", None), getattr(mask, "shape", None)) for key, mask in changed.masks.items()}
    wrong = [key for key in {**wanted, **given} if wanted.get(key) != given.get(key)]
    if wrong:
        seen = given.get(wrong[0])
        told = "no mask" if seen is None else f"a mask of {seen[0]} and shape {seen[1]}"
        raise ValueError(
            f"the control {name} returned {told} for {wrong[0]}: it must return a bool tensor, shaped like its weight, "
            "for each of the ticket's masks."
        )


def _raised(what: str, error: Exception) -> str:
    return f"{what} raised {type(error).__name__}: {error}, when it was asked once before training."
