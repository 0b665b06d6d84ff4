"""From the `datasets` library's compressed images to one uint8 tensor."""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lt_lightning.data.splits import Splits


def decode(dataset: Any, *, image_column: str, label_column: str, path: str) -> Splits:
    """Decode the splits `train` and `test` of a `datasets.DatasetDict`.

    Raises:
        ValueError: for missing splits or columns, images of several shapes or of colour modes other than L
            and RGB, and labels that are not whole numbers.
    """
    parts: list[Tensor] = []
    for split in ("train", "test"):
        if split not in dataset:
            raise ValueError(f"{path} has the splits {sorted(dataset)}, expected 'train' and 'test'")
        _check_columns(dataset[split], image_column, label_column, f"{path}, split {split!r},")
        parts += _images(dataset[split], image_column, path), _labels(dataset[split], label_column, path)
    return Splits(*parts)


def _check_columns(dataset: Any, image_column: str, label_column: str, where: str) -> None:
    if missing := {image_column, label_column} - set(dataset.column_names):
        raise ValueError(
            f"{where} has the columns {sorted(dataset.column_names)}, "
            f"expected image_column={image_column!r} and label_column={label_column!r}, "
            f"but misses {sorted(missing)}: set data.source.image_column and data.source.label_column"
        )


def _images(dataset: Any, column: str, path: str) -> Tensor:
    import datasets

    try:
        encoded = dataset.cast_column(column, datasets.Image(decode=False))[column]
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"column {column!r} of {path} holds {dataset.features[column]}, expected encoded images: "
            "set data.source.image_column"
        ) from error
    pixels: np.ndarray | None = None
    for index, item in enumerate(encoded):
        image = _pixels(item, f"image {index} of {path}")
        if pixels is None:
            pixels = np.empty((len(dataset), *image.shape), np.uint8)
        if image.shape != pixels.shape[1:]:
            raise ValueError(
                f"image {index} of {path} has height, width, colours {image.shape}, "
                f"expected {pixels.shape[1:]} like the first: bring all images to one size before"
            )
        pixels[index] = image
    if pixels is None:
        raise ValueError(f"{path} holds no images, expected at least one in each split")
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def _pixels(item: dict[str, Any], where: str) -> np.ndarray:
    with Image.open(item["path"] if item["bytes"] is None else io.BytesIO(item["bytes"])) as image:
        if image.mode not in ("L", "RGB"):
            raise ValueError(
                f"{where} has the colour mode {image.mode!r}, expected 'L' (grey) or 'RGB' with 8 bits each: "
                "convert the images before"
            )
        pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _labels(dataset: Any, column: str, path: str) -> Tensor:
    feature = dataset.features[column]
    if "int" not in str(getattr(feature, "dtype", "")):
        raise ValueError(
            f"column {column!r} of {path} holds {feature}, expected whole numbers: set data.source.label_column"
        )
    return torch.from_numpy(np.asarray(dataset.with_format("numpy")[column][:], np.int64))
