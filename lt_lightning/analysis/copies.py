"""Copies of a ticket: more fits from a point of a run, under the masks of a round, with other orders of the data."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from lt_lightning.analysis.recipe import Recipe
from lt_lightning.controls import Ingredients
from lt_lightning.criteria import magnitude
from lt_lightning.disk import checkpoints
from lt_lightning.disk.atomic import remove, write_text
from lt_lightning.disk.checksum import digest_of
from lt_lightning.disk.rundir import Checkpoint, RunDirectory
from lt_lightning.exchange import ticketfile
from lt_lightning.lottery import once
from lt_lightning.masks import Masks
from lt_lightning.plan import AUTO, Plan
from lt_lightning.rewinds import parse_step, to_point
from lt_lightning.schedules import geometric
from lt_lightning.scopes import globally
from lt_lightning.seeding import derive, seed_all
from lt_lightning.ticket import Ticket


@dataclass(frozen=True, eq=False)
class Start:
    """Where copies start.

    Args:
        round: whose masks hold them.
        step: how many optimizer steps lie behind.
        checkpoint: the weights, and everything else that a fit goes on from.
        masks: parameter name → bool tensor.
        name: of the directory that holds the copies of all rounds from there.
        ticket: the checksum of the ticket's file.
    """

    round: int
    step: int
    checkpoint: Path
    masks: Masks
    name: str
    ticket: str

    def __str__(self) -> str:
        return f"round {self.round} from step {self.step}"


def find_start(run: str | os.PathLike[str], round: int, step: int | None) -> Start:
    """Where copies of a round's ticket start, at a step; None: where the round itself did."""
    directory = RunDirectory(run)
    path = directory.arm(round).ticket
    if not path.exists():
        known = sorted(int(each.parent.name[6:]) for each in directory.path.glob("round-*/ticket.safetensors"))
        raise ValueError(f"{run} has no ticket of round {round} yet; it has those of rounds {_listed(known)}.")
    ticket = ticketfile.load_ticket(path)
    if step is None and round and ticket.start == "fresh":
        raise ValueError(
            f"round {round} of {run} began with fresh weights, which are no point of it: choose one by step."
        )
    if step is None and round and ticket.start == "file":
        own = directory.arm(round).start
        count = Checkpoint(own, mapped=True)["global_step"]
        return Start(round, count, own, ticket.masks, f"step-{count}-trained-before", digest_of(path))
    steps = sorted(int(found[1]) for each in directory.path.glob("points/*") if (found := _POINT.search(str(each))))
    if step is None:
        found = _POINT.search(os.path.realpath(directory.rewind_point))
        step = int(found[1]) if found else 0
    if step not in steps:
        raise ValueError(
            f"{run} has no point at step {step}, only at {_listed(steps)}: "
            f"one is saved by a run with prune.rewind_step={step}."
        )
    return Start(round, step, directory.point(step), ticket.masks, f"step-{step}", digest_of(path))


_POINT = re.compile(r"step-(\d+)\.ckpt$")


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def seed_of(run: str | os.PathLike[str]) -> int:
    """The seed of a run."""
    path = RunDirectory(run).config
    try:
        return yaml.safe_load(path.read_bytes())["lottery"]["seed"]
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not tell the seed of the run: is {run} a run directory?") from error


def train(start: Start, recipe: Recipe, order: int, folder: Path, seed: int, tell: Callable[[str], None]) -> Path:
    """Train a copy, if that is not done yet; an interrupted one goes on where it was.

    Args:
        start: where it starts.
        recipe: what makes the fits of the run.
        order: which copy, from 1 on; with the run's seed it decides the order of the data, and all that is random.
        folder: a directory for the copies from this step.
        seed: of the run.
        tell: is told if something is trained.

    Returns:
        The checkpoint with its weights at the end.
    """
    arm = f"order-{order}"
    plan = _plan(RunDirectory(folder), start.masks, derive(seed, "order", order))
    files = plan.directory.arm(start.round, arm)
    _claim(plan.directory.arm(start.round).path, start)
    if not files.done.exists() and not files.start.exists():
        _write_start(start.checkpoint, files.start)
    ingredients = Ingredients(start.round, start.masks, str(files.start), derive(seed, "init"), plan.seed)
    for ticket in once(plan, recipe.make_model, arm, ingredients):
        tell(f"{start}: training copy {order}")
        seed_all(derive(seed, "body"))
        data = recipe.make_data(plan.seed)
        callbacks = [ticket, *recipe.make_callbacks()]
        trainer = recipe.make_trainer(default_root_dir=ticket.directory, callbacks=callbacks, logger=False)
        trainer.fit(ticket.model, data, ckpt_path=ticket.ckpt_path)  # type: ignore[arg-type]
    remove(files.start)
    return files.final


def _claim(folder: Path, start: Start) -> None:
    """Let a directory hold copies of one ticket only: another run may be told to write to the same place."""
    path = folder / "copies-of"
    if path.exists() and path.read_text("utf-8").strip() != start.ticket:
        raise ValueError(
            f"{folder} holds copies of another ticket of {start}: choose another --output, or remove it if they are no "
            "longer needed."
        )
    write_text(path, start.ticket + "\n")


def _write_start(point: Path, path: Path) -> None:
    """A point without the random state of its run: a copy draws its own, also in the rest of the epoch at hand."""
    content = dict(Checkpoint(point, mapped=True))
    content["callbacks"] = {key: state for key, state in content["callbacks"].items() if key != Ticket.__qualname__}
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.write(content, path)


def _plan(directory: RunDirectory, masks: Masks, seed: int) -> Plan:
    """A plan of one fit, of which only directory, seed and the names of what is pruned count."""
    return Plan(
        directory=directory,
        rounds=0,
        schedule=geometric(0.2),
        criterion=magnitude,
        scope=globally,
        rewind=to_point,
        rewind_step=parse_step(0),
        points=(),
        controls=(),
        prunable=list(masks),
        monitor=None,
        mode="min",
        seed=seed,
        seed_init=seed,
        seed_data=seed,
        dense=True,
        keep_last=False,
        every=AUTO,
        sparse="off",
        config={},
    )
