"""Checkpoints in parts: directories to which every process of a sharded fit writes its own, and any number reads.

They are Lightning's distributed checkpoints: what `torch.distributed.checkpoint` writes for weights and optimizer
states, under the names `state_dict.*` and `optimizer_<n>.*`, and `meta.pt` for everything else. `sha256` holds the
checksums of the other files. Optimizers that have not stepped yet have no state there.
"""

import json
import pickle
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint import save as save_parts
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from lt_lightning.disk.atomic import link_or_copy, remove, stage_of_directory, sync, take_place
from lt_lightning.disk.checksum import digest_of
from lt_lightning.disk.plain_pickle import Reader, load
from lt_lightning.disk.plain_pickle import read_metadata as metadata

META = "meta.pt"
MANIFEST = "sha256"

Key = tuple[Any, ...]
"""Where a value lies in nested dictionaries and lists."""


class Stored(Mapping[Any, Any]):
    """What lies in a checkpoint below a key; tensors are read, whole, one by one when they are asked for.

    Args:
        path: the directory.
        key: such as ("state_dict",) or ("optimizer_0", "state").
    """

    def __init__(self, path: Path, key: Key) -> None:
        self.path, self.key = path, key

    @cached_property
    def names(self) -> dict[Key, str]:
        """The rest of each key → the name under which its value is stored."""
        keys = metadata(self.path).planner_data
        return {key[len(self.key) :]: name for name, key in keys.items() if key[: len(self.key)] == self.key}

    @cached_property
    def _reader(self) -> "_Reader":
        return _Reader(self.path)

    def __getitem__(self, key: Any) -> Any:
        found = {rest[1:]: self._reader.value(name) for rest, name in self.names.items() if rest[0] == key}
        if not found:
            raise KeyError(key)
        return found[()] if () in found else _nested(found)

    def like(self, key: Any) -> Tensor | None:
        """A tensor of the same shape and type, without content; None if there is another value."""
        kind: Any = self._reader.read_metadata().state_dict_metadata[self.names[(key,)]]
        return torch.empty(kind.size, dtype=kind.properties.dtype, device="meta") if _is_tensor(kind) else None

    def __iter__(self) -> Iterator[Any]:
        return iter(dict.fromkeys(rest[0] for rest in self.names))

    def __len__(self) -> int:
        return len(set(iter(self)))


class _Reader(Reader):
    """Reads values one by one, and what they are but once."""

    @cached_property
    def _stored(self) -> Metadata:
        return super().read_metadata()

    def read_metadata(self, *arguments: Any, **options: Any) -> Metadata:
        return self._stored

    def value(self, name: str) -> Any:
        kind = self._stored.state_dict_metadata[name]
        target = {name: _target(kind, torch.empty(0))}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(target, self, alone=True)
        return target[name]


def read(path: Path) -> dict[str, Any]:
    """A checkpoint with the keys that Lightning gives to one in a file; weights and optimizer states are `Stored`."""
    content = torch.load(path / META, map_location="cpu", weights_only=True)
    keys = {key for key in metadata(path).planner_data.values() if key[0] != "state_dict"}
    count = len({key[0] for key in keys})
    return content | {
        "state_dict": Stored(path, ("state_dict",)),
        "optimizer_states": [_optimizer(path, f"optimizer_{number}") for number in range(count)],
    }


def _optimizer(path: Path, name: str) -> dict[str, Any]:
    groups = Stored(path, (name, "param_groups"))
    return {"state": Stored(path, (name, "state")), "param_groups": [groups[n] for n in sorted(groups)]}


def load_into(stored: Stored, targets: Mapping[Any, Any]) -> None:
    """Read tensors of a checkpoint into tensors, sharded ones too; call on every process.

    Args:
        stored: such as the weights.
        targets: key → tensor of the same shape.
    """
    named = {stored.names[(key,)]: target for key, target in targets.items()}
    load(named, Reader(stored.path))


def load_like(stored: Stored, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the state of an optimizer; call on every process.

    Args:
        stored: the state by the names of the parameters.
        parameters: name → parameter; what has its shape is sharded as it is.
    """
    kinds = metadata(stored.path).state_dict_metadata
    targets = {name: _target(kinds[name], parameters[rest[0]]) for rest, name in stored.names.items()}
    load(targets, Reader(stored.path))
    return _nested({rest: targets[name] for rest, name in stored.names.items()})


def _target(kind: Any, parameter: Tensor) -> Any:
    if not _is_tensor(kind):
        return None
    if kind.size == parameter.shape:
        return torch.empty_like(parameter.detach(), dtype=kind.properties.dtype)
    return torch.empty(kind.size, dtype=kind.properties.dtype)


def write(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint at once, by one process; what is `Stored` elsewhere is linked, or copied, and never read."""
    rest = dict(checkpoint)
    tree = {"state_dict": rest.pop("state_dict")}
    tree |= {f"optimizer_{n}": state for n, state in enumerate(rest.pop("optimizer_states", []))}
    stage = stage_of_directory(path)
    try:
        stage.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            save_parts(_without_stored(tree), storage_writer=FileSystemWriter(stage), no_dist=True)
        torch.save(rest, stage / META)
        digests: dict[str, str] = {}
        whole = metadata(stage)
        for number, (key, stored) in enumerate(_all_stored(tree, ())):
            digests |= _link(stored, key, whole, stage, f"{number}-")
        with open(stage / ".metadata", "wb") as file:
            pickle.dump(whole, file)
        seal(stage, digests)
        take_place(stage, path)
    except BaseException:
        remove(stage)
        raise


def _without_stored(tree: Any) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    return {key: _without_stored(value) for key, value in tree.items() if not isinstance(value, Stored)}


def _all_stored(tree: Any, key: Key) -> Iterator[tuple[Key, Stored]]:
    if isinstance(tree, Stored):
        yield key, tree
    elif isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _all_stored(value, (*key, name))


def _link(stored: Stored, key: Key, whole: Metadata, stage: Path, prefix: str) -> dict[str, str]:
    """Take over what is stored elsewhere, under `key`; returns the checksums of the files that came."""
    source = metadata(stored.path)
    new = {name: ".".join(map(str, (*key, *rest))) for rest, name in stored.names.items()}
    for rest, name in stored.names.items():
        whole.state_dict_metadata[new[name]] = source.state_dict_metadata[name]
        whole.planner_data[new[name]] = (*key, *rest)
    files = set()
    for index, place in source.storage_data.items():
        if index.fqn in new:
            files.add(place.relative_path)
            target = replace(place, relative_path=prefix + place.relative_path)
            whole.storage_data[replace(index, fqn=new[index.fqn])] = target
    for file in files:
        link_or_copy(stored.path / file, stage / (prefix + file))
    known = _manifest(stored.path)
    return {prefix + file: known[file] for file in files if file in known}


def seal(path: Path, digests: Mapping[str, str]) -> None:
    """Write the checksums of all files; those that are known already are not read again."""
    files = sorted(file for file in path.iterdir() if file.name != MANIFEST)
    content = {file.name: digests.get(file.name) or digest_of(file) for file in files}
    with open(path / MANIFEST, "w") as manifest:
        json.dump(content, manifest, indent=1)
    for name in (*content.keys() - digests.keys(), MANIFEST, "."):
        sync(path / name)


def sealed(path: Path) -> bool:
    """Whether a checkpoint is whole: every file that was sealed is there as it was."""
    known = _manifest(path)
    return bool(known) and all((path / name).exists() and digest_of(path / name) == known[name] for name in known)


def _manifest(path: Path) -> Mapping[str, str]:
    try:
        found = json.loads((path / MANIFEST).read_text("utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _is_tensor(kind: Any) -> bool:
    return isinstance(kind, TensorStorageMetadata)


def _nested(flat: Mapping[Key, Any]) -> dict[Any, Any]:
    """{("a", "b"): 1} → {"a": {"b": 1}}.

    >>> _nested({("step",): 1, ("moments", 0): 2})
    {'step': 1, 'moments': {0: 2}}
    """
    tree: dict[Any, Any] = {}
    for (*above, last), value in flat.items():
        reduce(lambda node, key: node.setdefault(key, {}), above, tree)[last] = value
    return tree
