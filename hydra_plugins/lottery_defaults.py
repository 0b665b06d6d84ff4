"""Defaults in `conf/` that another key takes the place of. Hydra imports the modules of packages of this name."""

from typing import Any

from omegaconf import OmegaConf


def unless(given: Any, default: Any) -> Any:
    """The default, or None if another key is given: `${lt.unless:${.density},12}` is 12 without a density.

    >>> unless(None, 12), unless(0.05, 12)
    (12, None)
    """
    return default if given is None else None


OmegaConf.register_new_resolver("lt.unless", unless, replace=True)
