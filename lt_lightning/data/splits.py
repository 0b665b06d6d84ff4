"""What a source of images hands over, and the checks it must pass before any training is paid for."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Splits(NamedTuple):
    """A data set: images uint8 [N, C, H, W] and labels int64 [N], for training and for the test."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


Source = Callable[..., Splits]


def check_splits(splits: Splits, *, shape: Sequence[int], num_classes: int, val_size: int) -> None:
    """Raise `ValueError` unless the data are what the configuration declares.

    Args:
        splits: what the source returned.
        shape: expected shape of one image, [C, H, W].
        num_classes: labels must lie in 0 ... num_classes - 1.
        val_size: number of training images that will be set aside for validation.

    Example:
        >>> images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4)
        >>> splits = Splits(images, labels, images, labels)
        >>> check_splits(splits, shape=[1, 8, 8], num_classes=4, val_size=1)
        >>> check_splits(splits, shape=[1, 8, 8], num_classes=4, val_size=4)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: data.val_size=4 leaves nothing to train on: expected 0 <= data.val_size < 4 ...
    """
    for part, images, labels in (("training", *splits[:2]), ("test", *splits[2:])):
        _check_images(part, images, list(shape))
        _check_labels(part, images, labels, num_classes)
    count = len(splits.train_images)
    if val_size >= count:
        raise ValueError(
            f"data.val_size={val_size} leaves nothing to train on: "
            f"expected 0 <= data.val_size < {count} training images"
        )


def _check_images(part: str, images: Tensor, shape: list[int]) -> None:
    seen = list(images.shape[1:])
    if seen != shape:
        raise ValueError(
            f"the {part} images have shape {seen}, expected data.shape={shape}: set data.shape={seen}, "
            "or point data.path at the data set that data.shape describes"
        )
    if images.dtype != torch.uint8:
        raise ValueError(
            f"the {part} images are {images.dtype}, expected torch.uint8 with values 0 to 255: "
            "let data.source return them unscaled"
        )


def _check_labels(part: str, images: Tensor, labels: Tensor, num_classes: int) -> None:
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"the {part} labels are {labels.dtype} of shape {list(labels.shape)} for {len(images)} images, "
            "expected torch.int64, one per image and at least one: mend what data.source returns"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"the {part} labels run from {low} to {high}, expected 0 to {num_classes - 1}: "
            f"set data.num_classes={high + 1}, or renumber the labels from 0"
        )
