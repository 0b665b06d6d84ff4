"""Image data sets from the Hugging Face hub, or from a folder with the hub's parquet files."""

import glob
import re
from pathlib import Path
from typing import Any

from lt_lightning.data.cache import cached, stamps
from lt_lightning.data.decode import decode
from lt_lightning.data.splits import Splits


def hub(path: str, image_column: str, label_column: str, name: str | None = None) -> Splits:
    """Return the images of a data set, decoded once and then read from a cache.

    The cache lies in the `datasets` library's own cache folder (`HF_HOME`, `HF_DATASETS_CACHE`), under
    `lt_lightning`, and follows the source: other files, or files of another date, are decoded afresh. A
    folder is only read, and never makes a network request.

    Args:
        path: a folder that holds train.parquet and test.parquet, or else a hub name such as "ylecun/mnist".
        image_column: column with the encoded images, all of one size and 8 bits a colour.
        label_column: column with the class, counted from 0.
        name: configuration of the data set on the hub, where it has several.

    Raises:
        FileNotFoundError: no such folder, or not the files expected in it.
        ConnectionError: a hub name that can neither be reached nor found in the cache.
        ValueError: other columns, splits, sizes or types than expected.

    Example:
        >>> hub("./no-such-folder", "image", "label")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        FileNotFoundError: data.path=./no-such-folder is no folder, expected one that holds ...
    """
    import datasets

    columns = {"image_column": image_column, "label_column": label_column}
    if (files := _parquet_files(path)) is not None:
        dataset, sources = None, list(files.values())
    else:
        dataset = from_hub(path, name, instead="a local folder with train.parquet and test.parquet: data.path=FOLDER")
        sources = [Path(file["filename"]) for part in dataset.values() for file in part.cache_files]

    def make() -> Splits:
        return decode(_from_parquet(files) if files else dataset, path=path, **columns)

    directory = Path(datasets.config.HF_DATASETS_CACHE) / "lt_lightning"
    return cached(directory, Path(path).resolve().name, (path, name, columns, stamps(sources)), make)


def _parquet_files(path: str) -> dict[str, Path] | None:
    """Return the two files of a folder, or None for a hub name."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if is_hub_name(path):
            return None
        raise FileNotFoundError(
            f"data.path={path} is no folder, expected one that holds train.parquet and test.parquet, "
            "or a name on the hub: set data.path=FOLDER or data.path=OWNER/NAME"
        )
    files = {split: folder / f"{split}.parquet" for split in ("train", "test")}
    if not all(file.is_file() for file in files.values()):
        raise FileNotFoundError(
            f"data.path={path} holds {sorted(file.name for file in folder.iterdir())}, "
            "expected train.parquet and test.parquet: set data.path to the folder that holds them"
        )
    return files


def _from_parquet(files: dict[str, Path]) -> Any:
    """Read local files; the library would tell the hub that its reader of Parquet files was used."""
    import datasets

    counts, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, False
    # data_files are patterns to the library, so brackets in a path must be escaped
    patterns = {split: glob.escape(str(file.resolve())) for split, file in files.items()}
    try:
        return datasets.load_dataset("parquet", data_files=patterns)
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts


def is_hub_name(path: str) -> bool:
    """Whether a path that does not exist may be a name on the hub: NAME or OWNER/NAME.

    >>> is_hub_name("ylecun/mnist"), is_hub_name("./mnist"), is_hub_name("a/b/c")
    (True, False, False)
    """
    return not Path(path).expanduser().exists() and bool(re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path))


def from_hub(path: str, name: str | None, *, instead: str) -> Any:
    """Return the splits of a data set on the hub, or in the cache of `datasets`.

    Args:
        path: name on the hub.
        name: configuration of the data set, where it has several.
        instead: what a reader without network may give, for the message.

    Raises:
        ConnectionError: if it can neither be reached nor found in the cache.
    """
    import datasets

    try:
        return datasets.load_dataset(path, name)
    except OSError as error:  # ConnectionError, DatasetNotFoundError and the hub's HTTP errors
        raise ConnectionError(
            f"data.path={path} is no folder here ({Path.cwd()}) and could not be had from the hub ({error}): "
            f"download it once on a machine with network, by load_dataset({path!r}), which fills the cache, "
            f"or give {instead}"
        ) from error
