"""`ticket.safetensors`: masks and starting weights in one file that any safetensors reader opens.

Layout, version 2:

- `mask/<name>`: uint8 [ceil(n / 8)], the mask of parameter `<name>` in row-major order, eight weights a byte, the
  first weight in the highest bit, as `numpy.packbits` writes it; unused bits at the end are 0.
- `state/<name>`: the weights and buffers at the start of the round (θ_k), before the masks are applied.
- metadata, all strings: `format` ("lt_lightning 2"), `round`, `arm`, `density`, `start` ("point", "file" or "fresh"),
  `config` (a hash of the configuration), `shapes` (JSON: parameter name → shape) and `sha256` (64 digits: SHA-256 of
  the whole file with these digits as zeros).
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from lt_lightning.atomic import staged
from lt_lightning.masks import Masks, density
from lt_lightning.parts import Stored
from lt_lightning.processes import is_writer
from lt_lightning.sharded import whole

FORMAT = "lt_lightning 2"

_BLANK = b"0" * 64


@dataclass(frozen=True, eq=False)
class TicketFile:
    """The content of a ticket file.

    Args:
        masks: parameter name → bool tensor.
        state: weights and buffers at the start of the round.
        round: how many times the ticket was pruned.
        arm: "ticket", or the control's name.
        start: where the round starts: "point" (the rewind point), "file" (`start.ckpt` beside it), "fresh" (a fresh
            model at step 0).
        config: a hash of the configuration.
    """

    masks: Masks
    state: Mapping[str, Tensor] = field(default_factory=dict)
    round: int = 0
    arm: str = "ticket"
    start: str = "point"
    config: str = ""

    def write(self, path: Path) -> None:
        """Write the file atomically, one tensor at a time.

        If masks are sharded call it on every process: all put each tensor together, and one writes.
        """
        entries = sorted(self._entries(), key=lambda entry: (-entry.dtype.itemsize, entry.name))
        header = _header(entries, self._metadata())
        content = hashlib.sha256(header)
        with staged(path) if is_writer() else nullcontext() as file:
            if file:
                file.write(header)
            for entry in entries:
                part = entry.make()
                if file and part is not None:
                    raw = _bytes(part)
                    content.update(raw)
                    file.write(raw)
            if file:
                file.seek(header.index(_BLANK))
                file.write(content.hexdigest().encode())

    def _entries(self) -> Iterator["_Entry"]:
        for name, mask in self.masks.items():
            size = -(-mask.numel() // 8)
            yield _Entry(f"mask/{name}", torch.uint8, [size], partial(_packed, mask))
        for name in self.state:
            value = self.state.like(name) if isinstance(self.state, Stored) else self.state[name]
            if value is not None:
                yield _Entry(f"state/{name}", value.dtype, list(value.shape), partial(_of_state, self.state, name))

    def _metadata(self) -> dict[str, str]:
        return {
            "format": FORMAT,
            "round": str(self.round),
            "arm": self.arm,
            "density": repr(density(self.masks)),
            "start": self.start,
            "config": self.config,
            "sha256": _BLANK.decode(),
            "shapes": json.dumps({name: list(mask.shape) for name, mask in self.masks.items()}),
        }


class _Entry(NamedTuple):
    """A tensor to write, made when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: list[int]
    make: Callable[[], Tensor | None]


class StoredMasks(MutableMapping[str, Tensor]):
    """The masks of a ticket file, each read when it is asked for; others may be put in their places.

    Args:
        path: of the file.
        shapes: parameter name → shape.
    """

    def __init__(self, path: Path, shapes: Mapping[str, list[int]]) -> None:
        self.path, self._shapes = path, dict(shapes)
        self._others: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if name in self._others:
            return self._others[name]
        with safe_open(self.path, framework="pt") as file:
            return unpack(file.get_tensor(f"mask/{name}"), shape)

    def __setitem__(self, name: str, mask: Tensor) -> None:
        self._others[name] = mask
        self._shapes[name] = list(mask.shape)

    def __delitem__(self, name: str) -> None:
        del self._shapes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def load_ticket(path: str | Path) -> TicketFile:
    """Read a `ticket.safetensors` with its masks and its weights at the start.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a ticket of a version that this release reads.
    """
    ticket = read(Path(path), state=True)
    return replace(ticket, masks=dict(ticket.masks))


def read(path: Path, *, state: bool = False) -> TicketFile:
    """Read a ticket file.

    Args:
        path: the file.
        state: also read the starting weights; without them only the masks are there, each read when it is asked for.

    Raises:
        ValueError: if the file is damaged, or not a ticket of a version that this release reads.
    """
    metadata = _metadata_of(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not a ticket of format {FORMAT!r}; it says {metadata.get('format')!r}.")
    if not is_whole(path):
        raise ValueError(f"{path} is damaged: it does not hold what was written. Run the command that made it again.")
    with safe_open(path, framework="pt") as file:
        masks = StoredMasks(path, json.loads(metadata["shapes"]))
        names = [key for key in file.keys() if key.startswith("state/")] if state else []  # noqa: SIM118
        weights = {name.removeprefix("state/"): file.get_tensor(name) for name in names}
    return TicketFile(masks, weights, int(metadata["round"]), metadata["arm"], metadata["start"], metadata["config"])


def is_whole(path: Path) -> bool:
    """Whether a ticket file is what was written, by the checksum in it."""
    with open(path, "rb") as file:
        head = _read_head(file)
        found = re.search(rb'"sha256":"([0-9a-f]{64})"', head)
        if found is None:
            return False
        content = hashlib.sha256(head.replace(found[1], _BLANK, 1))
        for part in iter(partial(file.read, 1 << 20), b""):
            content.update(part)
        return content.hexdigest().encode() == found[1]


def _read_head(file: BinaryIO) -> bytes:
    """The length of the header and the header, at most 100 MB as the format says."""
    length = file.read(8)
    return length + file.read(min(int.from_bytes(length, "little"), 100_000_000))


def _metadata_of(path: Path) -> Mapping[str, str]:
    """The metadata of a safetensors file; empty where there are none, or the file is another one."""
    with open(path, "rb") as file:
        try:
            return json.loads(_read_head(file)[8:]).get("__metadata__", {})
        except (ValueError, AttributeError):
            return {}


_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
}
"""Types, and what safetensors call them."""


def _header(entries: list[_Entry], metadata: Mapping[str, str]) -> bytes:
    """The length of the header and the header, in which everything has its order."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for entry in entries:
        start, end = end, end + int(np.prod(entry.shape, dtype=np.int64)) * entry.dtype.itemsize
        header[entry.name] = {"dtype": _DTYPES[entry.dtype], "shape": entry.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _packed(mask: Tensor) -> Tensor:
    return pack(whole(mask))


def _of_state(state: Mapping[str, Tensor], name: str) -> Tensor | None:
    """A tensor of the state, whole; one on disk is read by the process that writes."""
    return whole(state[name]) if is_writer() or not isinstance(state, Stored) else None


def tensors_of(state: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The tensors of a state dict; extra state of other types has no place in a ticket file."""
    if isinstance(state, Stored):
        return state
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def pack(mask: Tensor) -> Tensor:
    """A bool tensor → uint8 [ceil(n / 8)], the first element in the highest bit.

    >>> pack(torch.tensor([True, False, False, False, False, False, False, True, True]))
    tensor([129, 128], dtype=torch.uint8)
    """
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def unpack(packed: Tensor, shape: list[int]) -> Tensor:
    """The inverse of `pack`: uint8 [ceil(n / 8)] → bool tensor of the shape."""
    count = int(np.prod(shape, dtype=np.int64))
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count).astype(bool)).view(shape)
