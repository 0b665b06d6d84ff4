"""A text as numbers, one for each of its characters."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lt_lightning.data.hub import from_hub, is_hub_name

_INSTEAD = "a local text: data.path=FILE"


def read_text(path: str, column: str = "text") -> str:
    """Return a text from a file, from a folder with input.txt or a single .txt file, or from the hub.

    A data set on the hub is joined to one text: train, validation, test and whatever else it has, in this order.

    Args:
        path: file (UTF-8), folder, or name on the hub.
        column: of the data set on the hub.

    Raises:
        FileNotFoundError: no such file, or not one text in the folder.
        ConnectionError: a hub name that can neither be reached nor found in the cache.
        ValueError: not a text, or not the column expected.

    Example:
        >>> read_text("./no-such-file")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        FileNotFoundError: data.path=./no-such-file is no file or folder, expected a text file, ...
    """
    if is_hub_name(path):
        return _from_hub(path, column)
    file = _file(path)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8 ({error}): convert it, or set data.path to a text") from error


def encode(text: str) -> tuple[Tensor, list[str]]:
    """Number the characters of a text by their place in the sorted vocabulary.

    Returns:
        Numbers, int32 [characters], and the vocabulary.

    Example:
        >>> numbers, vocabulary = encode("abba!")
        >>> numbers.tolist(), vocabulary
        ([1, 2, 2, 1, 0], ['!', 'a', 'b'])
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    distinct, numbers = np.unique(codes, return_inverse=True)
    return torch.from_numpy(numbers.astype(np.int32)), [chr(code) for code in distinct]


def _file(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.exists():
        raise FileNotFoundError(
            f"data.path={path} is no file or folder, expected a text file, a folder that holds one, or a name on the "
            "hub: set data.path=FILE, data.path=FOLDER or data.path=OWNER/NAME"
        )
    if not file.is_dir():
        return file
    texts = [file / "input.txt"] if (file / "input.txt").is_file() else sorted(file.glob("*.txt"))
    if len(texts) != 1:
        raise FileNotFoundError(
            f"data.path={path} holds {sorted(each.name for each in file.iterdir())}, expected input.txt or a single "
            ".txt file: set data.path to the file itself"
        )
    return texts[0]


def _from_hub(path: str, column: str) -> str:
    dataset = from_hub(path, None, instead=_INSTEAD)
    first = [split for split in ("train", "validation", "test") if split in dataset]
    parts = [dataset[split] for split in [*first, *(split for split in dataset if split not in first)]]
    if missing := [part for part in parts if column not in part.column_names]:
        raise ValueError(
            f"data.path={path} has columns {missing[0].column_names}, expected data.text_column={column!r}: "
            "set data.text_column to the one with the text"
        )
    return "".join(text for part in parts for text in part[column])
