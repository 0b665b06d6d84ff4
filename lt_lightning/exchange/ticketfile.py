"""`ticket.safetensors`: masks and starting weights in one file that any safetensors reader opens.

`docs/ticket_file.md` describes it byte by byte. In short: `mask/<name>` holds the bits of a mask, eight weights a byte,
`state/<name>` a weight or buffer at the start of the round (θ_k) before the masks are applied, and the metadata say
which round of which run it is, in which shapes the masks are, and what the whole file's checksum is.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from lt_lightning.disk.atomic import staged
from lt_lightning.disk.parts import Stored
from lt_lightning.disk.rundir import ArmDirectory
from lt_lightning.exchange import apply, hub
from lt_lightning.masks import Masks, density
from lt_lightning.processes import is_writer
from lt_lightning.sharded import whole

FORMAT = "lt_lightning 2"

_BLANK = b"0" * 64

NAME = "ticket.safetensors"
"""What a ticket file is called, in a run directory as elsewhere."""


@cache
def versions() -> dict[str, str]:
    """The versions of what writes a ticket now: lt_lightning, torch, lightning, python."""
    ours = {"lt_lightning": sys.modules["lt_lightning"].__version__, "torch": torch.__version__}
    return ours | {"lightning": version("lightning"), "python": ".".join(map(str, sys.version_info[:3]))}


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
        metrics: what the fit that began here measured, its seed and steps too. A run writes none into its files, since
            they lie there before that fit begins; `load_ticket` takes them from the marker beside the file, and
            `push_ticket` puts them in.
        versions: of the libraries that wrote it; empty if a file does not say.
        tied: further name of a masked parameter that the run's model ties → the name that its mask has.
    """

    masks: Masks
    state: Mapping[str, Tensor] = field(default_factory=dict)
    round: int = 0
    arm: str = "ticket"
    start: str = "point"
    config: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=versions)
    tied: Mapping[str, str] = field(default_factory=dict)

    @property
    def masks_by_name(self) -> dict[str, Tensor]:
        """The masks, those of tied parameters under each of their names."""
        return {**self.masks, **{name: self.masks[first] for name, first in self.tied.items()}}

    def apply(
        self, model: nn.Module, *, state: bool = True, only: Sequence[str] | None = None, prefix: str = ""
    ) -> Masks:
        """Make a model this ticket: load the starting weights and buffers, and set what is pruned to zero.

        Nothing is changed if anything does not fit. The masks are not kept in the model: multiply by those returned
        after every optimizer step, or let `lt_lightning.to_torch_prune` hang them on.

        Args:
            model: any module with parameters of these names: compiled, sharded and lazy ones too. A weight that the
                model ties is masked wherever it is held.
            state: False masks the weights that the model has.
            only: patterns over the model's names, to apply a part; one that opens with `!` leaves out what it matches.
                None: the ticket must fit the whole model, name by name.
            prefix: what the ticket's names have in front of the model's: "network." for the network of a module.

        Returns:
            The masks that were applied, parameter name → bool tensor, on the parameter's device and sharded as it is.

        Raises:
            ValueError: if names or shapes do not fit, they are listed; or if the ticket holds no weights.

        Example:
            >>> ticket = TicketFile({"weight": torch.tensor([[True, False]])}, {"weight": torch.ones(1, 2)})
            >>> model = nn.Linear(2, 1, bias=False)
            >>> ticket.apply(model), model.weight.tolist()
            ({'weight': tensor([[ True, False]])}, [[1.0, 0.0]])
        """
        if state and not self.state:
            raise ValueError(
                "the ticket holds no weights, since its round starts from a model drawn anew: "
                "apply(model, state=False) masks the weights that the model has."
            )
        apply.check_patterns(only, list(apply.select({**self.masks, **self.state}, None, prefix)))
        masks = apply.select(self.masks_by_name, only, prefix)
        weights = apply.select(self.state, only, prefix) if state else {}
        return apply.apply(model, masks, weights, complete=state and only is None)

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
        some = {"metrics": self.metrics, "tied": self.tied}
        return {key: json.dumps(dict(value)) for key, value in some.items() if value} | {
            "format": FORMAT,
            "round": str(self.round),
            "arm": self.arm,
            "density": repr(density(self.masks)),
            "start": self.start,
            "config": self.config,
            "sha256": _BLANK.decode(),
            "shapes": json.dumps({name: list(mask.shape) for name, mask in self.masks.items()}),
            "versions": json.dumps(dict(self.versions)),
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
    """Read a `ticket.safetensors` with its masks, its weights at the start and what the fit from there measured.

    Args:
        path: the file, the directory of a round or control, or an address on the Hugging Face hub:
            "hf://user/repo", "hf://user/repo@revision/folder/ticket.safetensors".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a ticket of a version that this release reads.
        OSError: if the hub does not give it.
    """
    file = hub.fetch(str(path), NAME) if hub.is_address(path) else Path(path)
    file = file / NAME if file.is_dir() else file
    ticket = read(file, state=True)
    return replace(ticket, masks=dict(ticket.masks), metrics=ticket.metrics or _measured_beside(file))


def _measured_beside(file: Path) -> dict[str, float]:
    """What the marker beside a ticket says of the fit that began with it; empty before that is done."""
    arm = ArmDirectory(file.parent)
    if file != arm.ticket or not arm.done.exists() or not arm.is_done_whole():
        return {}
    known = ("round", "arm", "density")
    return {key: value for key, value in arm.read_done()["record"].items() if key not in known and value is not None}


def read(path: Path, *, state: bool = False) -> TicketFile:
    """Read a ticket file.

    Args:
        path: the file.
        state: also read the starting weights; without them only the masks are there, each read when it is asked for.

    Raises:
        ValueError: if the file is damaged, or not a ticket of a version that this release reads.
    """
    metadata = read_metadata(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not a ticket of format {FORMAT!r}; it says {metadata.get('format')!r}.")
    if not is_whole(path):
        raise ValueError(f"{path} is damaged: it does not hold what was written. Run the command that made it again.")
    with safe_open(path, framework="pt") as file:
        masks = StoredMasks(path, json.loads(metadata["shapes"]))
        names = [key for key in file.keys() if key.startswith("state/")] if state else []  # noqa: SIM118
        weights = {name.removeprefix("state/"): file.get_tensor(name) for name in names}
    return TicketFile(
        masks,
        weights,
        round=int(metadata["round"]),
        arm=metadata["arm"],
        start=metadata["start"],
        config=metadata["config"],
        metrics=json.loads(metadata.get("metrics", "{}")),
        versions=json.loads(metadata.get("versions", "{}")),
        tied=json.loads(metadata.get("tied", "{}")),
    )


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


def read_metadata(path: Path) -> Mapping[str, str]:
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
    """The inverse of `pack`: uint8 [ceil(n / 8)] → bool tensor of the shape.

    Raises:
        ValueError: if that is not how many bytes there are.
    """
    count = int(np.prod(shape, dtype=np.int64))
    if packed.numel() != -(-count // 8):
        raise ValueError(f"a mask of shape {shape} takes {-(-count // 8)} bytes, and there are {packed.numel()}.")
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count).astype(bool)).view(shape)
