"""Where this process stands among those that share the batches."""

from typing import TypedDict

import lightning as L
import torch


class Place(TypedDict):
    """Which slice of each batch is ours, and how many there are."""

    rank: int
    world_size: int


def place(trainer: L.Trainer | None) -> Place:
    """Return the place of this process; without a Trainer it is alone.

    Under tensor parallelism several processes share the same data: this is not the Trainer's world size.

    >>> place(None)
    {'rank': 0, 'world_size': 1}
    """
    among = (trainer.distributed_sampler_kwargs if trainer else None) or {}
    return {"rank": among.get("rank", 0), "world_size": among.get("num_replicas", 1)}


def device(trainer: L.Trainer | None) -> torch.device:
    """Return the device of this process; without a Trainer it is the CPU."""
    return trainer.strategy.root_device if trainer else torch.device("cpu")
