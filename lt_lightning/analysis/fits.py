"""The finished fits of runs, as analyses read them: masks, weights at the start, weights at the end."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lt_lightning.analysis import report
from lt_lightning.disk import runs
from lt_lightning.disk.rundir import TICKET, ArmDirectory, Checkpoint, RunDirectory, model_state
from lt_lightning.exchange.ticketfile import load_ticket, read
from lt_lightning.masks import Masks, plain_name

ALL = "all"
"""Stands for all layers together, where a table has a row per layer."""


@dataclass(frozen=True)
class Fit:
    """A fit that is done. Nothing is read before it is asked for, and nothing is kept in memory.

    Args:
        run: the run directory.
        round: how many times its ticket was pruned.
        arm: "ticket", or the control's name.
    """

    run: str
    round: int
    arm: str

    @property
    def files(self) -> ArmDirectory:
        """Where its files lie."""
        return RunDirectory(self.run).arm(self.round, self.arm)

    def masks(self) -> dict[str, Tensor]:
        """Parameter name → bool tensor, True is kept; in the order of the module's parameters."""
        return dict(read(self.files.ticket).masks)

    def start(self) -> dict[str, Tensor] | None:
        """Parameter name → prunable weight at the start of the fit, before it was masked; None if that is not stored.

        It is not in a run that redraws weights: they are drawn after the ticket is written.
        """
        return self.begin()[1]

    def begin(self) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """`masks` and `start`, of which one file tells, read once."""
        ticket = load_ticket(self.files.ticket)
        return dict(ticket.masks), _chosen(ticket.state, ticket.masks, self.files.ticket) if ticket.state else None

    def end(self, masks: Masks | None = None) -> dict[str, Tensor]:
        """Parameter name → prunable weight at the end of the fit.

        Args:
            masks: of the fit, if they were read before.
        """
        return _chosen(model_state(Checkpoint(self.files.final)), masks or self.masks(), self.files.final)

    def next_masks(self) -> dict[str, Tensor] | None:
        """The masks that were drawn from the end of this fit; None if it is a control, or none were."""
        files = RunDirectory(self.run).arm(self.round + 1).ticket, ArmDirectory(self.files.next).ticket
        found = next((file for file in files if file.exists()), None) if self.arm == TICKET else None
        return dict(read(found).masks) if found else None


def _chosen(state: Mapping[str, Tensor], masks: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    names = {plain_name(name): name for name in state}
    lacking = [name for name in masks if name not in names]
    if lacking:
        raise ValueError(f"{path} holds no weights of {lacking[0]}, expected those of every mask.")
    return {name: state[names[name]].float() for name in masks}


def find(directories: Iterable[str | os.PathLike[str]]) -> list[runs.Run]:
    """Every run at or below the directories, each once.

    Raises:
        NotADirectoryError: if one is no directory.
        ValueError: if there is no run.
    """
    given = [os.fspath(directory) for directory in directories]
    found = {os.path.realpath(run.path): run for directory in given for run in runs.find(directory)}
    if not found:
        raise ValueError(
            f"there is no run at or below {', '.join(given)}: give a run directory, in which config.yaml lies, or one "
            "with runs below it."
        )
    return list(found.values())


def of(run: runs.Run, *, controls: bool = True) -> list[Fit]:
    """The fits of a run that are done, by round, the ticket before its controls."""
    return [Fit(run.path, round, arm) for round, arm in run.done if controls or arm == TICKET]


def missing(found: Sequence[runs.Run]) -> Iterator[str]:
    """A line for each run that is not done: how far it is, and what it lacks first."""
    for run in found:
        lacking = [fit for fit in run.planned or [] if fit not in run.done]
        if lacking:
            round, arm = lacking[0]
            done = f"{len(run.done)} of {len(run.planned or [])} fits are done"
            yield f"{run.path}: {done}; the first that is missing is that of round {round} ({arm})"


def names(found: Sequence[runs.Run]) -> dict[str, str]:
    """Run directory → a name as short as tells it from the others.

    >>> names([runs.Run("/runs/lenet/seed=0"), runs.Run("/runs/lenet/seed=1")])
    {'/runs/lenet/seed=0': 'seed=0', '/runs/lenet/seed=1': 'seed=1'}
    >>> names([runs.Run("/runs/lenet/seed=0")])
    {'/runs/lenet/seed=0': 'lenet/seed=0'}
    """
    paths = [run.path for run in found]
    if len(paths) == 1:
        return {paths[0]: report.title(paths[0])}
    common = os.path.commonpath([os.path.abspath(path) for path in paths])
    return {path: os.path.relpath(os.path.abspath(path), common) for path in paths}
