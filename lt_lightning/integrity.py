"""What lies on disk is what was written there, or it is set aside and the round that made it is trained again alone.

While rounds are missing, what they start from is looked at; once all are done, everything is. A file that is whole and
belongs elsewhere, such as another round's ticket or another seed's checkpoint, is no better than a damaged one.
"""

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import yaml

from lt_lightning.disk import parts
from lt_lightning.disk.atomic import remove, write_text
from lt_lightning.disk.checksum import sealed
from lt_lightning.disk.configuration import compare
from lt_lightning.disk.rundir import TICKET, ArmDirectory, Checkpoint
from lt_lightning.exchange import ticketfile
from lt_lightning.fit import same_fit
from lt_lightning.identity import difference
from lt_lightning.plan import Plan
from lt_lightning.records import are_curves_whole


@dataclass(frozen=True)
class _Made:
    """A file, the fit (round, arm) that makes it, and the round whose file it is: a ticket's is the one after."""

    path: Path
    round: int
    arm: str
    of: int


def set_aside_damaged(plan: Plan) -> list[Path]:
    """Rename every damaged file to `<name>.damaged` and let the fit that made it be trained again, with a warning.

    Returns:
        The damaged files, under their old names.
    """
    same_fit.read(plan.directory.fit)
    _set_aside_stopped(plan)
    _mend_link(plan)
    damaged = [(made, why) for made in _to_check(plan) if made.path.exists() and (why := _fault(plan, made))]
    for made, why in damaged:
        aside = _rename(made.path)
        maker = plan.directory.arm(made.round, made.arm)
        makers = [maker, plan.directory.arm(made.round + 1)] if _is_tightened(plan, made) else [maker]
        ends_anew = made.path == maker.final and not maker.done.exists()  # it is written from last.ckpt alone
        for path in (path for each in makers for path in (each.done, each.last) if not ends_anew):
            remove(path)
        warnings.warn(
            f"{made.path} {why}. It is now {aside.name}, and round {made.round} ({made.arm}), which makes it, "
            f"{'goes on' if ends_anew else 'is trained again'}; no other round is.",
            stacklevel=2,
        )
    return [made.path for made, _ in damaged]


def _set_aside_stopped(plan: Plan) -> None:
    """Nothing depends on `stopped` but what was not trained: `stop_when` is asked again before every round."""
    stopped = plan.directory.stopped
    try:
        _ = plan.directory.stopped_after
    except ValueError:
        aside = _rename(stopped)
        warnings.warn(f"{stopped} is damaged: it is now {aside.name}, and stop_when is asked again.", stacklevel=3)


def _mend_link(plan: Plan) -> None:
    """Let `rewind.ckpt` be a link to the point that the plan asks for, where it names that by steps."""
    link, point = plan.directory.rewind_point, plan.directory.point(plan.rewind_step.count)
    asked = plan.rewind_step.unit == "steps" and point.exists()
    if asked and link.is_symlink() and link.resolve() != point.resolve():
        warnings.warn(f"{link} was a link to {link.resolve().name}, and is one to {point.name} now.", stacklevel=3)
        plan.directory.link_rewind_point(point)


def _fault(plan: Plan, made: _Made) -> str | None:
    """What is wrong with a file; None: nothing."""
    if not is_whole(made.path):
        return "is damaged: it does not hold what was written"
    if made.path.name == "metrics.csv":
        return None  # what belongs to it knows its checksum
    other = difference(plan, made.path, made.of, made.arm)
    return f"belongs elsewhere: it says {other}" if other else None


def is_sound(plan: Plan, path: Path, round: int, arm: str) -> bool:
    """Whether a file of a fit is whole, and the one that belongs there."""
    return _fault(plan, _Made(path, round, arm, round)) is None


def _is_tightened(plan: Plan, made: _Made) -> bool:
    """Whether this is a ticket that the round before has made and its own round has put other masks into."""
    return plan.gradual is not None and made.path == plan.directory.arm(made.round + 1).ticket


def _rename(path: Path) -> Path:
    """Give a file another name, one that is free."""
    names = (f"{path.name}.damaged{number or ''}" for number in count())
    aside = next(free for name in names if not (free := path.with_name(name)).exists())
    os.replace(path, aside)
    return aside


def is_whole(path: Path) -> bool:
    """Whether a file of a run directory holds what was written, by its checksum or the one that its marker knows."""
    if path.name == "done":
        return ArmDirectory(path.parent).is_done_whole()
    if path.name == "metrics.csv":
        return _are_curves_whole(ArmDirectory(path.parent))
    if path.suffix == ".safetensors":
        return ticketfile.is_whole(path)
    return parts.sealed(path) if path.is_dir() else sealed(path)


def _are_curves_whole(files: ArmDirectory) -> bool:
    if files.done.exists():
        return files.are_curves_whole()
    if not files.last.exists() or not is_whole(files.last):
        return True  # they are begun anew
    states = Checkpoint(files.last)["callbacks"].values()
    rows, checksum = next(state["measured"]["curves"] for state in states if "measured" in state)
    return are_curves_whole(files.curves, rows, checksum)


def _to_check(plan: Plan) -> list[_Made]:
    """Markers first: what they know about other files counts only if they are whole."""
    stopped = plan.directory.stopped_after
    arms = [fit for fit in plan.arms if stopped is None or fit[0] <= stopped]
    markers = [_Made(plan.directory.arm(*fit).done, *fit, fit[0]) for fit in plan.arms]
    finished = {fit for fit in arms if (done := plan.directory.arm(*fit).done).exists() and is_sound(plan, done, *fit)}
    complete = len(finished) == len(arms)
    starts = [made for fit in plan.arms if complete or fit not in finished for made in _starts(plan, *fit)]
    results = [made for fit in arms if complete for made in _results(plan, *fit)]
    return [*dict.fromkeys([*markers, *_points(plan), *starts, *results])]


def _points(plan: Plan) -> Iterator[_Made]:
    rewind = plan.directory.rewind_point
    copied = [rewind] if rewind.exists() and not rewind.is_symlink() else []
    for path in (*sorted(plan.directory.point(0).parent.glob("step-*.ckpt")), *copied):
        yield _Made(path, 0, TICKET, 0)


def _starts(plan: Plan, round: int, arm: str) -> Iterator[_Made]:
    """What a fit starts from or continues from. A ticket is made by the round before, but a control's by itself.

    A control is made of its round's ticket.
    """
    files, ticket = plan.directory.arm(round, arm), plan.directory.arm(round)
    yield from (_Made(path, max(round - 1, 0), TICKET, round) for path in (ticket.ticket, ticket.start))
    if arm != TICKET:
        yield from (_Made(path, round, arm, round) for path in (files.ticket, files.start))
    if not files.done.exists():
        unfinished = (files.last, files.early_stop, files.final, files.curves)
        yield from (_Made(path, round, arm, round) for path in unfinished)
    if arm == TICKET and round > 0:
        yield from _next(plan, round - 1)


def _results(plan: Plan, round: int, arm: str) -> Iterator[_Made]:
    files = plan.directory.arm(round, arm)
    last = [files.last] if plan.keep_last else []
    yield from (_Made(path, round, arm, round) for path in (files.final, files.early_stop, files.curves, *last))
    if arm == TICKET:
        yield from _next(plan, round)


def _next(plan: Plan, round: int) -> Iterator[_Made]:
    """The ticket that was found after the last round."""
    waiting = ArmDirectory(plan.directory.arm(round).next)
    yield from (_Made(path, round, TICKET, round + 1) for path in (waiting.ticket, waiting.start))


def mend_config(plan: Plan) -> None:
    """Restore `config.yaml` if it is damaged."""
    path = plan.directory.config
    if is_config_damaged(plan):
        aside = _rename(path)
        write_text(path, yaml.safe_dump(dict(plan.config), sort_keys=False, allow_unicode=True))
        warnings.warn(
            f"{path} was damaged: the tickets here were made with the configuration given now, which it did not hold. "
            f"It is written again; what was there is {aside.name}.",
            stacklevel=2,
        )


def is_config_damaged(plan: Plan) -> bool:
    """Whether `config.yaml` differs from the given configuration, but the tickets say that this is theirs."""
    path = plan.directory.config
    if not path.exists() or not _differs(path, plan):
        return False
    return _fingerprints(plan) == {plan.fingerprint}


def check_tickets(plan: Plan) -> None:
    """Raise a ValueError if `config.yaml` is gone and the tickets were made with another configuration."""
    if not plan.directory.config.exists() and _fingerprints(plan) - {plan.fingerprint}:
        raise ValueError(
            f"{plan.directory.config} is gone, and the tickets here were made with another configuration than the one "
            "given now. Give that one, or choose another directory."
        )


def _fingerprints(plan: Plan) -> set[str]:
    """Of the configurations that the tickets were made with."""
    tickets = plan.directory.path.glob("round-*/**/*.safetensors")
    return {ticketfile.read(file).config for file in tickets if ticketfile.is_whole(file)}


def _differs(path: Path, plan: Plan) -> bool:
    try:
        return bool(compare(yaml.safe_load(path.read_bytes()), plan.config))
    except (ValueError, AttributeError, yaml.YAMLError):
        return True
