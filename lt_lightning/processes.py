"""Several processes, one of which writes."""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only


def is_writer() -> bool:
    """Whether this process is the one that writes; known before the first fit starts the process group."""
    return getattr(rank_zero_only, "rank", 0) == 0


def wait() -> None:
    """Let no process go on, to read the disk for example, before all have come here."""
    if _distributed():
        torch.distributed.barrier()


def gather(value: Any) -> list[Any]:
    """The values of all processes, by rank.

    >>> gather("mine")
    ['mine']
    """
    if not _distributed():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
