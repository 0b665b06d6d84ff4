"""Counting and exact selection where each process holds parts of the weights, without gathering them.

A sharded tensor is a `DTensor`: FSDP2 and tensor parallelism make such parameters, and their scores and masks lie as
they do. Beside them in a dictionary there may be plain tensors, which every process holds whole. What is said here of
all processes is said of the default process group, and all of it must make the call; where nothing is sharded no
process talks to another.

Each weight has one owner: of the processes that hold copies of a part, the one at coordinate 0 of every mesh dimension
that copies; of a plain tensor, process 0. Only owners count.
"""

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

T = TypeVar("T")

PIECE = 1 << 17
"""How many weights are looked at together: it bounds what selection needs beside the scores."""

DIGIT = 16
"""Bits that one pass of a selection settles."""

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Where a part begins in the full tensor and how large it is, by dimension."""


def is_sharded(tensor: Tensor) -> bool:
    """Whether processes hold parts of the tensor.

    >>> is_sharded(torch.zeros(2))
    False
    """
    return isinstance(tensor, DTensor)


def any_sharded(tensors: Mapping[str, Tensor]) -> bool:
    """Whether processes hold parts of any of the tensors."""
    return any(is_sharded(tensor) for tensor in tensors.values())


def local(tensor: Tensor) -> Tensor:
    """The part of this process, in the same storage and without a gradient; a plain tensor is its own part."""
    with torch.no_grad():
        return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def wrap(part: Tensor, like: Tensor) -> Tensor:
    """The tensor that lies over the processes as `like` does, of which this process holds `part`; `part` if plain."""
    if not isinstance(like, DTensor):
        return part
    stride = torch.empty(like.shape, device="meta").stride()
    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=stride)


def spread(full: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process holds whole, laid over the processes as `like` is; nothing is sent.

    Args:
        full: a plain tensor of the shape of `like`.
        like: where to lie, on which device; if it is plain, `full` is returned.

    Returns:
        A tensor that holds a copy of this process's part of `full`.

    Raises:
        ValueError: on this process, if `like` does not lie as its placements say; see `check_parts`.

    >>> spread(torch.tensor([1.0, 2.0]), torch.zeros(2))
    tensor([1., 2.])
    """
    if not isinstance(like, DTensor):
        return full
    part = full
    for dim, (offset, size) in enumerate(zip(*_box(like), strict=True)):
        part = part.narrow(dim, offset if size else 0, size)
    if part.shape != local(like).shape:
        raise ValueError(_misplaced("a tensor", like))
    return wrap(part.to(local(like).device, copy=True).contiguous(), like)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor, on every process; all must make the call if it is sharded.

    >>> whole(torch.ones(2))
    tensor([1., 1.])
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def reshard(module: nn.Module) -> None:
    """Let the parameters of a module be sharded again, which after a validation they are not."""
    for each in module.modules():
        if isinstance(each, FSDPModule):
            each.reshard()


def share_buffers(module: nn.Module) -> None:
    """Give all processes the first one's buffers, of those that checkpoints hold: all must make the call.

    Under DDP the forward pass does so in training; then statistics of batch norm differ by process until the next one.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    for each in module.modules():
        for name, buffer in each.named_buffers(recurse=False):
            if name not in each._non_persistent_buffers_set and not is_sharded(buffer):
                dist.broadcast(buffer, 0)


def same_layout(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape and lie over the same processes in the same way."""
    if isinstance(one, DTensor) and isinstance(other, DTensor):
        meshes = one.device_mesh == other.device_mesh
        return meshes and one.placements == other.placements and one.shape == other.shape
    return is_sharded(one) == is_sharded(other) and one.shape == other.shape


def count(*masks: Tensor) -> int:
    """How many elements are True, over all processes, each counted once.

    >>> count(torch.tensor([True, False]), torch.tensor([True]))
    2
    """
    if not any(map(is_sharded, masks)):
        return sum(int(mask.sum()) for mask in masks)
    return sum(tally(lambda mask: mask, {str(n): mask for n, mask in enumerate(masks)}).values())


def tally(test: Callable[..., Tensor], *tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """For how many elements of each tensor a test is true, over all processes, each element counted once.

    Args:
        test: flat tensors, one of each mapping → bool tensor; it sees a piece at a time.
        tensors: name → tensor, with names and layouts of the first.

    >>> tally(torch.isnan, {"w": torch.tensor([0.0, torch.nan])})
    {'w': 1}
    """
    first = tensors[0]
    device = _meeting_place(first)
    counts = torch.zeros(len(first), dtype=torch.int64)
    for index, name in enumerate(first):
        if _owned(first[name], device):
            counts[index] = sum(int(test(*piece).sum()) for piece in _pieces(*(local(t[name]) for t in tensors)))
    return dict(zip(first, _summed(counts, device).tolist(), strict=True))


def seen(names: list[str], tensors: Mapping[str, Tensor]) -> list[str]:
    """The names that any process lists, if any of the tensors is sharded; so that all of them raise, or none.

    >>> seen(["w"], {"w": torch.zeros(2)})
    ['w']
    """
    return list(dict.fromkeys(name for listed in _exchanged(names, _meeting_place(tensors)) for name in listed))


def check_parts(tensors: Mapping[str, Tensor]) -> None:
    """Check that what each process holds of the sharded tensors is what their placements say: blocks without overlap.

    FSDP2 over tensor parallelism may lay parts otherwise, where a dimension is too short for all processes.

    Raises:
        ValueError: on all processes, if it is not so for any tensor.
    """
    device = _meeting_place(tensors)
    if device is None:
        return
    mine = {
        name: (_box(tensor), tuple(local(tensor).shape))
        for name, tensor in tensors.items()
        if is_sharded(tensor) and _owned(tensor, device)
    }
    everyone = _exchanged(mine, device)
    for name, tensor in tensors.items():
        if is_sharded(tensor) and not _makes_up([parts[name] for parts in everyone if name in parts], tensor):
            raise ValueError(_misplaced(name, tensor))


def _misplaced(name: str, tensor: Tensor) -> str:
    return (
        f"the parts of {name} {tuple(tensor.shape)} that the processes hold are not the blocks of its placements "
        f"{getattr(tensor, 'placements', None)}: shard a dimension that the number of processes divides."
    )


def _makes_up(parts: list[tuple[Box, tuple[int, ...]]], tensor: Tensor) -> bool:
    """Whether parts, as (box, shape), have the shapes of their boxes, and these make up the tensor."""
    fits = all(sizes == shape for (_, sizes), shape in parts)
    return fits and _is_grid([box for box, shape in parts if prod(shape)], tuple(tensor.shape))


def keep_best(scores: dict[str, Tensor], masks: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Keep exactly the `count` best scores of all tensors together, among those where the mask is True.

    Ties are decided by position: the order of the names, then row by row in the full tensor; so the masks are, bit for
    bit, those that one process selects from the gathered tensors. A radix select: 16 bits of the threshold are settled
    at a time, by a histogram that the processes add up.

    Args:
        scores: name → float tensor, higher is better, no NaN; laid out as its mask. **It is consumed**: scores leave
            the dictionary as their masks are made, so that no process ever holds more than its scores, one bit for
            each weight of its largest part, and 10 MB.
        masks: name → bool tensor, the candidates.
        count: how many to keep, at most as many as there are candidates.

    Returns:
        name → bool tensor, laid out as the mask.

    Raises:
        ValueError: on all processes, if there are fewer candidates, or the parts that the processes hold are not
            blocks that make up the tensors.

    Source: the radix select of Alabi et al. 2012, "Fast k-selection algorithms for graphics processing units".

    >>> keep_best({"w": torch.tensor([1.0, 3.0, 1.0])}, {"w": torch.ones(3).bool()}, 2)
    {'w': tensor([ True,  True, False])}
    """
    device = _meeting_place(masks)
    check_parts(masks)
    candidates = sum(tally(lambda mask: mask, masks).values())
    total = sum(mask.numel() for mask in masks.values())
    if count > candidates:
        raise ValueError(too_many(count, candidates, total))
    if count == 0:
        for name in masks:
            scores.pop(name)
        return {name: wrap(torch.zeros_like(local(mask)), mask) for name, mask in masks.items()}
    dtype = _key_type(scores[name] for name in masks)
    size = torch.finfo(dtype).bits
    key, needed, equal = _nth_largest(lambda: _keys(scores, masks, dtype, device), size, count, device)
    threshold = _unkey(key, dtype)
    last = None  # the position of the last that is kept of those equal to the threshold; None: all are
    if needed < equal:
        bits = -(-(total.bit_length() + 1) // DIGIT) * DIGIT  # one more for the sign
        places = lambda: _tied_places(scores, masks, threshold, total, device)  # noqa: E731
        last = total - _nth_largest(places, bits, needed, device)[0]
    return _cut(scores, masks, threshold, last)


def too_many(count: int, candidates: int, total: int) -> str:
    """What to say when more weights are asked for than are still kept."""
    return (
        f"asked to keep {count} weights where only {candidates} of {total} are still kept: "
        "a pruned weight never comes back, so a schedule must not rise."
    )


def _meeting_place(tensors: Mapping[str, Tensor]) -> torch.device | None:
    """The device on which processes add up what they counted; None if nothing is sharded."""
    meshes = (tensor.device_mesh for tensor in tensors.values() if isinstance(tensor, DTensor))
    mesh = next(meshes, None)
    return None if mesh is None else torch.device(mesh.device_type)


def _summed(counts: Tensor, device: torch.device | None) -> Tensor:
    """The sum over all processes, on the CPU."""
    if device is not None and dist.is_initialized():
        counts = counts.to(device)
        dist.all_reduce(counts)
    return counts.cpu()


def _exchanged(value: T, device: torch.device | None) -> list[T]:
    """The values of all processes, by rank."""
    if device is None or not dist.is_initialized():
        return [value]
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _owned(tensor: Tensor, device: torch.device | None) -> bool:
    """Whether this process counts the part that it holds."""
    if device is None:
        return True
    if not isinstance(tensor, DTensor):
        return dist.get_rank() == 0
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None or 0 not in tensor.device_mesh.mesh:  # of several meshes side by side that hold copies
        return False
    return all(n == 0 for n, placement in zip(coordinate, tensor.placements, strict=True) if placement.is_replicate())


def _box(tensor: Tensor) -> Box:
    """Where this process's part lies."""
    if not isinstance(tensor, DTensor):
        return (0,) * tensor.dim(), tuple(tensor.shape)
    if tensor.device_mesh.get_coordinate() is None:
        return (0,) * tensor.dim(), tuple(local(tensor).shape)
    (chunk,) = tensor.__create_chunk_list__()  # as torch.distributed.checkpoint finds it
    return tuple(chunk.offsets), tuple(chunk.sizes)


def _is_grid(boxes: list[Box], shape: tuple[int, ...]) -> bool:
    """Whether boxes, as (offsets, sizes), are the cells of a grid over the shape, each there once.

    >>> _is_grid([((0, 0), (2, 1)), ((0, 1), (2, 2))], (2, 3)), _is_grid([((0,), (2,)), ((1,), (2,))], (3,))
    (True, False)
    """
    cells = 1
    if prod(shape) == 0:
        return not boxes
    for dim, size in enumerate(shape):
        spans = sorted({(offsets[dim], offsets[dim] + sizes[dim]) for offsets, sizes in boxes})
        if [0, *(stop for _, stop in spans)] != [*(start for start, _ in spans), size]:
            return False
        cells *= len(spans)
    return len(boxes) == len(set(boxes)) == cells


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape, flat and together, at most `PIECE` elements at a time."""
    first = tensors[0]
    if first.numel() <= PIECE:
        if first.numel():
            yield tuple(tensor.reshape(-1) for tensor in tensors)
        return
    if all(tensor.is_contiguous() for tensor in tensors):
        yield from zip(*(tensor.view(-1).split(PIECE) for tensor in tensors), strict=True)
        return
    rows = PIECE // prod(first.shape[1:])  # what is not contiguous is copied, so only a piece of it
    for blocks in zip(*(tensor.split(rows) if rows else tensor.unbind() for tensor in tensors), strict=True):
        yield from _pieces(*blocks)


def _key_type(scores: Iterator[Tensor]) -> torch.dtype:
    """The type that holds all scores exactly and whose bits are sorted."""
    return torch.float64 if any(score.dtype == torch.float64 for score in scores) else torch.float32


def _keys(
    scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device | None
) -> Iterator[Tensor]:
    """The candidates' scores as integers of the same order, of what this process owns."""
    for name, mask in masks.items():
        if _owned(mask, device):
            for values, candidates in _pieces(local(scores[name]), local(mask)):
                yield _key(values[candidates.to(values.device)], dtype)


def _key(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats as signed integers of the same order.

    >>> _key(torch.tensor([-1.0, -0.0, 0.0, 1.0]), torch.float32).tolist()
    [-1065353217, 0, 0, 1065353216]
    """
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    bits = (values.to(dtype) + 0.0).view(integer)  # -0.0 + 0.0 is 0.0
    return bits.bitwise_xor_((bits >> (torch.iinfo(integer).bits - 1)) & torch.iinfo(integer).max)


def _unkey(key: int, dtype: torch.dtype) -> Tensor:
    """The float whose key this is, as a scalar tensor."""
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    return torch.tensor(key if key >= 0 else key ^ torch.iinfo(integer).max, dtype=integer).view(dtype)


def _nth_largest(
    parts: Callable[[], Iterator[Tensor]], bits: int, n: int, device: torch.device | None
) -> tuple[int, int, int]:
    """The n-th largest of signed integers that lie on several processes.

    Args:
        parts: makes an iterator over this process's integers, as flat tensors.
        bits: of the integers, a multiple of 16.
        n: from 1.
        device: where processes add up.

    Returns:
        The integer; how many of those equal to it are among the n largest; how many are equal to it.

    >>> _nth_largest(lambda: iter([torch.tensor([7, -3, 7, 9])]), 16, 2, None)
    (7, 1, 2)
    """
    bins, prefix, equal = 1 << DIGIT, 0, 0
    for shift in range(bits - DIGIT, -1, -DIGIT):
        first = shift == bits - DIGIT
        histogram = torch.zeros(bins, dtype=torch.int64)
        for keys in parts():
            inside = keys if first else keys[(keys >> (shift + DIGIT)) == prefix]
            digits = (inside >> shift) + bins // 2 if first else (inside >> shift) & (bins - 1)
            histogram = histogram.to(keys.device).add_(torch.bincount(digits, minlength=bins))
        histogram = _summed(histogram, device)
        above = histogram.flip(0).cumsum(0)
        place = int(torch.searchsorted(above, n))  # bins from the top, so that the first that reaches n
        digit = bins - 1 - place
        n -= int(above[place - 1]) if place else 0
        prefix, equal = (digit - bins // 2 if first else (prefix << DIGIT) | digit), int(histogram[digit])
    return prefix, n, equal


def _tied_places(
    scores: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    threshold: Tensor,
    total: int,
    device: torch.device | None,
) -> Iterator[Tensor]:
    """`total - position` of each owned candidate whose score is the threshold; positions count through all names."""
    base = 0
    for name, mask in masks.items():
        start, box = 0, _box(mask)
        for values, candidates in _pieces(local(scores[name]), local(mask)) if _owned(mask, device) else ():
            tied = candidates.to(values.device) & (values.to(threshold.dtype) == threshold)
            yield total - base - _positions(tied.nonzero().flatten() + start, mask.shape, box)
            start += len(values)
        base += mask.numel()


def _positions(places: Tensor, shape: torch.Size, box: Box) -> Tensor:
    """Positions in a part → positions in the full tensor, both row by row.

    >>> _positions(torch.tensor([0, 1, 2]), torch.Size([2, 4]), ((0, 1), (2, 2))).tolist()
    [1, 2, 5]
    """
    positions, stride = torch.zeros_like(places), 1
    for offset, size, length in reversed(list(zip(*box, shape, strict=True))):
        positions += (places % size + offset) * stride
        places, stride = places // size, stride * length
    return positions


def _cut(
    scores: dict[str, Tensor], masks: Mapping[str, Tensor], threshold: Tensor, last: int | None
) -> dict[str, Tensor]:
    """Masks of the candidates above the threshold, and of those equal to it up to a position; eats the scores.

    Of one tensor at a time, what is kept is packed into bits, the scores are let go, and the bits become a mask.
    """
    chosen: dict[str, Tensor] = {}
    base = 0
    for name, mask in masks.items():
        packed = _kept_bits(scores.pop(name), mask, threshold, None if last is None else last - base)
        chosen[name] = wrap(_unpacked(packed, local(mask)), mask)
        base += mask.numel()
    return chosen


def _kept_bits(score: Tensor, mask: Tensor, threshold: Tensor, last: int | None) -> list[tuple[Tensor, int]]:
    """What is kept of this process's part of one tensor, as pieces of (bits, length); nothing of the score is held."""
    packed, start, box = [], 0, _box(mask)
    for values, candidates in _pieces(local(score), local(mask)):
        values = values.to(threshold.dtype)
        kept = candidates.to(values.device) & (values >= threshold)
        if last is not None:
            tied = (kept & (values == threshold)).nonzero().flatten()
            kept[tied[_positions(tied + start, mask.shape, box) > last]] = False
        packed.append((_pack(kept), len(kept)))
        start += len(kept)
    return packed


def _unpacked(packed: list[tuple[Tensor, int]], like: Tensor) -> Tensor:
    """The bool tensor of which these are the pieces, (bits, length)."""
    part = torch.empty(like.shape, dtype=torch.bool, device=like.device)
    start = 0
    for bits, length in packed:
        part.view(-1)[start : start + length] = _unpack(bits, length)
        start += length
    return part


def _pack(flags: Tensor) -> Tensor:
    """Eight flags a byte."""
    padded = torch.nn.functional.pad(flags, (0, -len(flags) % 8)).view(-1, 8)
    return (padded * _powers(flags.device)).sum(1, dtype=torch.uint8)


def _unpack(packed: Tensor, length: int) -> Tensor:
    return (packed.unsqueeze(1) & _powers(packed.device)).ne(0).view(-1)[:length]


def _powers(device: torch.device) -> Tensor:
    return torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=device)
