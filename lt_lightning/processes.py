"""Several processes, one of which writes: it decides what the disk says, and the others follow.

From the first fit on they talk through Lightning's process group. Before it, those that a cluster or `torchrun` has
started side by side talk through a store of their own; those that Lightning starts itself (`strategy="ddp"`) come into
being in the first fit, when the first process has done all that it does to the disk before, and read what lies there.
"""

import atexit
import os
import pickle
from collections import Counter
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed import PrefixStore, Store, TCPStore

_PATIENCE = timedelta(minutes=30)
"""How long a process waits for another one, as in torch's own process groups."""

_said: Counter[str] = Counter()
"""How often something was said through the store."""

os.register_at_fork(after_in_child=_said.clear)


def is_writer() -> bool:
    """Whether this process is the one that writes; known before the first fit starts the process group."""
    if _distributed():
        return torch.distributed.get_rank() == 0
    first_node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")) == "0"
    return first_node and getattr(rank_zero_only, "rank", 0) == 0


def wait() -> None:
    """Let no process go on, to read the disk for example, before all have come here."""
    if _distributed():
        torch.distributed.barrier()


def broadcast(value: Any) -> Any:
    """The value that the writing process has; each must come here.

    >>> broadcast("mine")
    'mine'
    """
    if _distributed():
        values = [value]
        torch.distributed.broadcast_object_list(values)
        return values[0]
    store = _store()
    if store is None:
        return value
    _said["value"] += 1
    key = f"value {_said['value']}"
    if is_writer():
        store.set(key, pickle.dumps(value))  # type: ignore[arg-type]
        return value
    return pickle.loads(store.get(key))


def leave() -> None:
    """Let the writing process go last if there has been no fit: the others ask it what to do."""
    store = None if _distributed() else _store()
    if store is None:
        return
    _said["leaving"] += 1
    rank, world_size = _place()
    if rank > 0:
        store.set(f"left {_said['leaving']} {rank}", "")
    else:
        store.wait([f"left {_said['leaving']} {other}" for other in range(1, world_size)])


def gather(value: Any) -> list[Any]:
    """The values of all processes, by rank.

    >>> gather("mine")
    ['mine']
    """
    if not _distributed():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def highest(value: int) -> int:
    """The highest of the values that the processes have; each must come here.

    >>> highest(3)
    3
    """
    if _distributed():
        told = torch.tensor([value], device="cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        return int(told.item())
    store = _store()
    if store is None:
        return value
    _said["highest"] += 1
    rank, world_size = _place()
    keys = [f"highest {_said['highest']} {each}" for each in range(world_size)]
    store.set(keys[rank], str(value))
    return max(int(store.get(key)) for key in keys)


def is_several() -> bool:
    """Whether there are other processes, which this one waits for in a fit and between fits."""
    return torch.distributed.get_world_size() > 1 if _distributed() else _place()[1] > 1


def end_at_exit() -> None:
    """Let the process group end before Python does: its threads may else abort the process. Call when there is one."""
    if _distributed():
        atexit.unregister(end)
        atexit.register(end)


def end() -> None:
    """End the process group and forget the store, if there are any: this process goes on alone, or with others."""
    _store_of.cache_clear()
    _said.clear()
    if _distributed():
        torch.distributed.destroy_process_group()


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _store() -> Store | None:
    return _store_of(os.getpid())


@cache
def _store_of(process: int) -> Store | None:
    """Where processes that were started side by side leave word; None if this one was not.

    A forked child has one of its own: it may have another place than its parent, and must not end its parent's.
    It has the address of the process group that Lightning makes later, and shares its server (`multi_tenant`).
    """
    rank, world_size = _place()
    if world_size == 1:
        return None
    if "RANK" in os.environ:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    else:
        slurm = SLURMEnvironment()
        address, port = slurm.main_address, slurm.main_port
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = TCPStore(address, port, world_size, serves, _PATIENCE, wait_for_workers=False, multi_tenant=True)
    return PrefixStore("lt_lightning", store)


def _place() -> tuple[int, int]:
    """Rank and number of the processes that a cluster or `torchrun` has started; (0, 1) if neither has."""
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if "SLURM_PROCID" in os.environ and SLURMEnvironment.detect():
        slurm = SLURMEnvironment()
        return slurm.global_rank(), slurm.world_size()
    return 0, 1
