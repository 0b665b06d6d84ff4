"""Where a study stands: `python -m lt_lightning status DIR`."""

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lt_lightning.disk import liveness, runs
from lt_lightning.wording import age, clock, percent, table

STATES = ("done", "running", "waiting", "partial", "interrupted", "died", "failed")
"""All states that a run can be in: `partial` has fits to do, and no process that says anything about it."""

BAD = ("failed", "died")
"""The states that need someone's attention."""

_HEADER = ("state", "fits", "round", "arm", "density", "step", "seen", "left", "where", "run")
_RIGHT = ("fits", "round", "density", "step", "seen", "left")

Status = dict[str, Any]
"""What is known of a run; None where it is not."""


def look(directory: str | os.PathLike[str], now: float | None = None) -> list[Status]:
    """The status of every run at or below a directory.

    Args:
        directory: where to look.
        now: seconds since 1970; the clock's if None.

    Returns:
        For each run: `run` (its path from `directory`), `directory`, `state`, `round`, `arm`, `density`, `fits_done`,
        `fits`, `step`, `steps`, `host`, `pid`, `job`, `age` and `left` (seconds), `stopped_after` (a round, or None),
        `error`, `command`.

    Raises:
        NotADirectoryError: if there is no such directory.
    """
    now = time.time() if now is None else now
    return [_of_run(run, os.fspath(directory), now) for run in runs.find(directory)]


def _of_run(run: runs.Run, root: str, now: float) -> Status:
    state = run.state or {}
    judged = _judge(run, now)
    active = judged in ("running", "waiting")
    fit, seen = _last_fit(run) if not active and state.get("round") is None else (state, 0.0)
    fits = len(run.planned) if run.planned else state.get("fits")
    return {
        "run": os.path.relpath(run.path, root),
        "directory": os.path.abspath(run.path),
        "state": judged,
        **{key: fit.get(key) for key in ("round", "arm", "density")},
        "fits_done": len(run.done),
        "fits": fits,
        **{key: fit.get(key) for key in ("step", "steps")},
        **{key: state.get(key) for key in ("host", "pid", "job")},
        "age": now - (state.get("beat") or seen),
        "stopped_after": run.stopped_after,
        "left": _left(state, (fits or 0) - len(run.done) - 1) if active else None,
        **{key: None if judged == "done" else state.get(key) for key in ("error", "command")},
    }


def _last_fit(run: runs.Run) -> tuple[Mapping[str, Any], float]:
    """What the last marker says, and when it was written."""
    record, ended = run.last_record()
    return record | {"step": record.get("steps")}, ended


def _judge(run: runs.Run, now: float) -> str:
    """The process has the word while it lives, or if it failed; else the markers have."""
    said = liveness.judge(run.state, now) if run.state else "partial"
    return "done" if said in ("died", "interrupted", "partial") and run.is_done else said


def _left(state: Mapping[str, Any], later: int) -> float | None:
    """Seconds left at the present pace, if the fits that come later take as many steps; None if that is unknown."""
    pace, steps = state.get("seconds_per_step"), state.get("steps")
    if pace is None or steps is None:
        return None
    return pace * (max(0, steps - (state.get("step") or 0)) + max(0, later) * steps)


def text(rows: Sequence[Status]) -> str:
    """The table for people: a line per run, below it why it failed and what goes on with it, and a summary."""
    if not rows:
        return "no runs"
    lines = table(_HEADER, [_cells(row) for row in rows], _RIGHT)
    told = [lines[0]]
    for row, line in zip(rows, lines[1:], strict=True):
        told.append(line)
        if row["stopped_after"] is not None:
            told.append(f"    ended after round {row['stopped_after']} by its stop_when")
        if row["state"] in (*BAD, "interrupted"):
            told += [f"    {row[key]}" for key in ("error", "command") if row[key]]
    return "\n".join([*told, "", count(rows)])


def count(rows: Sequence[Status]) -> str:
    """How many runs are in which state.

    >>> count([{"state": "failed"}, {"state": "done"}, {"state": "done"}])
    '3 runs: 2 done, 1 failed'
    """
    counts = Counter(row["state"] for row in rows)
    told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return f"{len(rows)} run{'s' * (len(rows) != 1)}: {told}"


def _cells(row: Status) -> list[str]:
    job = f"job {row['job']}" if row["job"] else f"process {row['pid']}"
    return [
        row["state"],
        f"{row['fits_done']}/{'?' if row['fits'] is None else row['fits']}",
        _or_dash(row["round"]),
        _or_dash(row["arm"]),
        "-" if row["density"] is None else percent(row["density"]),
        "-" if row["step"] is None else f"{row['step']}/{_or_dash(row['steps'])}",
        age(row["age"]),
        "-" if row["left"] is None else clock(row["left"]),
        f"{row['host']}, {job}" if row["host"] else "-",
        row["run"],
    ]


def _or_dash(value: Any) -> str:
    return "-" if value is None else str(value)
