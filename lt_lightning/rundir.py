"""The run directory: where everything lies, written atomically, so that a kill at any instant leaves it readable.

This is the one home of state. A round is done when its `done` marker exists; the marker is written last and holds
the round's record.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

TICKET = "ticket"
NEXT = "next"
SCRATCH = "fast_dev_run"

GROWING = ("lottery.rounds", "lottery.controls*", "prune.rounds", "prune.controls*")
"""Configuration keys that may grow: what was computed stays, and what is missing is added."""

NEUTRAL = (
    *GROWING,
    "data.path",
    "*num_workers",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy*",
    "trainer.enable_*",
    "trainer.fast_dev_run",
    "trainer.log_every_n_steps",
    "trainer.profiler*",
    "logger*",
    "launcher*",
    "prune.dry_run",
    "threads",
)
"""Configuration keys that cannot change what was already computed: patterns over dotted names."""


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
                link = trial.path / path.relative_to(self.path)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())
        return trial

    @property
    def config(self) -> Path:
        """The configuration that everything here was computed with."""
        return self.path / "config.yaml"

    @property
    def rewind_point(self) -> Path:
        """A link to the rewind point in use."""
        return self.path / "rewind.ckpt"

    @property
    def records(self) -> Path:
        """One row per finished (round, arm)."""
        return self.path / "records.csv"

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
        """The records of all finished fits, by round, the ticket before its controls."""
        rows = [json.loads(p.read_text("utf-8")) for g in ("round-*/done", "round-*/*/done") for p in self.path.glob(g)]
        return sorted(rows, key=lambda row: (row["round"], row["arm"] != TICKET, row["arm"]))

    def link_rewind_point(self, point: Path) -> None:
        """Point `rewind.ckpt` at one of the points, atomically."""
        staged = self.path / ".rewind.partial"
        staged.unlink(missing_ok=True)
        staged.symlink_to(point.relative_to(self.path))
        os.replace(staged, self.rewind_point)
        sync_directory(self.path)

    def promote_next(self, round: int) -> None:
        """Give the ticket that was found after the last round its own directory, now that the run is longer."""
        target = self.arm(round).path
        staged = self.arm(round - 1).next
        if not self.arm(round).ticket.exists() and staged.exists():
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted(staged.iterdir(), key=lambda file: file.name == "ticket.safetensors"):
                os.replace(file, target / file.name)
            staged.rmdir()
            sync_directory(target)


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
        self.next = path / NEXT


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; a file that already holds the text is left alone."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; a file that already holds the content is left alone."""
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = partial_path(path)
    staged.write_bytes(content)
    commit(staged, path)


def partial_path(path: Path) -> Path:
    """Where a file is staged: beside its target, since a rename is atomic only within a file system.

    >>> partial_path(Path("run/last.ckpt")).as_posix()
    'run/.last.ckpt.partial'
    """
    return path.with_name(f".{path.name}.partial")


def commit(staged: Path, path: Path) -> None:
    """Move a staged file to its place, after it has reached the disk."""
    with open(staged, "rb") as file:
        os.fsync(file.fileno())
    os.replace(staged, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Let a rename in this directory reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        path: a file that `torch.load(weights_only=True)` reads; tensors are mapped to the CPU.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _content(self) -> dict[str, Any]:
        return torch.load(self.path, map_location="cpu", weights_only=True)

    def __getitem__(self, key: str) -> Any:
        return self._content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


def model_state(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The model's own weights and buffers; weight averaging puts the averaged ones in their place."""
    return checkpoint.get("current_model_state", checkpoint["state_dict"])


def claim(path: Path, config: Mapping[str, Any]) -> None:
    """Store the configuration, or compare with the stored one.

    Raises:
        ValueError: if results with another configuration lie here; the difference is shown.
    """
    if path.exists() and _has_results(path.parent):
        stored = yaml.safe_load(path.read_text("utf-8")) or {}
        differences = compare(stored, config)
        if differences:
            raise ValueError(
                f"{path.parent} holds results of another configuration:\n"
                + "\n".join(f"  {line}" for line in differences)
                + "\nChoose another directory, or remove this one if its results are not needed."
            )
        if not _has_grown(stored, config):
            return  # it says with what the results were computed, such as where the data lay then
    write_text(path, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def _has_grown(stored: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    there, now = flatten(stored), flatten(given)
    keys = [key for key in there | now if any(fnmatchcase(key, pattern) for pattern in GROWING)]
    return any(_canonical(there.get(key, ...)) != _canonical(now.get(key, ...)) for key in keys)


def _has_results(directory: Path) -> bool:
    return any(any(directory.glob(pattern)) for pattern in ("points/*", "round-*/*.ckpt", "round-*/done"))


def compare(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """One line per key that differs and could change a result.

    >>> compare({"seed": 0, "logger": "csv"}, {"seed": 1, "logger": "wandb"})
    ['seed: 0 there, 1 now']
    """
    there, now = flatten(stored), flatten(given)
    keys = [key for key in there | now if not _is_neutral(key)]
    return [
        f"{key}: {there.get(key, 'not set')} there, {now.get(key, 'not set')} now"
        for key in keys
        if _canonical(there.get(key, ...)) != _canonical(now.get(key, ...))
    ]


def fingerprint(config: Mapping[str, Any]) -> str:
    """A hash of what `compare` compares, 16 hexadecimal digits."""
    leaves = sorted((key, _canonical(value)) for key, value in flatten(config).items() if not _is_neutral(key))
    return hashlib.sha256(repr(leaves).encode()).hexdigest()[:16]


def _canonical(value: Any) -> str:
    """Equal for equal values: 1 and 1.0 alike, and a NaN equal to itself."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_canonical, value))}]"
    return repr(int(value)) if isinstance(value, float) and value.is_integer() else repr(value)


def _is_neutral(key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in NEUTRAL)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name → leaf.

    >>> flatten({"a": {"b": 1}, "c": [2, 3]})
    {'a.b': 1, 'c': [2, 3]}
    """
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        leaves |= flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return leaves
