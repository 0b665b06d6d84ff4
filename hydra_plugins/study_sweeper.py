"""A Hydra sweeper for studies that are more than one grid. Hydra looks for plugins in packages of this name only."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override


class StudySweeper(BasicSweeper):
    """Run several grids in one sweep, each crossed with what the command line and `params` sweep over.

    Args:
        max_batch_size: how many jobs a launcher is given at once; None: all.
        params: override → values, as in Hydra's own sweeper; for every grid.
        grids: a mapping of that kind for each grid; what it says counts before the command line and `params`.
    """

    def __init__(
        self, max_batch_size: int | None, params: dict[str, str] | None, grids: Sequence[Mapping[str, Any]]
    ) -> None:
        super().__init__(max_batch_size, params)
        self.grids = grids

    def split_arguments(  # type: ignore[override]  # static in Hydra, which calls it on the instance
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """All jobs of all grids, as lists of overrides, in batches."""
        context: Any = self.hydra_context
        parser = OverridesParser.create(config_loader=context.config_loader)
        grids = [parser.parse_overrides([f"{key}={value}" for key, value in grid.items()]) for grid in self.grids]
        jobs = chain(*(BasicSweeper.split_arguments([*overrides, *grid], None)[0] for grid in grids))
        unique = list({tuple(job): list(job) for job in jobs}.values())
        return list(self.split_overrides_to_chunks(unique, max_batch_size))
