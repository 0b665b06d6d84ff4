"""Decoded data sets kept on disk, beside the `datasets` library's own cache."""

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from lt_lightning.data.splits import Splits


def cached(directory: Path, name: str, key: object, make: Callable[[], Splits]) -> Splits:
    """Return what `make` returned when it was last called under this name and key, or call it.

    A file that cannot be read is made again. Processes that make it at the same time do the same work twice
    and harm nothing: each writes its own file, and the last rename wins.

    Args:
        directory: where the file lies; made if missing.
        name: readable part of the file's name.
        key: everything that decides the result, as something whose `repr` is the same in every process.
        make: reads the data the slow way.
    """
    file = directory / f"{name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.npz"
    splits = _read(file)
    if splits is None:
        splits = make()
        _write(file, splits)
    return splits


def stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return path, bytes and modification time in ns of each file: they change when the content does."""
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _read(file: Path) -> Splits | None:
    try:
        with np.load(file, allow_pickle=False) as arrays:  # checks the CRC of every byte
            return Splits(*(torch.from_numpy(arrays[field]) for field in Splits._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(file: Path, splits: Splits) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {field: tensor.numpy() for field, tensor in splits._asdict().items()}
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.stem, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            np.savez(stream, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
