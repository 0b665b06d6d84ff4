"""Round 0, shared by runs that differ in pruning alone: it is trained once, in a run directory of its own.

The runs of a study that have the same model, data, training and seed would train the same dense network. Instead
whichever comes first trains it in `dense/<key>/seed=N`, while the others wait; if it is killed, one of the others goes
on from where it was. Then each takes hard links to what it needs, and goes on as if its own round 0 had been
interrupted at the very end. `lottery` says when; here is how.
"""

import os
import random
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import nn

from lt_lightning.criteria import magnitude
from lt_lightning.disk import liveness, lock
from lt_lightning.disk.atomic import link, remove, take_copy, write_text
from lt_lightning.disk.rundir import TICKET, RunDirectory
from lt_lightning.fit import points
from lt_lightning.identity import training, training_config
from lt_lightning.integrity import is_sound
from lt_lightning.plan import Plan
from lt_lightning.rewinds import RewindStep, parse_step, to_point
from lt_lightning.scopes import globally

DENSE = "dense"
"""What is missing: the dense round itself."""

WAIT = "wait"
"""Another process is at work on what is missing."""

Todo = RewindStep | str | None
"""What to train before a run can go on: DENSE, or up to a point; or WAIT; None if nothing is missing."""

_LONGEST_NAP = 5.0
"""Seconds between two looks at what another process is at work on."""


def plan_of(plan: Plan, root: Path) -> Plan:
    """The plan of the dense round that a run shares: nothing in it depends on how the run prunes.

    Args:
        plan: of the run.
        root: where the dense rounds of a study lie.

    Raises:
        ValueError: if there is no configuration by which trainings could be told apart.
    """
    if not plan.config.keys() - {"lottery"}:
        raise ValueError(
            f"dense_directory={str(root)!r} shares round 0 between runs that train alike, and only config tells "
            "whether they do: pass config={...} with all that training depends on (model, data, epochs, learning rate, "
            "...), or leave dense_directory out."
        )
    wanted = {str(step): step for step in (*plan.points, plan.rewind_step) if step.count > 0}
    return replace(
        plan,
        directory=RunDirectory(root / training(plan) / f"seed={plan.seed}"),
        rounds=0,
        schedule=_dense_alone,
        criterion=magnitude,
        scope=globally,
        rewind=to_point,
        rewind_step=parse_step(0),
        points=tuple(wanted.values()),
        controls=(),
        prunable=_all,
        dense=True,
        gradual=None,
        early_bird=None,
        stop_when=None,
        keep_last=True,
        config=training_config(plan.config, plan.seed),
    ).checked()


def _dense_alone(round: int) -> float:
    if round > 0:
        raise ValueError("the shared round 0 draws no tickets")
    return 1.0


def _all(name: str, parameter: nn.Parameter, layer: nn.Module) -> bool:
    """All parameters: what a run may prune is its own affair, and round 0 prunes nothing."""
    return True


def is_possible(shared: Plan) -> bool:
    """Whether the file system can keep two processes from training one round; else each run trains its own."""
    return lock.is_possible(shared.directory.lock)


def is_in_use_elsewhere(shared: Plan) -> bool:
    """Whether a process on another machine gives signs of life there: not all locks reach that far."""
    state = liveness.read(shared.directory.state)
    return state is not None and state.get("host") != socket.gethostname() and liveness.is_active(state)


def missing(plan: Plan, shared: Plan) -> Todo:
    """What a run needs of a shared dense round and is not there, or damaged: the round itself, or its first point."""
    if not has_begun(plan) and not _is_whole(shared):
        return DENSE
    own = [step for step in shared.points if not points.path_of(plan.directory, step).exists()]
    absent = [step for step in own if not points.path_of(shared.directory, step).exists()]
    return absent[0] if absent else None


def has_begun(plan: Plan) -> bool:
    """Whether a run's own round 0 is done, or can be continued."""
    files = plan.directory.arm(0)
    return files.done.exists() or files.last.exists()


def lacks_points(plan: Plan) -> list[RewindStep]:
    """The further points that round 0 has not saved, as it was trained before they were asked for."""
    done = plan.directory.arm(0).done.exists()
    return [step for step in plan.points if step.count and done and not points.path_of(plan.directory, step).exists()]


def _is_whole(shared: Plan) -> bool:
    files = shared.directory.arm(0)
    needed = (files.done, files.last, files.final)
    there = [*needed, files.curves, files.early_stop, *shared.directory.point(0).parent.glob("step-*.ckpt")]
    return all(path.exists() for path in needed) and all(
        is_sound(shared, path, 0, TICKET) for path in there if path.exists()
    )


def make_ready(shared: Plan) -> None:
    """Let a dense round be trained again if somebody has removed what others start from. Call with the lock held."""
    files = shared.directory.arm(0)
    if not (files.last.exists() and files.final.exists()):
        remove(files.done)


def plan_for(shared: Plan, todo: Todo) -> Plan:
    """The plan that makes what is missing: the dense round, or one that ends at a point."""
    if not isinstance(todo, RewindStep):
        return shared
    directory = RunDirectory(shared.directory.path / f"up-to-{todo.count}-{todo.unit}")
    return replace(shared, directory=directory, rewind_step=todo, points=(), dense=False, keep_last=False).checked()


def keep_point(shared: Plan, step: RewindStep, made: Plan) -> None:
    """Keep the point that a plan of `plan_for` has made, and nothing else of it."""
    source = made.directory.rewind_point.resolve()
    path, name = shared.directory.point(0).with_name(source.name), points.path_of(shared.directory, step)
    if not path.exists():
        take_copy(source, path)
    if name != path:
        link(path, name)
    remove(made.directory.path)


def adopt(plan: Plan, shared: Plan) -> None:
    """Take over a dense round, so that the run's own goes on from its end; `last.ckpt`, which tells so, comes last.

    A run that has one of its own takes the points that it lacks.
    """
    begun = has_begun(plan)
    for step in (RewindStep(0), *shared.points):
        source, name = points.path_of(shared.directory, step), points.path_of(plan.directory, step)
        path = name.with_name(source.resolve().name)
        if not begun or not name.exists():
            take_copy(source.resolve(), path)
            if name != path:
                link(path, name)
    if begun:
        return
    plan.directory.link_rewind_point(points.path_of(plan.directory, plan.rewind_step).resolve())
    theirs, ours = shared.directory.arm(0), plan.directory.arm(0)
    take_facts(shared, plan)
    write_text(ours.origin, f"{os.path.relpath(shared.directory.path, ours.path)}\n")
    pairs = [(theirs.curves, ours.curves), (theirs.early_stop, ours.early_stop), (theirs.final, ours.final)]
    for source, path in (*pairs, (theirs.last, ours.last)):
        if source.exists():
            take_copy(source, path)


def take_facts(source: Plan, target: Plan) -> None:
    """Let fits of another directory be compared with what the round 0 of this one was trained with."""
    if source.directory.fit.exists() and source.directory.path != target.directory.path:
        take_copy(source.directory.fit, target.directory.fit)


def naps() -> Iterator[float]:
    """Seconds to sleep between looks, longer and longer, and not in step with other processes."""
    nap = 0.2
    while True:
        yield nap * random.uniform(0.8, 1.2)
        nap = min(2 * nap, _LONGEST_NAP)
