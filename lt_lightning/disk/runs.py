"""The runs of a study, as their directories tell: which there are, what each was asked for, and what is done.

This module imports no torch, so that `python -m lt_lightning status` answers at once; what a run directory holds is
laid down in `rundir.py`.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from lt_lightning.disk import liveness

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_LOTTERY = re.compile(r"^lottery:\n(?:[ ].*\n?)+", re.MULTILINE)
"""The part of `config.yaml` that `lottery` has written; to read all of it would take a hundred times as long."""

Fit = tuple[int, str]
"""Round and arm."""


@dataclass(frozen=True)
class Run:
    """One run directory, as it is when it is looked at.

    Args:
        path: the directory.
    """

    path: str

    @cached_property
    def state(self) -> liveness.State | None:
        """What `state.json` says; None if the run is done, or of a release that wrote none."""
        return liveness.read(Path(self.path, liveness.NAME))

    @cached_property
    def stopped_after(self) -> int | None:
        """The round after which `stop_when` has ended the run; None if it has not."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads(Path(self.path, "stopped").read_text("utf-8"))["after_round"])
        return None

    @cached_property
    def planned(self) -> list[Fit] | None:
        """Every fit that `config.yaml` asks for, in order, up to where rounds have ended; None if it does not say."""
        try:
            found = _LOTTERY.search(Path(self.path, "config.yaml").read_text("utf-8"))
            asked = yaml.load(found[0], _Loader)["lottery"] if found else None
            arms = ["ticket", *(asked["controls"] or [])]  # type: ignore[index]
            last = asked["rounds"] if self.stopped_after is None else min(asked["rounds"], self.stopped_after)  # type: ignore[index]
            return [(0, "ticket"), *((n, arm) for n in range(1, last + 1) for arm in arms)]
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            return None

    @cached_property
    def done(self) -> list[Fit]:
        """Every fit whose marker is there, in order."""
        return [fit for fit in self.planned or _found(self.path) if os.path.exists(marker(self.path, *fit))]

    @property
    def is_done(self) -> bool:
        """Whether all that was asked for is done."""
        return self.planned is not None and len(self.done) == len(self.planned)

    def config(self) -> dict[str, Any]:
        """All of `config.yaml`.

        Raises:
            OSError: if it is not there.
            ValueError: if it is damaged.
        """
        path = Path(self.path, "config.yaml")
        try:
            return dict(yaml.load(path.read_bytes(), _Loader) or {})
        except (ValueError, TypeError, yaml.YAMLError) as error:
            told = " ".join(str(error).split())
            raise ValueError(f"{path} is damaged: {told}. Run the run's command again, which mends it.") from error

    def last_record(self) -> tuple[dict[str, Any], float]:
        """The record of the last fit that is done, and when that was (seconds since 1970); empty if none is."""
        with suppress(OSError, ValueError, KeyError, IndexError):
            path = marker(self.path, *self.done[-1])
            with open(path, encoding="utf-8") as file:
                return json.load(file)["record"], os.stat(path).st_mtime
        return {}, os.stat(self.path).st_mtime


def find(directory: str | os.PathLike[str]) -> list[Run]:
    """Every run at or below a directory, by name, numbers by their value.

    Raises:
        NotADirectoryError: if there is no such directory.
    """
    if not os.path.isdir(directory):
        raise NotADirectoryError(f"{os.fspath(directory)} is not a directory; give one with runs below it.")
    return [Run(path) for path in sorted(_walk(os.fspath(directory), set()), key=_natural)]


def marker(run: str, round: int, arm: str) -> str:
    """The file that is there once a fit is done."""
    return "/".join([run, f"round-{round:02d}", *([] if arm == "ticket" else [arm]), "done"])


def _walk(path: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Runs below a path; they hold no other runs. Links are followed, each directory is entered once."""
    try:
        about = os.stat(path)
        with os.scandir(path) as entries:
            inside = {entry.name: entry for entry in entries}
    except OSError:  # it may not be read, or has just been removed
        return
    if (about.st_dev, about.st_ino) in seen:
        return
    seen.add((about.st_dev, about.st_ino))
    if liveness.NAME in inside or ("config.yaml" in inside and ("round-00" in inside or "points" in inside)):
        yield path
        return
    for name, entry in inside.items():
        if not name.startswith(".") and entry.is_dir():
            yield from _walk(f"{path}/{name}", seen)


def _found(path: str) -> list[Fit]:
    """The fits that have a directory, where no configuration tells which there should be."""
    rounds = sorted((int(found[1]), each) for each in Path(path).iterdir() if (found := _ROUND.fullmatch(each.name)))
    return [fit for n, each in rounds for fit in ((n, "ticket"), *((n, done.parent.name) for done in _controls(each)))]


_ROUND = re.compile(r"round-(\d+)")


def _controls(round: Path) -> list[Path]:
    return sorted(round.glob("*/done"))


def _natural(text: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]
