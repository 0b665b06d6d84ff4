"""The name of a run directory: a function of what was asked for, so that the same command finds the same results."""

import hashlib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from omegaconf import OmegaConf

from lt_lightning.disk.configuration import NEUTRAL

_ELSEWHERE = ("experiment", "prune", "seed", "name", "trainer", "trainer/*", "hydra*", "hparams_search", "study")
"""Overrides that the name already holds, or that choose hardware or a search."""

_LONGEST = 120


def run_directory(name: str, prune: str, overrides: Sequence[str], seed: int, density: Any = None) -> str:
    """`<experiment>/<overrides>/seed=<seed>`, below the folder of all runs.

    Overrides that cannot change a result are left out, odd characters replaced, over-long names cut and hashed. Rounds
    that share out a density are another result for another number of them.

    >>> run_directory("default", "iterative", ["prune=iterative", "model=conv2", "data.path=/a/b", "seed=3"], 3)
    'default/prune=iterative,model=conv2/seed=3'
    """
    rounds = [text for text in overrides if density is not None and _key(text) == "prune.rounds"]
    told = [f"prune={prune}", *sorted([*rounds, *(text for text in overrides if _tells(text))])]
    return f"{study(name)}/{_short(','.join(map(_clean, told)))}/seed={seed}"


def study(name: str) -> str:
    """The folder of an experiment, below that of all runs.

    >>> study("lr 0.1: a first try")
    'lr_0.1_a_first_try'
    """
    return _short(_clean(name))


def register() -> None:
    """Make `${run_directory:...}` known to OmegaConf."""
    OmegaConf.register_new_resolver("run_directory", run_directory, replace=True)


def _tells(override: str) -> bool:
    return not any(fnmatchcase(_key(override), pattern) for pattern in (*NEUTRAL, *_ELSEWHERE))


def _key(override: str) -> str:
    return override.split("=")[0].lstrip("+~").split("@")[0]


def _clean(text: str) -> str:
    return re.sub(r"^\.+|[^\w.=,+~\[\]-]+", "_", str(text))


def _short(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{text[: _LONGEST - 9]}-{digest}"
