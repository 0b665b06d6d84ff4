"""Batches of images from tensors that already live on the training device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lt_lightning.data.augment import DRAWS, Augment
from lt_lightning.data.loader import Batch, Loader, Places
from lt_lightning.seeding import generator


class TensorLoader(Loader):
    """An iterable of (images float32 [B, C, H, W], labels int64 [B]), in an order given by (seed, epoch).

    A last batch is filled up with the first samples of the epoch. (In evaluation these few samples, fewer than there
    are ranks, count twice.)

    Args:
        images: uint8 [N, C, H, W], on the device where batches are wanted.
        labels: int64 [N], on the same device.
        augment: see `Augment`; with seed and epoch as well, it is what is drawn.
        normalize: mean and standard deviation, per channel or one for all, of pixels scaled to [0, 1].
        options: see `Loader`: batch_size, seed, shuffle (without it nothing is copied), rank, world_size, drop_last.

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
        augment: Augment | None = None,
        normalize: tuple[Sequence[float], Sequence[float]] = ((0.0,), (1.0,)),
        **options: Any,
    ) -> None:
        if len(images) != len(labels) or len(labels) == 0:
            raise ValueError(
                f"{len(images)} images and {len(labels)} labels, expected one label per image, at least one"
            )
        super().__init__(len(labels), device=labels.device, **options)
        self.images, self.labels, self.augment = images, labels, augment
        mean, std = (torch.tensor(list(v), dtype=torch.float64).view(-1, 1, 1) for v in normalize)
        # one multiplication and one addition take a pixel in 0 ... 255 to (pixel / 255 - mean) / std
        self._scale, self._shift = (v.float().to(images.device) for v in (1 / (255 * std), -mean / std))

    def _drawn(self) -> Tensor | None:
        if self.augment is None:
            return None
        draw = generator("augment", self.seed, self._epoch)
        return torch.rand(self.count, DRAWS, generator=draw).to(self.device)

    def _assemble(self, places: Places, order: Tensor | None, drawn: Tensor | None) -> Batch:
        if isinstance(places, Tensor):
            places = places % self.count
        chosen = places if order is None else order[places]
        if isinstance(chosen, slice):
            images, labels = self.images[chosen], self.labels[chosen]
        else:  # on CPU several times faster than images[chosen]
            images, labels = self.images.index_select(0, chosen), self.labels.index_select(0, chosen)
        if self.augment is not None and drawn is not None:
            images = self.augment(images, drawn[places])
        return images.float().mul_(self._scale).add_(self._shift), labels
