"""The name of a run directory: a function of what was asked for, so that the same command finds the same results."""

import hashlib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from omegaconf import OmegaConf

from lt_lightning.disk.configuration import NEUTRAL
from lt_lightning.disk.redact import redacted_arguments

_ELSEWHERE = ("experiment", "prune", "seed", "name", "trainer", "trainer/*", "hydra*", "hparams_search", "study")
"""Overrides that the name already holds, or that choose hardware or a search."""

_LONGEST = 120


def run_directory(name: str, prune: str, overrides: Sequence[str], seed: int) -> str:
    """`<experiment>/<overrides>/seed=<seed>`, below the folder of all runs.

    Overrides that cannot change a result are left out, odd characters replaced, over-long names cut and hashed; what is
    secret is no part of a name.

    >>> run_directory("default", "iterative", ["prune=iterative", "model=conv2", "data.path=/a/b", "seed=3"], 3)
    'default/prune=iterative,model=conv2/seed=3'
    """
    told = [f"prune={prune}", *sorted(text for text in overrides if _tells(text))]
    return f"{study(name)}/{_short(','.join(map(_clean, redacted_arguments(told))))}/seed={seed}"


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
    key = override.split("=")[0].lstrip("+~").split("@")[0]
    return not any(fnmatchcase(key, pattern) for pattern in (*NEUTRAL, *_ELSEWHERE))


def _clean(text: str) -> str:
    return re.sub(r"^\.+|[^\w.=,+~\[\]-]+", "_", str(text))


def _short(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{text[: _LONGEST - 9]}-{digest}"
