"""Loaders of every kind come back to where they stood, and their order is a function of (seed, epoch)."""

import pytest
import torch
from sampling import few
from test_lottery import always_dense, assert_same_state, final
from tiny import STEPS_PER_EPOCH, Tiny, data, loaders, trainer
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, random_split

from lt_lightning import lottery


class Stream(IterableDataset):
    """100 examples without a length, in an order of the epoch's randomness."""

    def __iter__(self):
        for index in torch.randperm(100).tolist():
            yield data()[index]


shared = torch.Generator()


def with_workers():
    return DataLoader(data(), 20, shuffle=True, num_workers=2, persistent_workers=True)


def with_a_generator():
    return DataLoader(data(), 20, shuffle=True, generator=torch.Generator().manual_seed(7))


def with_a_shared_generator():
    return DataLoader(data(), 20, shuffle=True, generator=shared)


def with_a_distributed_sampler():
    return DataLoader(data(), 20, sampler=DistributedSampler(data(), 1, 0))


def without_length():
    return DataLoader(Stream(), 20)


def of_a_split():
    return DataLoader(random_split(data(), [80, 20])[0], 16, shuffle=True)


def two_at_once():
    return [DataLoader(data(), 20, shuffle=True), DataLoader(data(), 10, shuffle=True)]


LOADERS = [
    with_workers,
    with_a_generator,
    with_a_shared_generator,
    with_a_distributed_sampler,
    without_length,
    of_a_split,
]


class Pair(Tiny):
    def training_step(self, batch, index):
        return super().training_step(batch[0], index) + super().training_step(batch[1], index)


def play(directory, make_loader, model=Tiny, **arguments):
    seen = {}
    for ticket in lottery(model, directory=directory, rounds=1, schedule=always_dense, **arguments):
        fit = trainer(ticket)
        fit.fit(ticket.model, make_loader(), loaders()[1], ckpt_path=ticket.ckpt_path)
        seen[ticket.name] = ticket.model.seen
    return seen


@pytest.mark.parametrize("make_loader", LOADERS)
@pytest.mark.parametrize("rewind_step", few([0, 7, "1 epoch"], 1))
def test_a_rewound_fit_sees_the_batches_of_the_dense_one(tmp_path, make_loader, rewind_step):
    seen = play(tmp_path, make_loader, rewind_step=rewind_step)
    dense, rewound = seen["round-00"], seen["round-01"]
    assert len(dense) == 3 * STEPS_PER_EPOCH
    assert rewound == dense[len(dense) - len(rewound) :]
    assert_same_state(final(tmp_path, "round-00"), final(tmp_path, "round-01"))


def test_several_loaders_come_back_together(tmp_path):
    seen = play(tmp_path, two_at_once, model=Pair, rewind_step=13)
    assert seen["round-01"] == seen["round-00"][26:]
    assert_same_state(final(tmp_path, "round-00"), final(tmp_path, "round-01"))


@pytest.mark.parametrize("make_loader", LOADERS)
def test_the_order_is_that_of_the_seed(tmp_path, make_loader):
    orders = [
        [batch for _, _, batch in play(tmp_path / name, make_loader, seed=seed)["round-00"]]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    epochs = [orders[0][n : n + STEPS_PER_EPOCH] for n in range(0, 15, STEPS_PER_EPOCH)]
    assert epochs[0] != epochs[1]
