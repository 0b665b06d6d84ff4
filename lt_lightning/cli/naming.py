"""The name of a run directory: a function of what was asked for, so that the same command finds the same results."""

import hashlib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from omegaconf import OmegaConf

from lt_lightning.disk.configuration import NEUTRAL
from lt_lightning.disk.redact import redacted_arguments

_ELSEWHERE = ("experiment", "prune", "seed", "name", "trainer", "trainer/*", "hydra*", "hparams_search", "study")
"""Overrides that the name already holds, or that choose hardware or a search."""

_LONGEST = 120

_DURATION = re.compile(r"\d+ (steps?|epochs?)")


def run_directory(name: str, prune: str, overrides: Sequence[str], seed: int, density: Any = None) -> str:
    """`<experiment>/<overrides>/seed=<seed>`, below the folder of all runs.

    Overrides that cannot change a result are left out. Odd characters are replaced, with a hash of what was there, so
    that other overrides have another name; over-long names are cut and hashed. What is secret is no part of a name.
    Rounds that share out a density are another result for another number of them.

    >>> run_directory("default", "iterative", ["prune=iterative", "model=conv2", "data.path=/a/b", "seed=3"], 3)
    'default/prune=iterative,model=conv2/seed=3'
    >>> run_directory("default", "one_shot", ['prune.prunable=["!*head*"]'], 3)
    'default/prune=one_shot,prune.prunable=[_head_]-3e22b136/seed=3'
    """
    texts = _texts(overrides)
    rounds = [text for text in texts if density is not None and _key(text) == "prune.rounds"]
    told = [f"prune={prune}", *sorted([*rounds, *(text for text in texts if _tells(text))])]
    return f"{study(name)}/{_short(','.join(map(_named, redacted_arguments(told))))}/seed={seed}"


def study(name: str) -> str:
    """The folder of an experiment, below that of all runs.

    >>> study("lr-0.1"), study("lr 0.1")
    ('lr-0.1', 'lr_0.1-0b769978')
    """
    return _short(_named(str(name)))


def register() -> None:
    """Make `${run_directory:...}` known to OmegaConf."""
    OmegaConf.register_new_resolver("run_directory", run_directory, replace=True)


def _tells(override: str) -> bool:
    return not any(fnmatchcase(_key(override), pattern) for pattern in (*NEUTRAL, *_ELSEWHERE))


def _key(override: str) -> str:
    return override.split("=")[0].lstrip("+~").split("@")[0]


def _texts(overrides: Sequence[str]) -> Sequence[str]:
    """The overrides as they were written: the text of an interpolation (`model.width=${x}`), not its value."""
    return OmegaConf.to_container(overrides, resolve=False) if OmegaConf.is_list(overrides) else overrides  # type: ignore[return-value]


def _named(text: str) -> str:
    """A text in harmless characters: other texts have other names."""
    clean = re.sub(r"^\.+|[^\w.=,+~\[\]-]+", "_", text)
    return clean if _is_readable(text, clean) else f"{clean}-{_digest(text)}"


def _is_readable(text: str, clean: str) -> bool:
    """Whether no other text that can be meant has this clean name: a group's `/`, and the space of "100 steps"."""
    key, _, value = text.partition("=")
    duration = _DURATION.fullmatch(value)
    meant = f"{key.replace('/', '_')}={value.replace(' ', '_') if duration else value}" if value else text
    return clean == meant and (bool(duration) or not _DURATION.fullmatch(value.replace("_", " ")))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 9]}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
