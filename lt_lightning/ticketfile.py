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
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lt_lightning.atomic import write_bytes
from lt_lightning.checksum import digest
from lt_lightning.masks import Masks, density

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
        """Write the file atomically."""
        tensors = {f"mask/{name}": pack(mask) for name, mask in self.masks.items()}
        # A copy each, because tied weights share memory, which the format refuses.
        tensors |= {f"state/{name}": value.detach().cpu().contiguous().clone() for name, value in self.state.items()}
        content = _sort_header(save(tensors, self._metadata()))
        write_bytes(path, content.replace(_BLANK, digest(content).encode(), 1))

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


def load_ticket(path: str | Path) -> TicketFile:
    """Read a `ticket.safetensors` with its masks and its weights at the start.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a ticket of a version that this release reads.
    """
    return read(Path(path), state=True)


def read(path: Path, *, state: bool = False) -> TicketFile:
    """Read a ticket file.

    Args:
        path: the file.
        state: also read the starting weights; without them only the masks are loaded.

    Raises:
        ValueError: if the file is damaged, or not a ticket of a version that this release reads.
    """
    metadata = _metadata_of(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not a ticket of format {FORMAT!r}; it says {metadata.get('format')!r}.")
    if not is_whole(path):
        raise ValueError(f"{path} is damaged: it does not hold what was written. Run the command that made it again.")
    with safe_open(path, framework="pt") as file:
        shapes = json.loads(metadata["shapes"])
        masks = {name: unpack(file.get_tensor(f"mask/{name}"), shape) for name, shape in shapes.items()}
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


def _sort_header(content: bytes) -> bytes:
    """The same file with its metadata in order, which safetensors writes in a random one."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def tensors_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict; extra state of other types has no place in a ticket file."""
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
