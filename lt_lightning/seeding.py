"""Random numbers that depend on what they are for, and on nothing that happened before."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]
"""The states of Python's, NumPy's and torch's generators, as primitives and tensors that `weights_only` loads."""


def derive(*parts: int | str) -> int:
    """A seed in [0, 2**63) that is a function of the parts alone, the same in every process and on every machine.

    >>> derive(0, "epoch", 3) == derive(0, "epoch", 3), derive(0, "epoch", 3) == derive(0, "epoch", 4)
    (True, False)
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `derive(*parts)`."""
    return torch.Generator().manual_seed(derive(*parts))


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> RandomState:
    """The global random state of this process, on every device."""
    version, internal, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {
        "python": [version, torch.tensor(internal), gauss],  # as a tuple it would take most of the time of a small save
        "numpy": [str(kind), torch.from_numpy(np.array(keys, dtype=np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: RandomState) -> None:
    """Bring back what `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block under a seed and leave the global random state as it was.

    >>> with seeded(1):
    ...     a = torch.rand(1)
    >>> with seeded(1):
    ...     bool(torch.rand(1) == a)
    True
    """
    before = random_state()
    seed_all(seed)
    try:
        yield
    finally:
        set_random_state(before)
