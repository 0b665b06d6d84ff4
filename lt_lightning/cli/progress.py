"""What the user sees: a table that grows by a row per finished round, and below it two bars while one trains."""

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

import lightning.pytorch as L
from lightning.pytorch.callbacks import ProgressBar
from rich import progress as rich
from rich.console import Console
from rich.text import Text

from lt_lightning.disk.configuration import stored, trains_dense
from lt_lightning.disk.rundir import RunDirectory
from lt_lightning.fit import hooks
from lt_lightning.fit.pulse import steps
from lt_lightning.processes import is_writer
from lt_lightning.wording import clock, percent

if TYPE_CHECKING:
    from lt_lightning.ticket import Ticket

HEADER = f"{'round':>5}  {'arm':<14}  {'density':>7}  {'accuracy':>8}  {'early stop':>10}  {'seconds':>8}"
REFRESH_SECONDS = 0.25


class Progress:
    """Show a run's rounds as a growing table, and on a terminal two bars: over and within the rounds.

    Rounds that an earlier start finished come first, marked so. Prints nothing on ranks other than zero.

    Args:
        directory: the run directory.
        total: how many fits the run has, controls included; None if unknown.
        console: where to print; standard output by default.
        beside: the directories of runs that are trained together with that one; then rows tell their seed.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        total: int | None = None,
        console: Console | None = None,
        beside: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        self.runs = [RunDirectory(each) for each in (directory, *beside)]
        self._total = total
        self._console = console or Console(quiet=not is_writer())
        self._bars = rich.Progress(
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(bar_width=None),
            _Words(count),
            _Words(pace),
            _Words(left),
            console=self._console,
            refresh_per_second=1 / REFRESH_SECONDS,
            expand=True,
            transient=True,
            disable=not self._on_terminal(),
        )
        self._stack = ExitStack()

    def bar(self, ticket: "Ticket") -> ProgressBar:
        """Return the callback that reports this round; a new one for each round's Trainer."""
        return _RoundBar(self, f"round {ticket.round} · {ticket.arm} · {percent(ticket.density)}")

    def row(self, ticket: "Ticket") -> None:
        """Add a finished round to the table."""
        self._finished += 1
        self._bars.update(self._fit, visible=False)
        self._bars.update(self._rounds, completed=self._finished)
        self._bars.refresh()
        self._print(self._line(ticket.record))

    def done(self, records: str | os.PathLike[str], *reports: str | os.PathLike[str]) -> None:
        """Say what the early stop was decided by, if that was found, and where the results lie."""
        found = self.runs[0].monitor_found()
        told = [f"monitor  {found}, which decides the early stop"] if found else []
        told += [f"records  {Path(records)}", *(f"report   {Path(each)}" for each in reports)]
        self._print("\n" + "\n".join(told))

    def __enter__(self) -> Self:
        earlier = [record for run in self.runs for record in run.finished()]
        self._finished = len(earlier)
        self._rounds = self._bars.add_task("rounds", total=self._total, completed=self._finished, first=self._finished)
        self._fit = self._bars.add_task("", total=None, visible=False, first=0, note="")
        self._stack.enter_context(self._bars)
        self._stack.enter_context(_LogsAboveBars())
        self._print(HEADER, style="bold")
        for record in earlier:
            self._print(f"{self._line(record)}  done before", style="dim")
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        # Also after Ctrl-C: the bars hide the cursor and redirect the standard streams.
        self._stack.__exit__(kind, *error)
        if kind is SystemExit:  # what Lightning makes of a KeyboardInterrupt within a fit
            raise KeyboardInterrupt

    def _line(self, record: Mapping[str, Any]) -> str:
        told = line(record) if len(self.runs) == 1 else f"{line(record)}  seed {record['seed']}"
        is_dense = record["round"] > 0 or trains_dense(stored(self.runs[0].config))
        return told if is_dense else f"{told}  untrained"

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def _on_terminal(self) -> bool:
        # Not `console.is_terminal`: FORCE_COLOR turns that on in a log file too.
        return self._console.file.isatty() and not self._console.is_dumb_terminal and not self._console.quiet

    def _begin(self, description: str, step: int, total: int | None) -> None:
        self._bars.reset(
            self._fit, description=description, completed=step, total=total, visible=True, first=step, note=""
        )

    def _show(self, step: int, note: str) -> None:
        self._bars.update(self._fit, completed=step, note=note)
        self._bars.update(self._rounds, completed=self._finished + (self._task(self._fit).percentage / 100))

    def _task(self, task: rich.TaskID) -> rich.Task:
        return next(each for each in self._bars.tasks if each.id == task)


class _RoundBar(ProgressBar):
    """Report one fit to the bars, at most every `REFRESH_SECONDS`: a step costs one look at the clock."""

    def __init__(self, progress: Progress, description: str) -> None:
        super().__init__()
        self._progress = progress
        self._description = description
        self._on = not progress._bars.disable
        self._next = 0.0
        hooks.leave_out_empty(self)

    def disable(self) -> None:
        """Stop reporting; Lightning asks for it on ranks other than zero."""
        self._on = False

    def enable(self) -> None:
        """Report again."""
        self._on = not self._progress._bars.disable

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar of this round, from the step that it starts at."""
        if self._on:
            self._progress._begin(self._description, trainer.global_step, steps(trainer))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Bring the bar up to date, if that was not done just now."""
        if self._on and (now := perf_counter()) >= self._next:
            self._next = now + REFRESH_SECONDS
            self._progress._show(trainer.global_step, epoch(trainer))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that the round validates, where the epoch stood."""
        if self._on and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._progress._show(trainer.global_step, "validating")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the bar at the last step."""
        if self._on:
            self._progress._show(trainer.global_step, epoch(trainer))

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that the round tests, which another Trainer may do."""
        if self._on:
            self._progress._bars.update(self._progress._fit, note="testing")


class _Words(rich.ProgressColumn):
    """A column that a function of the task writes."""

    def __init__(self, say: Callable[[rich.Task], str]) -> None:
        super().__init__()
        self._say = say

    def render(self, task: rich.Task) -> Text:
        return Text(self._say(task), style="dim", justify="right", no_wrap=True)


class _LogsAboveBars:
    """Print log lines above the bars: a handler keeps the stream that it found when it was made."""

    def __enter__(self) -> Self:
        now = {sys.__stderr__: sys.stderr, sys.__stdout__: sys.stdout}
        loggers = [logging.getLogger(name) for name in (None, "lightning", "lightning.pytorch", "lightning.fabric")]
        handlers = [handler for logger in loggers for handler in logger.handlers]
        self._before = [
            (handler, handler.setStream(now[handler.stream]))
            for handler in handlers
            if isinstance(handler, logging.StreamHandler) and now.get(handler.stream) not in (None, handler.stream)
        ]
        return self

    def __exit__(self, *error: Any) -> None:
        for handler, stream in self._before:
            handler.setStream(stream)


def line(record: Mapping[str, Any]) -> str:
    """Write a record as a row of the table; accuracy in percent, a dash where nothing was measured.

    >>> print(HEADER)
    round  arm             density  accuracy  early stop   seconds
    >>> print(line({"round": 3, "arm": "reinit", "density": 0.512, "val/acc": 0.9812, "seconds": 41.26}))
        3  reinit            51.2%    98.12%           -      41.3
    """
    accuracy = record.get("test/acc")
    accuracy = record.get("val/acc") if accuracy is None else accuracy
    stop, seconds = record.get("early_stop_step"), record.get("seconds")
    cells = (
        f"{record['round']:>5}",
        f"{record['arm']:<14}",
        f"{percent(record['density']):>7}",
        f"{'-' if accuracy is None else f'{accuracy:.2%}':>8}",
        f"{'-' if stop is None else stop:>10}",
        f"{'-' if seconds is None else f'{seconds:.1f}':>8}",
    )
    return "  ".join(cells)


def epoch(trainer: L.Trainer) -> str:
    """Write the epoch of how many, or nothing where only steps are counted."""
    most = trainer.max_epochs
    return f"epoch {min(trainer.current_epoch + 1, most)}/{most}" if most is not None and most > 0 else ""


def count(task: rich.Task) -> str:
    """Write how far a task is: finished rounds, or the epoch and the steps."""
    total = "" if task.total is None else f"/{int(task.total)}"
    return f"{task.fields.get('note', '')} {int(task.completed)}{total}".strip()


def pace(task: rich.Task) -> str:
    """Write the time that all rounds took so far, or the steps per second of this one."""
    if "note" not in task.fields:
        return clock(task.elapsed or 0)
    return f"{(task.completed - task.fields['first']) / task.elapsed:.0f}/s" if task.elapsed else ""


def left(task: rich.Task) -> str:
    """Write the time left at the pace since this start; rounds differ too much for rich's own 30 s window."""
    done = task.completed - task.fields["first"]
    if task.total is None or done <= 0 or not task.elapsed:
        return ""
    return f"{clock(task.elapsed * max(0.0, task.total - task.completed) / done)} left"
