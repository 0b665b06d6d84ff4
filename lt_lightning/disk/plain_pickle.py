"""Reading a checkpoint directory of `torch.distributed.checkpoint` without running code that its files name.

`.metadata` is a pickle, and unpickling calls whatever a file names. Here a file can name only the classes of which such
metadata are made; everything else raises an error. The objects beside the tensors are read as
`torch.load(weights_only=True)` reads them.
"""

import collections
import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint import load as load_parts
from torch.distributed.checkpoint import metadata as names
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem

_CLASSES = (
    *(names.Metadata, names.MetadataIndex, names.StorageMeta, names.TensorProperties),
    *(names.TensorStorageMetadata, names.BytesStorageMetadata, names.ChunkStorageMetadata),
    *(names._MEM_FORMAT_ENCODING, _StorageInfo, collections.OrderedDict, torch.Size),
)
_KNOWN: dict[tuple[str, str], Any] = {(each.__module__, each.__qualname__): each for each in _CLASSES}
_KNOWN[("torch.serialization", "_get_layout")] = torch.serialization._get_layout
_KNOWN |= {("torch", str(kind).split(".")[1]): kind for kind in vars(torch).values() if type(kind) is torch.dtype}


def _joined(*parts: str) -> str:
    """A path as text: nothing looks at where a checkpoint lay when it was saved."""
    return os.path.join(*parts) if parts else ""


_PATHS = {
    (module, name): _joined for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath", "Path")
}


class _Plain(pickle.Unpickler):
    """An unpickler that knows the classes of a checkpoint's metadata, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        found = _KNOWN.get((module, name)) or _PATHS.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return found


def read_metadata(path: Path) -> Metadata:
    """What a checkpoint directory says of its tensors, from `.metadata`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, or names anything else than the classes of such metadata.
    """
    file = path / ".metadata"
    try:
        found = _Plain(io.BytesIO(file.read_bytes())).load()
        foreign = [each.relative_path for each in found.storage_data.values() if not _is_name(each.relative_path)]
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{file} cannot be read: {error}. Expected the metadata that torch.distributed.checkpoint writes; nothing "
            "else is unpickled. Remove the checkpoint if you do not know where it comes from."
        ) from error
    if not isinstance(found, Metadata) or foreign:
        told = f"it refers to {foreign[0]!r}" if foreign else f"it holds a {type(found).__name__}"
        raise ValueError(f"{file} cannot be read: {told}, expected metadata of files in {path}.")
    return found


def _is_name(path: Any) -> bool:
    """Whether this is the name of a file in the checkpoint's own directory."""
    return isinstance(path, str) and path == os.path.basename(path) and path not in ("", ".", "..")


def load(targets: dict[str, Any], reader: "Reader", *, alone: bool = False) -> None:
    """Read values of a checkpoint directory into their places; call on every process, or `alone` on one.

    Raises:
        ValueError: if the files hold anything else than tensors and plain values, or are damaged.
    """
    try:
        load_parts(targets, storage_reader=reader, planner=_Planner(), no_dist=alone)
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        if isinstance(first, OSError):
            raise first from error
        raise ValueError(
            f"{reader.path} cannot be read: {str(first).splitlines()[0]} Expected tensors and plain values that a fit "
            "has saved; nothing else is unpickled."
        ) from error


class Reader(FileSystemReader):
    """torch's reader of checkpoint directories, without its unpickling."""

    def read_metadata(self, *arguments: Any, **options: Any) -> Metadata:
        """The metadata; see the function `read_metadata`."""
        found = read_metadata(Path(self.path))
        found.storage_meta = found.storage_meta or names.StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found


class _Planner(DefaultLoadPlanner):
    """torch's planner, which reads the values beside the tensors as plain values instead of unpickling them."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Put a value into its place."""
        plain = io.BytesIO()
        torch.save(torch.load(value, map_location="cpu", weights_only=True), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)
