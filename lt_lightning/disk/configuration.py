"""The configuration that a run directory was computed with, and what of it may change."""

import hashlib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from lt_lightning.disk.atomic import write_text
from lt_lightning.disk.redact import redacted

LAYOUT = 3
"""Version of the run directory: which files there are, and what they hold."""

GROWING = (
    *("lottery.rounds", "lottery.controls*", "lottery.points*"),
    *("prune.rounds", "prune.controls*", "prune.points*"),
)
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
    "threads",
    "replicates",
    "share_dense",
    "prune.dry_run",
    "prune.every",
    "prune?stop_when*",
    "lottery.stop_when*",
    "prune.keep_last",
    "prune.sparse",
    "prune.steps_per_batch",
    "prune.may_vary*",
)
"""Configuration keys that cannot change what was already computed: patterns over dotted names."""


def stored(path: Path) -> Mapping[str, Any]:
    """What a `config.yaml` holds; nothing if it is not there, or damaged."""
    try:
        return yaml.safe_load(path.read_bytes()) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def trains_dense(config: Mapping[str, Any]) -> bool:
    """Whether round 0 trains to its end; with `dense=False` it is no dense network to compare with.

    >>> trains_dense({"lottery": {"dense": False}}), trains_dense({})
    (False, True)
    """
    return bool((config.get("lottery") or {}).get("dense", True))


def check(path: Path, config: Mapping[str, Any]) -> None:
    """Compare with the stored configuration, if results lie beside it.

    Raises:
        ValueError: if they are of another configuration, the difference is shown; or of another release.
    """
    if not (path.exists() and has_results(path.parent)):
        return
    stored = _read(path)
    _check_layout(path.parent, stored, config)
    differences = compare(stored, config)
    if differences:
        raise ValueError(
            f"{path.parent} holds results of another configuration:\n"
            + "\n".join(f"  {line}" for line in differences)
            + "\nChoose another directory, or remove this one if its results are not needed."
        )


def claim(path: Path, config: Mapping[str, Any]) -> None:
    """Store the configuration, after `check`; the directory must be locked."""
    check(path, config)
    if path.exists() and has_results(path.parent) and not _has_grown(_read(path), config):
        return  # it says with what the results were computed, such as where the data lay then
    write_text(path, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return yaml.safe_load(path.read_bytes()) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path} cannot be read, and results lie beside it: {error}\n"
            "Restore it, for example from version control, or choose another directory."
        ) from error


def _check_layout(directory: Path, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    there, now = (tree.get("lottery", {}).get("layout", 1) for tree in (stored, given))
    if there != now:
        raise ValueError(
            f"{directory} has layout {there}, and this release reads and writes layout {now} of the run directory. "
            "Finish it with the release that began it, or choose another directory."
        )


def _has_grown(stored: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    there, now = flatten(stored), flatten(given)
    keys = [key for key in now if any(fnmatchcase(key, pattern) for pattern in GROWING)]
    return any(_is_more(now[key], there.get(key)) for key in keys)


def _is_more(now: Any, before: Any) -> bool:
    """Whether there are more rounds, or controls or points that were not there."""
    if isinstance(now, list):
        return any(each not in (before or []) for each in now)
    return now is not None and (before is None or now > before)


def has_results(directory: Path) -> bool:
    """Whether a run directory holds anything that a later fit may start from, or that was measured."""
    return any(any(directory.glob(pattern)) for pattern in ("points/*", "round-*/*.ckpt", "round-*/done"))


def compare(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """One line per key that differs and could change a result.

    >>> compare({"seed": 0, "logger": "csv"}, {"seed": 1, "logger": "wandb"})
    ['seed: 0 there, 1 now']
    """
    there, now = flatten(redacted(stored)), flatten(redacted(given))
    keys = [key for key in there | now if not _is_neutral(key)]
    return [
        f"{key}: {there.get(key, 'not set')} there, {now.get(key, 'not set')} now"
        for key in keys
        if _canonical(there.get(key, ...)) != _canonical(now.get(key, ...))
    ]


def fingerprint(config: Mapping[str, Any]) -> str:
    """A hash of what `compare` compares, 16 hexadecimal digits."""
    leaves = sorted(
        (key, _canonical(value)) for key, value in flatten(redacted(config)).items() if not _is_neutral(key)
    )
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
