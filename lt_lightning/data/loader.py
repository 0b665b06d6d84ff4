"""What our loaders share: an order given by (seed, epoch), a position for checkpoints, a share for each rank."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import SimpleNamespace

import torch
from torch import Tensor

from lt_lightning.seeding import generator

Batch = tuple[Tensor, Tensor]

Places = slice | Tensor
"""Positions in an epoch's order: a slice, or int64 [B] where some lie at `count` or beyond, to fill up a batch."""


class Loader(ABC):
    """An iterable of batches of samples 0 ... count - 1; the kinds of data derive from it.

    Step t of an epoch uses the t-th group of `batch_size` samples of that order, whatever the number of ranks;
    each rank takes its own slice of the group. A last, smaller group is used too: where it does not divide by
    the number of ranks, it is filled up, so that every rank has the same number of batches of the same size.

    Lightning saves `state_dict()` in its checkpoints and hands it back, so a fit goes on at the next batch,
    in constant time. An epoch's randomness comes from a generator of its own; the global ones are left alone.

    Args:
        count: number of samples.
        device: where the samples are.
        batch_size: samples per step, of all ranks together.
        seed: with the epoch, decides the order and whatever else is drawn.
        shuffle: False gives the samples as they are stored.
        rank: which slice of each group this process takes.
        world_size: number of slices.
        drop_last: leave out the last, smaller group.

    Raises:
        ValueError: for sizes that cannot work, or a `batch_size` that does not divide by `world_size`.
    """

    def __init__(
        self,
        count: int,
        *,
        device: torch.device,
        batch_size: int,
        seed: int,
        shuffle: bool,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ) -> None:
        _check_sizes(batch_size, rank, world_size)
        self.count, self.device = count, device
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last
        self._epoch, self._batch, self._resuming = 0, 0, False

    @abstractmethod
    def _assemble(self, places: Places, order: Tensor | None, drawn: Tensor | None) -> Batch:
        """Return the samples at these places of the epoch's order (None: as stored); decides what fills up."""

    def _drawn(self) -> Tensor | None:
        """Return what an epoch needs besides its order, a function of (seed, epoch)."""
        return None

    def __len__(self) -> int:
        return self.count // self.batch_size if self.drop_last else -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        # A generator's body runs at the first next(). Lightning makes the iterator before it calls set_epoch,
        # for the first epoch of a fit and of a resumed one, and also throws iterators away unused.
        first = self._batch if self._resuming else 0
        self._resuming = False
        order, drawn = self._shuffled(), self._drawn()
        for batch in range(first, len(self)):
            self._batch = batch + 1
            yield self._assemble(self._places(batch), order, drawn)

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Where Lightning looks for `set_epoch`; a plain `sampler` would make overfit_batches warn."""
        return SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, unless we are in it: a restored position survives this call."""
        if epoch != self._epoch:
            self._epoch, self._batch, self._resuming = epoch, 0, False

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches handed out so far, the same on every rank."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next iterator start at this position; those after it start at batch 0."""
        if not 0 <= state_dict["batch"] <= len(self):
            raise ValueError(
                f"the checkpoint stands at batch {state_dict['batch']}, expected 0 to {len(self)}: "
                "resume with the data and the data.batch_size it was saved with"
            )
        self._epoch, self._batch, self._resuming = state_dict["epoch"], state_dict["batch"], True

    def _shuffled(self) -> Tensor | None:
        if not self.shuffle:
            return None
        draw = generator("order", self.seed, self._epoch)
        return torch.randperm(self.count, generator=draw).to(self.device)

    def _places(self, batch: int) -> Places:
        """Return the positions in the epoch's order that make up this rank's share of a batch."""
        share = -(-min(self.batch_size, self.count - batch * self.batch_size) // self.world_size)
        start = batch * self.batch_size + self.rank * share
        if start + share <= self.count:
            return slice(start, start + share)
        return torch.arange(start, start + share, device=self.device)


def _check_sizes(batch_size: int, rank: int, world_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}, expected at least 1")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank} with world_size={world_size}, expected 0 <= rank < world_size")
    if batch_size % world_size:
        below, above = batch_size // world_size * world_size, -(-batch_size // world_size) * world_size
        raise ValueError(
            f"data.batch_size={batch_size} does not divide by {world_size} processes, expected a multiple, since it "
            f"counts the samples of all of them: set data.batch_size={below or above}"
            f"{f' or {above}' if below else ''}, or another trainer.devices"
        )
