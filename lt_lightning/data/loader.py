"""Batches from tensors that already live on the training device."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from lt_lightning.data.augment import DRAWS, Augment
from lt_lightning.seeding import generator

Batch = tuple[Tensor, Tensor]


class TensorLoader:
    """An iterable of (images float32 [B, C, H, W], labels int64 [B]), in an order given by (seed, epoch).

    Step t of an epoch uses the t-th group of `batch_size * world_size` samples of that order, whatever the
    number of ranks; each rank takes its own slice of the group. A last, smaller group is used too: where it
    does not divide by the number of ranks, it is filled up with the first samples of the epoch, so that every
    rank has the same number of batches of the same size. (In evaluation these few samples, fewer than there
    are ranks, count twice.)

    Lightning saves `state_dict()` in its checkpoints and hands it back, so a fit goes on at the next batch,
    in constant time. An epoch's randomness comes from a generator of its own; the global ones are left alone.

    Args:
        images: uint8 [N, C, H, W], on the device where batches are wanted.
        labels: int64 [N], on the same device.
        batch_size: samples per step and rank.
        seed: with the epoch, decides order and augmentation.
        shuffle: False gives the samples as they are stored, without copying them.
        augment: see `Augment`.
        normalize: mean and standard deviation, per channel or one for all, of pixels scaled to [0, 1].
        rank: which slice of each group this process takes.
        world_size: number of slices.
        drop_last: leave out the last, smaller group.

    Raises:
        ValueError: for sizes that cannot work.

    Example:
        >>> images, labels = torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5)
        >>> loader = TensorLoader(images, labels, batch_size=2, seed=0, shuffle=True)
        >>> [len(labels) for _, labels in loader]
        [2, 2, 1]
        >>> loader.set_epoch(1)
        >>> _ = next(iter(loader))
        >>> loader.state_dict()
        {'epoch': 1, 'batch': 1}
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        augment: Augment | None = None,
        normalize: tuple[Sequence[float], Sequence[float]] = ((0.0,), (1.0,)),
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ) -> None:
        _check_sizes(images, labels, batch_size, rank, world_size)
        self.images, self.labels = images, labels
        self.batch_size, self.seed, self.shuffle, self.augment = batch_size, seed, shuffle, augment
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last
        mean, std = (torch.tensor(list(v), dtype=torch.float64).view(-1, 1, 1) for v in normalize)
        # one multiplication and one addition take a pixel in 0 ... 255 to (pixel / 255 - mean) / std
        self._scale, self._shift = (v.float().to(images.device) for v in (1 / (255 * std), -mean / std))
        self._epoch, self._batch, self._resuming = 0, 0, False

    def __len__(self) -> int:
        group = self.batch_size * self.world_size
        return len(self.labels) // group if self.drop_last else -(-len(self.labels) // group)

    def __iter__(self) -> Iterator[Batch]:
        # A generator's body runs at the first next(). Lightning makes the iterator before it calls set_epoch,
        # for the first epoch of a fit and of a resumed one, and also throws iterators away unused.
        first = self._batch if self._resuming else 0
        self._resuming = False
        order, draws = self._shuffled(), self._drawn()
        for batch in range(first, len(self)):
            self._batch = batch + 1
            yield self._assemble(self._places(batch), order, draws)

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
                "resume with the data.batch_size, data.val_size and number of devices it was saved with"
            )
        self._epoch, self._batch, self._resuming = state_dict["epoch"], state_dict["batch"], True

    def _shuffled(self) -> Tensor | None:
        if not self.shuffle:
            return None
        draw = generator("order", self.seed, self._epoch)
        return torch.randperm(len(self.labels), generator=draw).to(self.labels.device)

    def _drawn(self) -> Tensor | None:
        if self.augment is None:
            return None
        draw = generator("augment", self.seed, self._epoch)
        return torch.rand(len(self.labels), DRAWS, generator=draw).to(self.images.device)

    def _places(self, batch: int) -> slice | Tensor:
        """Return the positions in the epoch's order that make up this rank's share of a batch."""
        count, group = len(self.labels), self.batch_size * self.world_size
        share = -(-min(group, count - batch * group) // self.world_size)
        start = batch * group + self.rank * share
        if start + share <= count:
            return slice(start, start + share)
        return torch.arange(start, start + share, device=self.labels.device) % count

    def _assemble(self, places: slice | Tensor, order: Tensor | None, draws: Tensor | None) -> Batch:
        chosen = places if order is None else order[places]
        if isinstance(chosen, slice):
            images, labels = self.images[chosen], self.labels[chosen]
        else:  # on CPU several times faster than images[chosen]
            images, labels = self.images.index_select(0, chosen), self.labels.index_select(0, chosen)
        if self.augment is not None and draws is not None:
            images = self.augment(images, draws[places])
        return images.float().mul_(self._scale).add_(self._shift), labels


def _check_sizes(images: Tensor, labels: Tensor, batch_size: int, rank: int, world_size: int) -> None:
    if len(images) != len(labels) or len(labels) == 0:
        raise ValueError(f"{len(images)} images and {len(labels)} labels, expected one label per image, at least one")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}, expected at least 1")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank} with world_size={world_size}, expected 0 <= rank < world_size")
