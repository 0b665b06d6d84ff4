"""`python -m lt_lightning analyse`: what the masks and weights of runs tell, as tables and pictures.

This module imports no torch before a command runs.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lt_lightning.disk.runs import Run

_EPILOG = """\
Each takes one or more runs, or directories with runs below, and looks at the rounds that are done. Tables (CSV) and
pictures (PNG) go to RUN/analysis, or to --output; a comparison of several runs to `analysis` in the directory that they
have in common. A run that is at work is not disturbed. The exit code is 2 if there is nothing to look at.

examples:
  python -m lt_lightning analyse all runs/mine                              everything that needs no training
  python -m lt_lightning analyse overlap runs/lenet/seed=0 runs/lenet/seed=1
  python -m lt_lightning analyse instability runs/mine --round 0 3          trains copies; see its own --help
"""
_OVERLAP = """\
The Jaccard index of masks (kept by both over kept by either), against what masks would have by chance that keep as many
weights in each layer: of several runs after as many rounds; within a run between its rounds, and between a ticket and a
control whose masks are its own.

Writes overlap.csv, a row per pair and layer, and overlap.png.

examples:
  python -m lt_lightning analyse overlap runs/lenet                         all runs below, each with each
  python -m lt_lightning analyse overlap runs/mine --json | jq '.overlap[] | select(.layer == "all")'
"""
_MOVEMENT = """\
How far weights moved from the start of a fit to its end, those that were kept next and those that were pruned; how many
changed their sign; and where those lay in the dense round that the last ticket keeps.

Writes movement.csv, movement.png, movement_distributions.csv and movement_distributions.png.

example:
  python -m lt_lightning analyse movement runs/mine
"""
_LAYERS = """\
The density of each layer by round, units that nothing reaches (no incoming weights) or that nothing hears (no outgoing
weights), and the connections of every unit; for a first layer on images, which pixels are still seen.

Writes layers.csv, units.csv, layers.png and, for images, pixels.png.

example:
  python -m lt_lightning analyse layers runs/mine
"""
_INSTABILITY = """\
Trains copies from a point of the run, under the masks of a round, that see the data in other orders; then tests
weights on the line between each two of them. The barrier is the largest error on the line less the mean of its ends;
below 2 points the network is stable (Frankle et al. 2020, arXiv 1912.05671). Several runs are several initial weights:
the paper takes 3 runs and 3 orders.

The copies are trained as the run was, from its config.yaml, on one device. They are kept in RUN/analysis/instability
(or below --output): the same command goes on where it was, and trains nothing twice. Statistics of batch norm are
computed anew at every place on the line.

Writes instability.csv (error and loss at every place), barriers.csv and instability.png.

examples:
  python -m lt_lightning analyse instability RUN                            the dense network, from the rewind point
  python -m lt_lightning analyse instability RUN --round 0 3 --orders 3     and the ticket of round 3, three orders
  python -m lt_lightning analyse instability RUN --step 0 500               if the run has both points
  python -m lt_lightning analyse instability runs/lenet --orders 3          every run below, as one table
  python -m lt_lightning analyse instability RUN --set data.path=FOLDER     where the data lies now
"""


@dataclass(frozen=True)
class Findings:
    """What an analysis found, and where it is.

    Args:
        name: of the analysis.
        text: the table for people.
        rows: the table for programs.
        written: the files.
        notes: what could not be looked at, and why.
    """

    name: str
    text: str
    rows: Sequence[dict[str, Any]]
    written: Sequence[Path]
    notes: Sequence[str] = field(default=())


def add(commands: Any, style: Any) -> None:
    """Add `analyse` and its analyses to the subparsers of the command line."""
    about = "what masks and weights tell: overlap, movement, layers, instability"
    parser = commands.add_parser("analyse", help=about, epilog=_EPILOG, formatter_class=style)
    analyses = parser.add_subparsers(required=True, metavar="ANALYSIS")
    for name, (does, epilog, analyse) in _ANALYSES.items():
        one = analyses.add_parser(name, help=does, epilog=epilog, formatter_class=style)
        one.add_argument("runs", metavar="RUN", nargs="+", help="a run directory, or one with runs below")
        one.add_argument("--output", metavar="DIR", help="where to write; see above if left out")
        one.add_argument("--json", action="store_true", help="for programs: the tables, what is missing, the files")
        one.set_defaults(analyse=analyse)
        if name == "instability":
            _add_instability(one)


def _add_instability(one: argparse.ArgumentParser) -> None:
    numbers: dict[str, Any] = {"metavar": "N", "type": int}
    one.add_argument(
        "--round", **numbers, nargs="+", default=[0], help="whose masks; 0, the dense network, if left out"
    )
    one.add_argument(
        "--step", **numbers, nargs="+", default=[None], help="from which point; where the round itself began"
    )
    one.add_argument("--orders", **numbers, default=2, help="how many copies (2)")
    one.add_argument("--places", **numbers, default=30, help="how many weights on a line, both ends among them (30)")
    one.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="what changes no result")
    one.add_argument("--trust", action="store_true", help="run whatever code the runs' config.yaml name")


def run(given: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Run an analysis.

    Returns:
        What it found, for programs and for people.

    Raises:
        OSError: if a directory is none, or cannot be written.
        ValueError: if there is nothing to look at.
    """
    from lt_lightning.analysis import fits

    found = fits.find(given.runs)
    done = [each for each in found if each.done]
    missing = list(fits.missing(found))
    if not done:
        raise ValueError("\n".join(["no fit is done yet, so there is nothing to look at:", *missing]))
    findings = list(given.analyse(done, given))
    told = [line for each in findings if each.text for line in (each.name, each.text, "")]
    told += [f"left out    {note}" for each in findings for note in each.notes]
    told += [f"missing     {line}" for line in missing]
    told += [f"written     {path}" for each in findings for path in each.written]
    tables: dict[str, list[Any]] = {}
    for each in findings:
        tables.setdefault(each.name.split(":")[0], []).extend(each.rows)
    written = [str(path) for each in findings for path in each.written]
    left_out = [note for each in findings for note in each.notes]
    return {**tables, "missing": missing, "left_out": left_out, "written": written}, "\n".join(told)


def _all(found: Sequence["Run"], given: argparse.Namespace) -> Iterator[Findings]:
    yield from _layers(found, given)
    yield from _movement(found, given)
    try:
        yield from _overlap(found, given)
    except ValueError as error:
        yield Findings("overlap", "", [], [], [f"overlap: {error}"])


def _overlap(found: Sequence["Run"], given: argparse.Namespace) -> Iterator[Findings]:
    from lt_lightning.analysis import overlap

    rows = overlap.tabulate(found)
    folder = _together(found, given)
    picture = overlap.draw(folder / "overlap.png", rows)
    yield Findings("overlap", overlap.text(rows), rows, [_table(folder / "overlap.csv", rows), picture])


def _movement(found: Sequence["Run"], given: argparse.Namespace) -> Iterator[Findings]:
    from lt_lightning.analysis import movement
    from lt_lightning.disk.configuration import trains_dense

    for each, folder, name in _apart(found, given):
        rows, notes = movement.tabulate(each), []
        if not rows:
            yield Findings("movement", "", [], [], [f"{each.path}: movement, no fit has stored where it began"])
            continue
        written = [_table(folder / "movement.csv", rows), movement.draw(folder / "movement.png", rows, name)]
        ends = movement.dense_and_last(each)
        start = ends[0].start() if ends else None
        if ends and start is not None:
            shares = movement.distributions(start, ends[0].end(), ends[1].masks())
            first = "the dense round" if trains_dense(each.config()) else "round 0, which was not trained"
            heading = f"{name}: weights of {first}, by the masks of round {ends[1].round}"
            picture = movement.draw_distributions(folder / "movement_distributions.png", shares, heading)
            written += [_table(folder / "movement_distributions.csv", shares), picture]
        else:
            notes = [f"{each.path}: distributions, which need a pruned round"]
        yield Findings(_named("movement", name, found), movement.text(rows), _of_run(rows, each), written, notes)


def _layers(found: Sequence["Run"], given: argparse.Namespace) -> Iterator[Findings]:
    from lt_lightning.analysis import layers

    for each, folder, name in _apart(found, given):
        rows = layers.tabulate(each)
        written = [_table(folder / "layers.csv", rows), _table(folder / "units.csv", layers.units(each))]
        written.append(layers.draw(folder / "layers.png", rows, name))
        pixels = layers.draw_pixels(folder / "pixels.png", each)
        notes = [] if pixels else [f"{each.path}: pixels, which need a linear first layer on images and a pruned round"]
        written += [pixels] if pixels else []
        yield Findings(_named("layers", name, found), layers.text(rows), _of_run(rows, each), written, notes)


def _instability(found: Sequence["Run"], given: argparse.Namespace) -> Iterator[Findings]:
    from lt_lightning.analysis import copies, instability, recipe

    rows: list[dict[str, Any]] = []
    settings = [(round, step) for round in given.round for step in given.step]
    recipes = {each.path: recipe.of_run(each.path, given.set, trust=given.trust) for each in found}
    for each in found:  # errors before any training
        for round, step in settings:
            copies.find_start(each.path, round, step)
    for each, folder, name in _apart(found, given):
        measure = partial(instability.measure, each.path, recipes[each.path], orders=given.orders, places=given.places)
        for round, step in settings:
            with _goes_on(), _quiet():
                measured = measure(round=round, step=step, output=folder / "instability", tell=partial(_tell, name))
            rows += [{"run": name, **row} for row in measured]
    barriers, folder = instability.summarize(rows), _together(found, given)
    tables = [_table(folder / "instability.csv", rows), _table(folder / "barriers.csv", barriers)]
    picture = instability.draw(folder / "instability.png", rows)
    yield Findings("instability", instability.text(rows), barriers, [*tables, picture])


@contextmanager
def _goes_on() -> Iterator[None]:
    """Say how to go on, if the block is interrupted."""
    from lt_lightning.fit.interruption import Interrupted

    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """Say what `train.py` says, and no more, while a block runs."""
    import logging
    import warnings

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 under torch 2.13
        warnings.filterwarnings("ignore", message="The `srun` command is available")  # on a cluster's login node
        try:
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def _tell(run: str, text: str) -> None:
    print(f"{run}: {text}", file=sys.stderr, flush=True)


def _named(analysis: str, name: str, found: Sequence["Run"]) -> str:
    return f"{analysis}: {name}" if len(found) > 1 else analysis


def _of_run(rows: Sequence[dict[str, Any]], run: "Run") -> list[dict[str, Any]]:
    return [{"run": run.path, **row} for row in rows]


def _apart(found: Sequence["Run"], given: argparse.Namespace) -> Iterator[tuple["Run", Path, str]]:
    """Each run, where its own files go, and its name."""
    from lt_lightning.analysis import fits

    for path, name in fits.names(found).items():
        own = Path(path, "analysis")
        if given.output is not None:
            own = Path(given.output, name) if len(found) > 1 else Path(given.output)
        yield next(each for each in found if each.path == path), own, name


def _together(found: Sequence["Run"], given: argparse.Namespace) -> Path:
    """Where the files of a comparison go."""
    if given.output is not None:
        return Path(given.output)
    return Path(os.path.commonpath([os.path.abspath(each.path) for each in found]), "analysis")


def _table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    from lt_lightning.disk.atomic import write_text
    from lt_lightning.records import to_csv

    write_text(path, to_csv(rows))
    return path


Analyse = Callable[[Sequence["Run"], argparse.Namespace], Iterator[Findings]]

_ANALYSES: dict[str, tuple[str, str, Analyse]] = {
    "all": ("overlap, movement and layers", _EPILOG, _all),
    "overlap": ("what masks have in common, against chance", _OVERLAP, _overlap),
    "movement": ("how far kept and pruned weights moved", _MOVEMENT, _movement),
    "instability": ("whether copies with other orders of data end alike; trains", _INSTABILITY, _instability),
    "layers": ("density, dead units and connections by layer", _LAYERS, _layers),
}
