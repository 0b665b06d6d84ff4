"""The last sign of life of a run: `state.json`, kept by the process that writes its directory.

It is a help for people, never a truth: what is done, the markers say. It is gone once all fits are done, no result
depends on it, and what cannot be written is left out. It holds

    state             "running", "waiting" (for another run), "failed" or "interrupted"
    works_for         the state.json of a round that this run shares, while its process trains that
    host, pid, born   the process, and when it began (in ticks since the machine did), since numbers come back
    job               Slurm's job, and "_" with the task of an array; null elsewhere
    command           what goes on with the run
    fits, fits_done   how many fits there are in all, and how many were done when the last one began
    round, arm, density, step, steps          the fit at hand; null where unknown
    seconds_per_step                          of this fit since its process began it, or of the fit before
    started, beat     when the process began, and its last sign of life; in seconds since 1970
    error             one line of the exception, with its type

This module imports no torch, so that `python -m lt_lightning status` answers at once.
"""

import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lt_lightning.disk.redact import redacted_arguments, redacted_text

NAME = "state.json"

PATIENCE = 180.0
"""Seconds without a sign of life after which a process on another machine counts as dead."""

State = dict[str, Any]

_ACTIVE = ("running", "waiting")
_LONGEST = 400

_command: str | None = None
"""What goes on with the run at hand, if its program knows better than the command line."""


def tell(path: Path | None, **news: Any) -> None:
    """Bring `state.json` up to date, in one rename; a disk that cannot be written is no reason to stop training.

    Args:
        path: the file; None on processes that do not write.
        news: what has changed; a run that waits for another one tells `state="waiting"` now and then.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / NAME
        >>> tell(path, state="running", step=1)
        >>> tell(path, step=2)
        >>> read(path)["state"], read(path)["step"]
        ('running', 2)
    """
    if path is not None:
        _write(path, (read(path) or {}) | news)


def read(path: Path) -> State | None:
    """What `state.json` holds; None if there is none, or nothing that can be read."""
    try:
        state = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


@contextmanager
def of_run(path: Path | None, fits: int) -> Iterator[None]:
    """Tell that a run is at work while a block runs, and how it ended; one that came to its end needs no file.

    Args:
        path: `state.json`; the directory must be locked. None on processes that do not write.
        fits: how many the run has in all.
    """
    if path is not None:
        unknown = dict.fromkeys(("round", "arm", "density", "step", "steps", "fits_done", "seconds_per_step", "error"))
        _write(path, {"state": "running", **_process(), **unknown, "fits": fits, "started": time.time()})
    try:
        yield
    except GeneratorExit:  # by `break`, or by an error in the loop's body, which only the body's own code can see
        if path is not None and _is_at_work_here(path):
            tell(path, state="interrupted", error="the loop was left before its end")
        raise
    except BaseException as error:
        tell_end(path, error)
        raise
    if path is not None:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def reported(path: Path | None, command_line: str, *, even_if_empty: bool = False) -> Iterator[None]:
    """Tell of any exception that ends a block, such as one in the body of a lottery's loop, or before the loop.

    Args:
        path: `state.json`; None on processes that do not write.
        command_line: what goes on with the run.
        even_if_empty: also in a directory in which nothing lies yet, as for a sweep, whose user is not looking.
    """
    global _command
    before, _command = _command, command_line
    try:
        yield
    except BaseException as error:
        begins = even_if_empty and path is not None and not _holds_anything(path.parent)
        if path is not None and (begins or path.exists()):  # one that is done has no such file, and stays done
            tell_end(path, error)
        raise
    finally:
        _command = before


def tell_end(path: Path | None, error: BaseException) -> None:
    """Tell that a run has failed, or was interrupted; unless another process is at work in the directory."""
    if path is None:
        return
    before = read(path)
    if before is not None and not _is_own(before) and judge(before) in _ACTIVE:
        return
    wanted = isinstance(error, (KeyboardInterrupt, SystemExit))
    tell(path, state="interrupted" if wanted else "failed", error=one_line(error), **_process())


def judge(state: Mapping[str, Any], now: float | None = None, host: str | None = None) -> str:
    """The state of a run: what its file says, or "died" if the process that wrote it shows no sign of life.

    Args:
        state: what the file holds.
        now: seconds since 1970; the clock's if None.
        host: the machine that asks; this one if None. Of its own processes it knows whether they are alive.

    >>> judge({"state": "running", "host": "elsewhere", "beat": 0.0}, now=170.0)
    'running'
    >>> judge({"state": "running", "host": "elsewhere", "beat": 0.0}, now=190.0)
    'died'
    """
    said = str(state.get("state"))
    if said not in _ACTIVE:
        return said
    if state.get("host") == (host or socket.gethostname()):
        return said if _is_alive(state.get("pid"), state.get("born")) else "died"
    silent = (time.time() if now is None else now) - _last_beat(state)
    return said if silent <= PATIENCE else "died"


def is_active(state: Mapping[str, Any]) -> bool:
    """Whether a process is at work, as far as one can tell."""
    return judge(state) in _ACTIVE


def _last_beat(state: Mapping[str, Any]) -> float:
    """The last sign of life, in this file or in that of another directory in which the same process works for this."""
    other = read(Path(state["works_for"])) if state.get("works_for") else None
    same = other is not None and all(other.get(key) == state.get(key) for key in ("host", "pid", "born"))
    return max(float(each.get("beat") or 0.0) for each in ([state, other] if other and same else [state]))


def one_line(error: BaseException) -> str:
    """An exception as one line, with its type.

    >>> one_line(ValueError("two\\n  lines"))
    'ValueError: two lines'
    """
    text = redacted_text(" ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":"))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _write(path: Path, state: State) -> None:
    """Replace the file. It is not waited for until it reaches the disk: after a power cut the old one serves too."""
    stage = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stage.write_text(json.dumps(state | {"beat": time.time()}, indent=1) + "\n", "utf-8")
        os.replace(stage, path)
    except OSError:
        with suppress(OSError):
            stage.unlink(missing_ok=True)


def _process() -> State:
    """Who writes, and what to type to go on."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "born": _born(os.getpid()),
        "job": _job(),
        "command": command(),
    }


def command() -> str:
    """What to type to go on with the run at hand; keys and passwords are left out."""
    return _command or shlex.join(redacted_arguments(sys.orig_argv))


def _job() -> str | None:
    """Slurm's job, as its own tools write it."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def _holds_anything(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())


def _is_own(state: Mapping[str, Any]) -> bool:
    own = _process()
    return all(state.get(key) == own[key] for key in ("host", "pid", "born"))


def _is_at_work_here(path: Path) -> bool:
    """Whether the file says that this very process is at work: a child that it forked must not speak for it."""
    state = read(path)
    return state is not None and state.get("state") in _ACTIVE and _is_own(state)


def _is_alive(pid: Any, born: Any) -> bool:
    """Whether a process of this machine still runs, and is not another one under the same number."""
    if not isinstance(pid, int):
        return False
    if os.path.exists("/proc/self/stat"):
        now = _born(pid)
        return now is not None and born in (None, now)
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _born(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; None if it is gone, or a zombie."""
    try:
        # The name of the program stands in brackets before the rest, and may hold blanks and brackets itself.
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
