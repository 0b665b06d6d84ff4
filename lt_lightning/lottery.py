"""The lottery: which fit comes next. Only here is the order of rounds and arms known, and it is read from disk."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lt_lightning import preview, pruning, require, sharing, unchanged
from lt_lightning.controls import CHANGING, FACTORIES, Control, Ingredients, named, reinit, step_of
from lt_lightning.criteria import Criterion, magnitude
from lt_lightning.disk import checkpoints, environment, liveness, lock
from lt_lightning.disk.atomic import explain, recover, remove, write_text
from lt_lightning.disk.configuration import check, claim
from lt_lightning.disk.rundir import MARK, TICKET, ArmDirectory, Checkpoint, RunDirectory, model_state
from lt_lightning.early_bird import EarlyBird
from lt_lightning.exchange import ticketfile
from lt_lightning.fit import chunks, frozen, same_fit
from lt_lightning.fit.interruption import Interruption, obey_together
from lt_lightning.fresh import Model, fresh_module, make
from lt_lightning.gradual import Gradual
from lt_lightning.identity import mark
from lt_lightning.integrity import check_tickets, is_config_damaged, mend_config, set_aside_damaged
from lt_lightning.layers import layer_weights
from lt_lightning.masks import Density
from lt_lightning.masks import density as density_of
from lt_lightning.plan import AUTO, Plan, control_name, describe, unwrap
from lt_lightning.processes import broadcast, is_writer, leave, wait
from lt_lightning.prunable import Prunable
from lt_lightning.prunable import checked as checked_prunable
from lt_lightning.records import write_records
from lt_lightning.rewinds import Rewind, RewindStep, parse_step, redraw, to_point
from lt_lightning.schedules import Schedule, planned
from lt_lightning.scopes import Scope, globally
from lt_lightning.seeding import derive, seed_all
from lt_lightning.sparse import Sparse, checked
from lt_lightning.stopping import StopWhen, ends
from lt_lightning.ticket import CheckDrawn, Ticket, unwrap_compiled


def lottery(
    model: Model,
    *,
    directory: str | Path,
    rounds: int | None = None,
    schedule: Schedule | None = None,
    density: Density | None = None,
    criterion: Criterion = magnitude,
    scope: Scope = globally,
    rewind: Rewind = to_point,
    rewind_step: int | str = 0,
    points: Sequence[int | str] = (),
    controls: Sequence[Control | str] = (),
    prunable: Prunable | None = None,
    monitor: str | None = "auto",
    mode: str = "min",
    seed: int = 0,
    seed_init: int | None = None,
    seed_data: int | None = None,
    dense: bool = True,
    gradual: Gradual | None = None,
    gradual_every: int | str = "1 epoch",
    early_bird: EarlyBird | None = None,
    stop_when: StopWhen | None = None,
    dense_directory: str | Path | None = None,
    keep_last: bool = False,
    every: int | str | None = "auto",
    sparse: Sparse | bool = "off",
    steps_per_batch: int = 1,
    may_vary: Sequence[str] = (),
    dry_run: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Iterator[Ticket]:
    """Iterate over the fits of a lottery: round 0 once, then each round's ticket and that round's controls.

    Fit each ticket with a new Trainer. A finished fit is skipped and an interrupted one continues, so the same
    program run again goes on where it was.

    Args:
        model: a function that makes a fresh module; called under a seed. A module instance is accepted if nothing
            asks for redrawn weights.
        directory: the run directory; everything is stored there.
        rounds: number of pruned rounds; 10 is the dense round 0 and ten pruned ones. May grow between runs, unless they
            share out a density. None: until the schedule falls no further, and 12 if it always does.
        schedule: round → density in (0, 1]; if None, that of `density`, and without one `geometric(0.2)`.
        density: of the last round, in (0, 1), or one per name pattern: `rounds` of them reach it exactly, each pruning
            the same fraction of what is left, as `geometric(density=density, rounds=rounds)`; without a number of
            rounds a fifth a round. One round is `one_shot(density)`.
        criterion: how good each weight is.
        scope: which weights compete.
        rewind: what each round starts from.
        rewind_step: when the rewind point is taken in round 0: steps (500, "500 steps") or epochs ("2 epochs").
        points: further moments of round 0 at which a point is saved, as `points/step-500.ckpt` or
            `points/epoch-2.ckpt`. May grow.
        controls: fits beside the ticket of every pruned round, each with one ingredient changed; functions,
            or names of ours, as "reinit" or "noise(0.5)". May grow.
        prunable: patterns over parameter names (`!` leaves out, `+` adds to the default), or a predicate of
            (name, parameter, layer); None: weights of linear, convolution, recurrent and attention layers.
        monitor: the validation metric that decides the early stop, which validation must log; "auto": the module's own
            validation loss ("val/loss", "val_loss", "valid_loss", ...), found in the first validation that logs one
            and the same in all fits; without one there is no early stop. None: no early stop.
        mode: "min" or "max": which `monitor` is the best.
        seed: of everything random: initial weights, criteria and controls that draw, and the global generators, which
            are seeded before every fit and every epoch.
        seed_init: of the initial weights alone; `seed` if None.
        seed_data: of the order of the data and of all that is drawn while training, such as augmentation and dropout;
            `seed` if None.
        dense: False ends round 0 at the rewind point, for methods that need no dense training.
        gradual: how masks tighten while a round trains: `cubically()`, `linearly()`, `geometrically()`, or a function
            of (progress of the fit, density before, density after). Each round then starts with the masks of the one
            before and ends with its own density; what it ends with is in its ticket, and what its controls train with.
            Only validations at that density count for the early stop. None: masks are drawn between rounds.
        gradual_every: how often masks tighten: "1 epoch", or steps (100, "100 steps"); and once more as soon as the
            round's density is due.
        early_bird: whether round 0 ends, from how far the masks that would be drawn from it moved in each of its
            epochs: `settled(0.1, epochs=5)`, or a function of yours. The distances are in its curves and records as
            `mask_distance`, and its dense network is shared with no other run. None: it trains its full length.
        stop_when: whether no further round is trained, from the records of those that are done:
            `worse_than_dense(0.01)`, or a function of yours. It is asked before every round, the file `stopped` tells
            after which it ended the run, and with another rule, or none, the run goes on: it changes no result.
        dense_directory: where runs that train alike share round 0: whichever comes first trains it, once for a seed, in
            `<dense_directory>/<key>/seed=N`, and each takes hard links to it. The key is a hash of `config` without
            what is about pruning, so `config` must hold all that training depends on. The ticket of that fit comes
            before that of round 0, and says that it is `shared`. None: each run trains its own.
        keep_last: keep each fit's `last.ckpt` once it is done.
        every: how often `last.ckpt` is saved, from which an interrupted fit continues: "1 epoch", "500 steps", "auto"
            (every epoch, unless that takes more than a fortieth of the time), or None for the end of the fit alone.
            It changes no result.
        sparse: which layers multiply by kept weights alone, and hold optimizer state for them alone: "auto", the linear
            and convolution layers that are measured to be faster so, once a fit; a density in (0, 1], those that are
            no denser; or "off". On one CPU process, in single or double precision. Results are those of dense layers
            up to the order in which floats are added, so a run may change it at any time.
        steps_per_batch: how many optimizer steps, each with a batch of its own, are taken in one turn of Lightning's
            loop, which takes small networks longer than the arithmetic: 20 takes up to twenty. Fewer, where something
            is due before: a validation, a saved point, a logged step. Steps are counted singly, and progress bars move
            once a turn. On one device, with automatic optimization. It changes no bit of any result, so a run may
            change it at any time.
        may_vary: names of what may differ from fit to fit, as the error that refuses it tells them, or patterns over
            them: `["max_epochs", "optimizer*.lr"]`, or `["*"]`. Otherwise all fits of a run train alike: with the model
            and optimizer, the length, the clipping and the batches of the first one, which `fit.json` tells.
        dry_run: print a table of what would be pruned and what not, and yield nothing; the disk is left alone.
        config: plain values, stored and compared: a run with another configuration in the same directory is refused.

    Yields:
        A `Ticket`, a Lightning callback.

    Raises:
        ValueError: for arguments that cannot work, or a directory of another configuration.
        RuntimeError: if the body of the loop did not fit the ticket, or another process is at work in the directory.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), section 2: iterative magnitude pruning with resetting.

    Example:
        ```python
        for ticket in lottery(make_model, rounds=10, directory="runs/mine"):
            trainer = L.Trainer(max_epochs=20, default_root_dir=ticket.directory, callbacks=[ticket])
            trainer.fit(ticket.model, datamodule, ckpt_path=ticket.ckpt_path)
        ```
    """
    schedule, rounds = planned(schedule, density, rounds)
    chosen = tuple(map(_control, require.listed("controls", controls, '[reinit, "noise(0.5)"]')))
    asked = [*require.listed("points", points, '[500, "2 epochs"]'), *filter(None, map(step_of, chosen))]
    plan = Plan(
        directory=RunDirectory(require.directory("directory", directory, "hydra.run.dir")),
        rounds=rounds,
        schedule=schedule,
        criterion=criterion,
        scope=scope,
        rewind=rewind,
        rewind_step=parse_step(rewind_step),
        points=tuple(dict.fromkeys(parse_step(each, "points") for each in asked)),
        controls=chosen,
        prunable=layer_weights if prunable is None else checked_prunable(prunable),
        monitor=monitor,
        mode=mode,
        seed=seed,
        seed_init=seed if seed_init is None else seed_init,
        seed_data=seed if seed_data is None else seed_data,
        dense=dense,
        keep_last=keep_last,
        every=every if every in (None, AUTO) else parse_step(every, "every", '"auto", None'),
        sparse=checked(sparse),
        steps_per_batch=chunks.checked(steps_per_batch),
        may_vary=tuple(require.listed("may_vary", may_vary, '["max_epochs"]')),
        config=_checked_config(config),
        gradual=gradual,
        gradual_every=parse_step(gradual_every, "gradual_every", '"1 epoch"'),
        early_bird=early_bird,
        stop_when=stop_when,
    ).checked()
    _check_model(model, plan, shares=dense_directory is not None)
    _check_controls(plan)
    unchanged.check_controls(plan)
    _warn_of_repeats(plan)
    if require.flag("dry_run", dry_run, "prune.dry_run"):
        return _show(plan, model)
    if is_writer():
        check_tickets(plan)
    if is_writer() and not is_config_damaged(plan):
        check(plan.directory.config, plan.config)  # at once; it is written when the directory is ours
    shares = dense_directory is not None and plan.dense and not early_bird
    shared = sharing.plan_of(plan, require.directory("dense_directory", dense_directory, "name")) if shares else None
    return _fits(plan, model, shared)


def _warn_of_repeats(plan: Plan) -> None:
    """A round with the density of the one before, rewound to the same point, has its masks and its results."""
    densities = [plan.schedule(round) for round in range(plan.rounds + 1)]
    repeats = [round for round in range(1, plan.rounds + 1) if densities[round] == densities[round - 1] != 1.0]
    if repeats and getattr(plan.rewind, "func", plan.rewind) is to_point and is_writer():
        first = repeats[0]
        rank_zero_warn(
            f"round {first} has the density of the round before, {densities[first]}, and repeats its results: "
            f"rounds={first - 1} is enough (prune.rounds={first - 1})."
        )


def _control(given: Any) -> Control:
    """The control that a name or a function stands for."""
    if isinstance(given, str):
        return named(given)
    example = FACTORIES.get(require.called_name(given), "reinit or noise(0.5), or their names")
    return require.function("controls", given, ["ingredients"], example)


def _checked_config(config: Mapping[str, Any] | None) -> dict[str, Any]:
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        raise ValueError(f'config={config!r} must be a mapping of plain values: config={{"lr": 0.1}}.')
    require.plain("config", config)
    return dict(config)


def _show(plan: Plan, model: Model) -> Iterator[Ticket]:
    module = fresh_module(model, derive(plan.seed_init, "init"), configure=True)
    if is_writer():
        preview.show(plan, unwrap_compiled(module))
    return iter(())


def _fits(plan: Plan, model: Model, shared: Plan | None) -> Iterator[Ticket]:
    unchanged.check_redrawn(plan, model)  # here, as it makes models
    with Interruption().ends_the_run(), _at_work(plan):
        yield from _each(plan, model, shared)


@contextmanager
def _at_work(plan: Plan) -> Iterator[None]:
    """Hold a run directory, and tell that a process is at work there; only the writing process does so."""
    if not is_writer():
        yield
        return
    _make(plan.directory.path)
    with lock.hold(plan.directory.lock), liveness.of_run(plan.directory.state, len(plan.arms)):
        yield


def _make(path: Path) -> None:
    """Make a directory, or say that it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        explain(error, path)
        raise ValueError(require.unwritable("directory", path, str(error), "hydra.run.dir")) from error


def _each(plan: Plan, model: Model, shared: Plan | None = None) -> Iterator[Ticket]:
    if is_writer():
        recover(plan.directory.path)
        mend_config(plan)
        claim(plan.directory.config, plan.config)
        set_aside_damaged(plan)
    if shared is not None and broadcast(_needs(plan, shared)):
        yield from _share_dense(plan, model, shared)
    if is_writer() and (lacking := sharing.lacks_points(plan)):
        rank_zero_warn(
            f"round 0 was trained before points={[str(step) for step in lacking]} were asked for, and has not saved "
            "them. With dense_directory it would be trained up to them; without, choose another directory."
        )
    trained = False
    for round in range(plan.rounds + 1):
        if round > 0 and broadcast(_ends_before(plan, round)):
            break
        for control in (None, *(plan.controls if round else ())):
            arm = control_name(control) if control else TICKET
            if broadcast(plan.directory.arm(round, arm).done.exists()):
                _check_done(plan, round, arm)
                _remove_last(plan.directory.arm(round, arm), plan)
                rank_zero_info(f"round {round} ({arm}) was done before")
                continue
            obey_together()
            ticket = _prepare(plan, model, round, control)
            trained = True
            yield ticket
            _finish(ticket)
            plan = ticket.plan  # a trial run (fast_dev_run) goes on in a directory of its own
    obey_together()
    if not trained:
        same_fit.check_again(plan, lambda: unwrap_compiled(fresh_module(model, derive(plan.seed_init, "init"))))
    _write_records(plan)
    if is_writer() and (last := max((each["round"] for each in plan.directory.finished()), default=0)) > plan.rounds:
        rank_zero_warn(
            f"{plan.directory.path} has {last} rounds, more than rounds={plan.rounds} asks for: all stay, in its "
            f"records and reports too. Choose another directory for {plan.rounds} alone."
        )
    leave()


def _check_done(plan: Plan, round: int, arm: str) -> None:
    """Raise a ValueError on every process if a finished round was pruned by another schedule."""
    files = plan.directory.arm(round)
    if arm == TICKET and round > 0 and files.is_done_whole():
        _check_density(plan, round, lambda: float(files.read_done()["record"]["density"]))


def _needs(plan: Plan, shared: Plan) -> bool:
    """Whether a run needs something of the round 0 that it shares."""
    return sharing.is_possible(shared) and (not sharing.has_begun(plan) or bool(sharing.lacks_points(plan)))


def _ends_before(plan: Plan, round: int) -> bool:
    """Whether `stop_when` ends the run before a round; the file `stopped` says so as long as it does."""
    told = plan.directory.stopped
    if not is_writer() or plan.directory.is_scratch:
        return False
    records = [record for record in plan.directory.finished() if record["round"] < round]
    if plan.stop_when is None or not ends(plan.stop_when, records):
        if plan.directory.stopped_after == round - 1:  # by another rule
            remove(told)
        return False
    text = json.dumps({"after_round": round - 1, "stop_when": describe(plan.stop_when)}, indent=1) + "\n"
    if not told.exists() or told.read_text("utf-8") != text:
        write_text(told, text)
    rank_zero_info(f"stop_when ends the run after round {round - 1}; {told} says so")
    return True


def _share_dense(plan: Plan, model: Model, shared: Plan) -> Iterator[Ticket]:
    """Train what is missing of the dense round that a run shares, or wait until another run has, and take it over."""
    naps = sharing.naps()
    while True:
        with ExitStack() as stack:
            todo = broadcast(_begin(plan, shared, stack))
            if todo is None:
                break
            if todo != sharing.WAIT:
                making = sharing.plan_for(shared, todo)
                if is_writer():
                    sharing.take_facts(shared, making)
                    for each in (plan, shared):
                        liveness.tell(each.directory.state, works_for=str(making.directory.state))
                for ticket in _each(making, model):
                    ticket.shared, ticket.rehearsed = True, plan
                    yield ticket
                    making = ticket.plan
                if making.directory.is_scratch:
                    return  # a trial run shares nothing
                if isinstance(todo, RewindStep) and is_writer():
                    sharing.keep_point(shared, todo, making)
                wait()
                continue
        if is_writer():
            liveness.tell(plan.directory.state, state="waiting", error=f"for {shared.directory.path}")
        obey_together()
        time.sleep(next(naps))
    if is_writer():
        sharing.adopt(plan, shared)
        liveness.tell(plan.directory.state, state="running", works_for=None, error=None)
    wait()


def _begin(plan: Plan, shared: Plan, stack: ExitStack) -> sharing.Todo:
    """What is missing of a shared round; if this process can make it, it is at work there until the stack ends."""
    todo = sharing.missing(plan, shared)
    if todo is None or not is_writer():
        return todo
    if sharing.is_in_use_elsewhere(shared):
        return sharing.WAIT
    try:
        stack.enter_context(_at_work(shared))
    except lock.InUseError:
        return sharing.WAIT
    sharing.make_ready(shared)
    return sharing.missing(plan, shared)  # another process may have made it just now


def once(plan: Plan, model: Model, arm: str, ingredients: Ingredients) -> Iterator[Ticket]:
    """One fit outside a lottery's order: its ticket, as `lottery` yields it, or none if it is done already.

    It draws no next ticket and saves no rewind points. An analysis trains copies with it; see `lottery` for what the
    body of the loop has to do.

    Args:
        plan: whose directory it goes to, another than the lottery's, and whose seed decides the order of the data.
        model: as for `lottery`.
        arm: its name, other than "ticket".
        ingredients: what it is made of.
    """
    files = plan.directory.arm(ingredients.round, arm)
    with Interruption().ends_the_run(), lock.hold(plan.directory.lock):
        recover(plan.directory.path)
        if not files.done.exists():
            resume = files.last if files.last.exists() else None
            ticket = Ticket(plan, arm, ingredients, fresh_module(model, ingredients.init_seed), resume)
            yield ticket
            _finish(ticket)


def _prepare(plan: Plan, model: Model, round: int, control: Control | None) -> Ticket:
    if is_writer() and round > 0:
        plan.directory.promote_next(round)
    arm = control_name(control) if control else TICKET
    # Round 0 may begin again from its own first checkpoint, which also holds where the model is an instance.
    candidates = [plan.directory.arm(round, arm).last, *([plan.directory.point(0)] if round == 0 else [])]
    resume = broadcast(next((path for path in candidates if path.exists()), None))
    if control and not broadcast(plan.directory.arm(round, arm).ticket.exists()):
        resume = None  # what it starts from may have to be drawn again
    ingredients = ticket = _ingredients(plan, round)
    if round > 0 and not control:
        _check_density(plan, round, lambda: density_of(ticket.masks))
    if plan.gradual and round > 0 and not control:
        before = ticketfile.read(plan.directory.arm(round - 1).ticket)
        ingredients = replace(ticket, masks=before.masks)  # once it is done, its own ticket holds those of its end
    if control:
        made_of = control(replace(ticket, masks=deepcopy(ticket.masks)))  # it may write into the masks it is given
        unchanged.check_control(arm, made_of, ticket)
        ingredients = _write_own_start(plan, arm, made_of, ticket)
    made = make(model, ingredients.init_seed)
    if round == 0:
        unchanged.check_seed(plan, model, made)
        if resume is None:
            _check_new(model, made.model)
    check_drawn = _check_of_drawn(plan, model, arm, ingredients)
    if round > 0 and ingredients.start is None:
        unchanged.check_fresh(plan, arm, ingredients, model, made.model)
    if control and is_writer() and resume is None:
        _write_control(plan, arm, ingredients, made.model)
    seed_all(derive(plan.seed_data, "body"))  # what the loop's body draws, such as a split, is alike in all fits
    return Ticket(plan, arm, ingredients, made.model, resume, check_drawn)


def _check_density(plan: Plan, round: int, read: Callable[[], float]) -> None:
    """Raise a ValueError if a round was pruned by another schedule: two functions may have one name.

    Other scopes than `globally` may keep what comes nearest to a density, in whole groups.
    """
    wanted = plan.schedule(round)
    if unwrap(plan.scope) is not globally or plan.gradual or not isinstance(wanted, float):
        return
    density = read()
    if abs(density - wanted) > 0.03:  # beyond rounding
        raise ValueError(
            f"round {round} in {plan.directory.path} holds {density:.4g} of the weights, and schedule({round}) is "
            f"{wanted:.4g} now: the schedule was edited. Change it back, or choose another directory."
        )


def _check_new(model: Model, made: nn.Module) -> None:
    """Raise a ValueError if a function returns a module that was fitted before, with its trained weights."""
    if not isinstance(model, nn.Module) and frozen.was_fitted(unwrap_compiled(made)):
        raise ValueError(
            "the function that makes the model returned a module that was fitted before, so round 0 would begin with "
            "trained weights: make a new module in it, lottery(lambda: Net(...), ...); or pass the module itself, "
            "lottery(net, ...), if it is to begin there."
        )


def _check_of_drawn(plan: Plan, model: Model, arm: str, ingredients: Ingredients) -> CheckDrawn:
    """What looks at the weights that a fit begins with, when all hooks that may draw some have been called."""
    if ingredients.round == 0:
        return partial(unchanged.check_redrawn_late, plan, model)
    return partial(unchanged.check_drawn_late, plan, arm, ingredients.init_seed)


def _ingredients(plan: Plan, round: int) -> Ingredients:
    """What the ticket of a round is made of, read from disk."""
    init_seed = derive(plan.seed_init, "init")
    points = str(plan.directory.point(0).parent)
    if round == 0:
        return Ingredients(0, {}, None, init_seed, plan.seed, points)
    files = plan.directory.arm(round)
    if not files.ticket.exists():
        raise FileNotFoundError(
            f"{files.ticket} is missing, so round {round} cannot start: it was removed, or when round {round - 1} "
            "ended the schedule had no density for it, or none that every weight norm can bear. "
            f"Remove {plan.directory.arm(round - 1).done} to train that round again."
        )
    drawn = ticketfile.read(files.ticket)
    if drawn.start == "fresh":
        return Ingredients(round, drawn.masks, None, derive(plan.seed, "redraw", round), plan.seed, points)
    start = plan.directory.rewind_point if drawn.start == "point" else files.start
    if not start.exists():
        maker = plan.directory.arm(0 if drawn.start == "point" else round - 1)
        raise FileNotFoundError(
            f"{start} is missing, from which round {round} starts. Remove {maker.done} to train what makes it again."
        )
    return Ingredients(round, drawn.masks, str(start), init_seed, plan.seed, points)


def _write_own_start(plan: Plan, arm: str, control: Ingredients, ticket: Ingredients) -> Ingredients:
    """The ingredients of a control, which starts from a checkpoint of its own if that is not the ticket's."""
    if control.start is None or (control.start == ticket.start and control.change is None):
        return control
    files, start = plan.directory.arm(control.round, arm), Checkpoint(Path(control.start))
    if control.change and start.path.is_dir():
        raise ValueError(pruning.in_parts(f"the control {arm}"))
    if is_writer() and not files.start.exists():
        files.path.mkdir(parents=True, exist_ok=True)
        change = control.change
        changed = pruning.changed(plan, start, change, control.round, control.masks) if change else start
        if change:
            unchanged.check_start(arm, model_state(start), changed["state_dict"], control.masks)
        own = mark(plan, control.round, arm, files.start.name)
        checkpoints.write({**changed, MARK: own}, files.start)
    return replace(control, start=str(files.start), change=None)


def _write_control(plan: Plan, arm: str, ingredients: Ingredients, module: nn.Module) -> None:
    """A control has a ticket file too: its masks, and the weights that it starts from."""
    round = ingredients.round
    drawn = ticketfile.read(plan.directory.arm(round).ticket)
    start = "fresh" if ingredients.start is None else drawn.start
    if ingredients.start == str(plan.directory.arm(round, arm).start):
        start = "file"
    if ingredients.start is None:
        state = ticketfile.tensors_of(unwrap_compiled(module).state_dict())
    else:
        state = ticketfile.tensors_of(model_state(Checkpoint(Path(ingredients.start))))
    file = ticketfile.TicketFile(ingredients.masks, state, round, arm, start, plan.fingerprint, tied=drawn.tied)
    file.write(plan.directory.arm(round, arm).ticket)


def _finish(ticket: Ticket) -> None:
    """Mark a fit as done, once its loop body has ended."""
    if not ticket.fitted:
        raise RuntimeError(
            f"{ticket.name} was not trained: the loop body must make a Trainer with callbacks=[ticket] and call "
            "trainer.fit(ticket.model, ..., ckpt_path=ticket.ckpt_path)."
        )
    ticket.release_model()
    if is_writer() and not ticket.plan.directory.is_scratch:
        environment.note(ticket.plan.directory.path, liveness.command())
        own = mark(ticket.plan, ticket.round, ticket.arm, "done")
        ticket.files.mark_done(ticket.record, own, ticket.monitor_found)
        _remove_last(ticket.files, ticket.plan)
    _write_records(ticket.plan)
    told = f"{ticket.name}: density {ticket.density:.4g}, {ticket.record['steps']} steps"
    rank_zero_info(f"{told}; {ticket.plan.directory.records}")
    wait()


def _remove_last(files: ArmDirectory, plan: Plan) -> None:
    if is_writer() and not plan.keep_last:
        remove(files.last)


def _write_records(plan: Plan) -> None:
    if is_writer() and not plan.directory.is_scratch:
        write_records(plan.directory.records, plan.directory.finished())


def _check_controls(plan: Plan) -> None:
    changing = [control_name(control) for control in plan.controls if unwrap(control) in CHANGING]
    if unwrap(plan.rewind) is redraw and changing:
        raise ValueError(
            f"the control {changing[0]} changes the weights of the rewind point, and with rewind=redraw a round starts "
            "from a fresh model: leave out one of them."
        )


def _check_model(model: Model, plan: Plan, shares: bool) -> None:
    if isinstance(model, nn.Module):
        functions: list[Callable[..., Any]] = [plan.rewind, *plan.controls]
        redrawing = [f for f in functions if unwrap(f) in (reinit, redraw)]
        if redrawing:
            raise ValueError(
                f"{control_name(redrawing[0])} draws new weights, which needs a function that makes a fresh model: "
                "pass lottery(make_model, ...), not an instance."
            )
        if shares:
            raise ValueError(
                "dense_directory shares round 0 between runs of one seed, which draws the weights, but the model is an "
                "instance, with weights of its own: pass lottery(make_model, ...), or leave dense_directory out."
            )
    elif not callable(model):
        raise ValueError(f"model must be a function that makes a LightningModule, or an instance; got {model!r}.")
