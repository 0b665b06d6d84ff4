"""The Lightning data module for images that fit into the device's memory."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lt_lightning import require
from lt_lightning.data.augment import Augment
from lt_lightning.data.place import device, place
from lt_lightning.data.splits import Source, Splits, check_splits
from lt_lightning.data.tensors import TensorLoader
from lt_lightning.seeding import generator


class Images(L.LightningDataModule):
    """Images as uint8 tensors on the training device, loaded once for any number of Trainers.

    Nothing is read until `prepare_data` or `setup`. The loaders are fresh ones at every call, so each fit has
    its own position. `seed` decides the order and the augmentation of the training images. The validation
    images are drawn by `split_seed` alone: replicates differ by seed and share one validation set.

    Args:
        source: function that returns `Splits`; with `path` it is called as `source(path)`.
        shape: of one image, [C, H, W].
        num_classes: labels lie in 0 ... num_classes - 1.
        batch_size: training images per step, of all processes together, so that their number changes no result.
        val_size: number of training images set aside for validation; 0 gives no validation loader.
        seed: of order and augmentation.
        mean: of pixels scaled to [0, 1], per channel or one for all.
        std: standard deviation, likewise.
        path: folder or name for sources that take one.
        eval_batch_size: validation and test images per step and process.
        split_seed: of the validation set.
        augment: of the training images, see `Augment`.

    Raises:
        ValueError: here for impossible sizes; in `prepare_data` and `setup` for data unlike those declared; in
            `train_dataloader` for a batch_size that does not divide by the number of processes.

    Example:
        >>> from lt_lightning.data import digits
        >>> data = Images(digits, shape=[1, 8, 8], num_classes=10, batch_size=32, val_size=200, seed=0,
        ...               mean=[0.02], std=[0.02])
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, images.dtype, labels.shape
        (torch.Size([32, 1, 8, 8]), torch.float32, torch.Size([32]))
    """

    def __init__(
        self,
        source: Source,
        *,
        shape: Sequence[int],
        num_classes: int,
        batch_size: int,
        val_size: int,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        path: str | None = None,
        eval_batch_size: int = 1000,
        split_seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        _check(shape, mean, std, batch_size=batch_size, eval_batch_size=eval_batch_size, val_size=val_size)
        require.whole("data.num_classes", num_classes, 1, "how many labels there are: data.num_classes=10")
        for name, value in (("seed", seed), ("split_seed", split_seed)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"data.{name}={value!r} must be a whole number: set data.{name}=0")
        self.source = source if path is None else partial(source, path)
        self.shape, self.num_classes = tuple(shape), num_classes
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_size, self.seed, self.split_seed = val_size, seed, split_seed
        self.normalize, self.augment = (tuple(mean), tuple(std)), augment
        self._parts: dict[str, tuple[Tensor, Tensor]] = {}

    def prepare_data(self) -> None:
        """Read the data once per node, so that the other ranks find what the source has cached."""
        self._load()

    def setup(self, stage: str | None = None) -> None:
        """Put the data on this rank's device, unless they are there already."""
        self._load()
        there = device(self.trainer)
        moved = {name: (images.to(there), labels.to(there)) for name, (images, labels) in self._parts.items()}
        self._parts.update(moved)  # in place: those that are reordered share them

    def reordered(self, seed: int) -> "Images":
        """Return the same images in the order, and with the augmentation, of another seed; both load them once."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def train_dataloader(self) -> TensorLoader:
        """Return shuffled batches; under `Trainer(overfit_batches=...)` the same ones in every epoch."""
        shuffle = not getattr(self.trainer, "overfit_batches", 0)
        return self._loader("train", batch_size=self.batch_size, shuffle=shuffle, augment=self.augment)

    def val_dataloader(self) -> TensorLoader | list[TensorLoader]:
        """Return the validation images in order, or an empty list, Lightning's word for none."""
        return self._evaluation("val") if self.val_size else []

    def test_dataloader(self) -> TensorLoader:
        """Return the test images in order."""
        return self._evaluation("test")

    def _load(self) -> None:
        if self._parts:
            return
        splits = self.source()
        check_splits(splits, shape=self.shape, num_classes=self.num_classes, val_size=self.val_size)
        self._parts.update(_divide(splits, self.val_size, self.split_seed))

    def _evaluation(self, part: str) -> TensorLoader:
        world_size = place(self.trainer)["world_size"]
        return self._loader(part, batch_size=self.eval_batch_size * world_size, shuffle=False)

    def _loader(self, part: str, **options: Any) -> TensorLoader:
        if not self._parts:
            raise RuntimeError("no data yet: call setup('fit') first, as a Trainer does")
        where = place(self.trainer)
        return TensorLoader(*self._parts[part], seed=self.seed, normalize=self.normalize, **where, **options)


def _divide(splits: Splits, val_size: int, split_seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Draw the validation images; both parts keep the order of the source."""
    drawn = torch.randperm(len(splits.train_labels), generator=generator("validation", split_seed))
    parts = {"test": (splits.test_images, splits.test_labels)}
    for name, chosen in (("val", drawn[:val_size]), ("train", drawn[val_size:])):
        index = chosen.sort().values
        parts[name] = splits.train_images[index], splits.train_labels[index]
    return parts


def _check(shape: Sequence[int], mean: Sequence[float], std: Sequence[float], **sizes: int) -> None:
    for name, values in (("shape", shape), ("mean", mean), ("std", std)):
        if isinstance(values, str) or not isinstance(values, Sequence) or not all(map(require.is_number, values)):
            raise ValueError(f"data.{name}={values!r}, expected a list of numbers: set data.{name}=[...]")
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"data.shape={list(shape)}, expected [channels, height, width]: set data.shape=[1,28,28]")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, shape[0]):
            raise ValueError(
                f"data.{name}={list(values)} for {shape[0]} channels, expected {shape[0]} numbers or one: "
                f"set data.{name}=[{', '.join(['0.5'] * shape[0])}]"
            )
    if min(std) <= 0:
        raise ValueError(f"data.std={list(std)}, expected numbers above 0: set data.std=[1.0] for no scaling")
    for name, size in sizes.items():
        smallest = 0 if name == "val_size" else 1
        if isinstance(size, bool) or not isinstance(size, int) or size < smallest:
            raise ValueError(
                f"data.{name}={size}, expected at least {smallest}: set data.{name}={smallest} or a larger whole number"
            )
