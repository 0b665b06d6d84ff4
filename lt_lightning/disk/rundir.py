"""The run directory: where everything lies.

This is the one home of state. A round is done when its `done` marker exists; the marker is written last and holds
the round's record.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lt_lightning.disk import liveness, parts
from lt_lightning.disk.atomic import link, sync, take_place, write_text
from lt_lightning.disk.checksum import digest, from_json, to_json

TICKET = "ticket"
NEXT = "next"
SCRATCH = "fast_dev_run"

MARK = "lt_lightning"
"""The key under which a checkpoint says which file of which run it is; see `identity.py`."""


class RunDirectory:
    """The paths of one run, and what they say about how far it is.

    Args:
        path: the run's root.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def is_scratch(self) -> bool:
        """Whether this holds trial rounds, which never count as done."""
        return self.path.name == SCRATCH

    def scratch(self, *, create: bool) -> "RunDirectory":
        """A new directory within this one for trial rounds (`fast_dev_run`), with links to where rounds start."""
        trial = RunDirectory(self.path / SCRATCH)
        if create:
            shutil.rmtree(trial.path, ignore_errors=True)
            trial.path.mkdir(parents=True)
            patterns = (
                "points",
                "rewind.ckpt",
                "round-*/ticket.safetensors",
                "round-*/start.ckpt",
                f"round-*/{NEXT}/*",
            )
            for path in (path for pattern in patterns for path in self.path.glob(pattern)):
                place = trial.path / path.relative_to(self.path)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(path.resolve())
        return trial

    @property
    def config(self) -> Path:
        """The configuration that everything here was computed with."""
        return self.path / "config.yaml"

    @property
    def fit(self) -> Path:
        """What the first fit was trained with, see `fit/facts.py`."""
        return self.path / "fit.json"

    @property
    def rewind_point(self) -> Path:
        """A link to the rewind point in use."""
        return self.path / "rewind.ckpt"

    @property
    def records(self) -> Path:
        """One row per finished (round, arm)."""
        return self.path / "records.csv"

    @property
    def stopped(self) -> Path:
        """There if rounds have ended before their number: after which round, and by which rule."""
        return self.path / "stopped"

    @property
    def stopped_after(self) -> int | None:
        """The round after which no other is trained; None if all are."""
        if not self.stopped.exists():
            return None
        try:
            return int(json.loads(self.stopped.read_bytes())["after_round"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.stopped} does not say after which round: remove it, and run again.") from error

    @property
    def state(self) -> Path:
        """The last sign of life of a run that is not done; see `liveness.py`."""
        return self.path / liveness.NAME

    @property
    def lock(self) -> Path:
        """There while a process is at work."""
        return self.path / "lock"

    def point(self, step: int) -> Path:
        """The round-0 checkpoint after `step` optimizer steps."""
        return self.path / "points" / f"step-{step}.ckpt"

    def arm(self, round: int, arm: str = TICKET) -> "ArmDirectory":
        """The directory of one fit."""
        base = self.path / f"round-{round:02d}"
        return ArmDirectory(base if arm == TICKET else base / arm)

    def finished(self) -> list[dict[str, Any]]:
        """The records of all finished fits, by round, the ticket before its controls; damaged ones are left out."""
        return [marker["record"] for marker in self._markers()]

    def monitor_found(self) -> str | None:
        """The metric that monitor="auto" stands for, as the first fit with a validation loss found it."""
        return next((found for marker in self._markers() if (found := marker.get("monitor")) is not None), None)

    def _markers(self) -> list[dict[str, Any]]:
        arms = [ArmDirectory(p.parent) for glob in ("round-*/done", "round-*/*/done") for p in self.path.glob(glob)]
        markers = [arm.read_done() for arm in arms if arm.is_done_whole()]

        def place(marker: dict[str, Any]) -> tuple[int, bool, str]:
            row = marker["record"]
            return row["round"], row["arm"] != TICKET, row["arm"]

        return sorted(markers, key=place)

    def link_rewind_point(self, point: Path) -> None:
        """Point `rewind.ckpt` at one of the points, at once."""
        link(point, self.rewind_point)

    def promote_next(self, round: int) -> None:
        """Give the ticket that was found after the last round its own directory, now that the run is longer."""
        target = self.arm(round).path
        staged = self.arm(round - 1).next
        if not self.arm(round).ticket.exists() and staged.exists():
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted(staged.iterdir(), key=lambda file: file.name == "ticket.safetensors"):
                take_place(file, target / file.name)
            staged.rmdir()
            sync(target)


class ArmDirectory:
    """The files of one fit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ticket = path / "ticket.safetensors"
        self.start = path / "start.ckpt"
        self.last = path / "last.ckpt"
        self.early_stop = path / "early_stop.ckpt"
        self.final = path / "final.ckpt"
        self.curves = path / "metrics.csv"
        self.done = path / "done"
        self.origin = path / "trained_in"
        self.sparse = path / "sparse.json"
        self.next = path / NEXT

    def mark_done(
        self, record: Mapping[str, Any], mark: Mapping[str, Any] | None = None, monitor: str | None = None
    ) -> None:
        """Write the marker: what it is, the record, what monitor="auto" found, checksums of curves and of itself."""
        curves = digest(self.curves.read_bytes()) if self.curves.exists() else None
        own, found = {"is": mark} if mark else {}, {"monitor": monitor} if monitor else {}
        write_text(self.done, to_json({**own, "record": record, "metrics.csv": curves, **found}))

    def read_done(self) -> dict[str, Any]:
        """What the marker holds: `is`, `record`, under `metrics.csv` the curves' checksum, and `monitor` if found."""
        return json.loads(self.done.read_text("utf-8"))

    def is_done_whole(self) -> bool:
        """Whether the marker holds what was written."""
        try:
            from_json(self.done.read_text("utf-8"))
            return True
        except ValueError:
            return False

    def are_curves_whole(self) -> bool:
        """Whether the curves are those that the marker knows."""
        return digest(self.curves.read_bytes()) == self.read_done()["metrics.csv"]


def remove_empty(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> None:
    """Remove a directory if nothing lies in it, and then its parents below `root` as long as they are empty."""
    path, root = Path(path).resolve(), Path(root).resolve()
    try:
        path.rmdir()
    except OSError:  # not empty, or not there
        return
    if root in path.parent.parents:
        remove_empty(path.parent, root)


class Checkpoint(Mapping[str, Any]):
    """A checkpoint on disk that is read when it is first looked into.

    Args:
        path: a file that `torch.load(weights_only=True)` reads, tensors are mapped to the CPU; or a directory, of which
            each tensor is read when it is asked for (see `parts.py`).
        mapped: leave the tensors of a file on disk until they are used.
    """

    def __init__(self, path: Path, mapped: bool = False) -> None:
        self.path, self._mapped = path, mapped

    @cached_property
    def _content(self) -> dict[str, Any]:
        if self.path.is_dir():
            return parts.read(self.path)
        return torch.load(self.path, map_location="cpu", weights_only=True, mmap=self._mapped)

    def __getitem__(self, key: str) -> Any:
        return self._content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


def model_state(checkpoint: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    """The model's own weights and buffers; weight averaging puts the averaged ones in their place."""
    return checkpoint.get("current_model_state", checkpoint["state_dict"])
