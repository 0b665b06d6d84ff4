"""Seeds that are trained together have the files of seeds that are trained one after the other, up to rounding."""

import os
import signal
from functools import partial

import lightning as L
import pytest
import torch
from app import run
from lightning.pytorch.callbacks import EarlyStopping, ProgressBar
from lightning.pytorch.core.datamodule import LightningDataModule
from tiny import Tiny
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam
from torch.optim.lr_scheduler import MultiStepLR

from lt_lightning import cubically, keep_weights, lottery, magnitude_increase, one_shot, snip, ticketfile
from lt_lightning.data import Images, Splits, digits, flip_crop
from lt_lightning.early_bird import settled
from lt_lightning.interruption import Interrupted
from lt_lightning.models import Classifier
from lt_lightning.models.optimizers import decay_matrices
from lt_lightning.records import read_records
from lt_lightning.replicates import clip, configured, fit, run as run_stacked, same_data, side_by_side, stack
from lt_lightning.runs import find
from lt_lightning.stopping import worse_than_dense

SEEDS = (0, 1, 2)


def few():
    """300 digits to train and validate, 60 to test."""
    splits = digits()
    return Splits(
        splits.train_images[:300], splits.train_labels[:300], splits.test_images[:60], splits.test_labels[:60]
    )


def images(**options):
    sizes = {"shape": [1, 8, 8], "num_classes": 10, "batch_size": 60, "val_size": 50, "eval_batch_size": 30, "seed": 0}
    return Images(few, **(sizes | {"mean": [0.02], "std": [0.02]} | options))


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))


def normed():
    """A convolution, with batch norm and a tied layer."""
    tied = nn.Linear(16, 16)
    first = (nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(*first, tied, nn.ReLU(), tied, nn.Linear(16, 10))


def make_trainer(**options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    machine = {"accelerator": "cpu", "devices": 1, "logger": False, "use_distributed_sampler": False}
    return L.Trainer(**(quiet | machine | {"max_epochs": 2, "log_every_n_steps": 2} | options))


def play(root, together=True, seeds=SEEDS, **given):
    """Train a lottery of each seed, together or one after the other; returns the sizes of the groups."""
    sizes = []
    for part in [seeds] if together else [[seed] for seed in seeds]:
        sizes += play_group(root, part, **given)
    return sizes


def play_group(
    root, seeds, network=linear, optimizer=partial(SGD, lr=0.1, momentum=0.9), scheduler=None, options=None, data=None,
    make_callbacks=lambda: (), **arguments,
):  # fmt: skip
    first = images(**(data or {}))
    everyone = [first.reordered(seed) for seed in seeds]
    lotteries = [
        lottery(
            lambda: Classifier(network(), optimizer, scheduler),
            directory=root / f"seed={seed}",
            seed=seed,
            **({"rounds": 1, "every": "1 epoch"} | arguments),
        )
        for seed in seeds
    ]
    sizes = []
    for group in side_by_side(lotteries):
        tickets = list(group.values())
        make = partial(make_trainer, **(options or {}))
        trainers = [make(default_root_dir=each.directory, callbacks=[*make_callbacks(), each]) for each in tickets]
        fit(make, trainers, tickets, [everyone[n] for n in group])
        for each, ticket in zip(trainers, tickets, strict=True):
            each.test(ticket.model, first, verbose=False)
            each.test(ticket.model, first, ckpt_path=ticket.early_stop_path, verbose=False)
        sizes.append(len(group))
    return sizes


def files(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def leaves(tree, name=""):
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else None
    if pairs is None:
        yield name, tree
    else:
        for key, value in pairs:
            yield from leaves(value, f"{name}/{key}")


def assert_close(one, other, tolerance=2e-5):
    """The same files, keys, shapes and counters; numbers that are close; the same masks."""
    assert files(one) == files(other)
    for name in files(one):
        if name.endswith(".ckpt"):
            found, wanted = (dict(leaves(torch.load(root / name, weights_only=True))) for root in (one, other))
            assert_alike(found, wanted, tolerance, name)
        elif name.endswith(".csv"):
            rows, others = read_records(one / name), read_records(other / name)
            assert_alike(dict(leaves(rows)), dict(leaves(others)), tolerance, name)
        elif name.endswith("ticket.safetensors"):
            found, wanted = (ticketfile.read(root / name) for root in (one, other))
            assert (found.start, found.config, found.round) == (wanted.start, wanted.config, wanted.round)
            assert all(torch.equal(found.masks[key], wanted.masks[key]) for key in wanted.masks)
        elif name == "config.yaml":
            assert (one / name).read_text() == (other / name).read_text()


def assert_alike(found, wanted, tolerance, name):
    ignored = ("random_states", "seconds", "/curves", "_update_count")
    found, wanted = ({k: v for k, v in each.items() if not any(i in k for i in ignored)} for each in (found, wanted))
    assert found.keys() == wanted.keys(), name
    for key, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert found[key].dtype == value.dtype, (name, key)
            torch.testing.assert_close(
                found[key], value, rtol=0, atol=tolerance, msg=lambda text, k=key: f"{name} {k} {text}"
            )
        else:
            assert found[key] == (pytest.approx(value, abs=tolerance) if isinstance(value, float) else value), (
                name,
                key,
            )


def assert_equal(one, other):
    """The same bits in everything that is trained."""
    assert files(one) == files(other)
    for name in files(one):
        if name.endswith("final.ckpt"):
            found, wanted = (torch.load(root / name, weights_only=True)["state_dict"] for root in (one, other))
            assert all(torch.equal(found[key], wanted[key]) for key in wanted)
        elif name.endswith(".csv"):
            drop = [
                [{k: v for k, v in row.items() if k != "seconds"} for row in read_records(r / name)]
                for r in (one, other)
            ]
            assert drop[0] == drop[1]


SETTINGS = {
    "momentum, with a control": {"controls": ["reinit"]},
    "Adam and a schedule, from a later point": {
        "optimizer": partial(Adam, lr=3e-3, fused=True),
        "scheduler": partial(MultiStepLR, milestones=[3, 6], gamma=0.3),
        "rewind_step": 3,
        "points": [2, "1 epoch"],
        "controls": ["random_mask"],
    },
    "Adagrad, which has a state before its first step": {"optimizer": partial(Adagrad, lr=0.02)},
    "NAdam, whose state is not all tensors of weights": {"optimizer": partial(NAdam, lr=3e-3)},
    "decay of matrices alone": {"optimizer": partial(decay_matrices, optimizer=AdamW, weight_decay=0.1, lr=3e-3)},
    "validation within epochs, a number of steps": {
        "options": {"max_epochs": -1, "max_steps": 8, "val_check_interval": 2, "log_every_n_steps": 1},
        "keep_last": True,
    },
    "clipped by norm": {"options": {"gradient_clip_val": 0.5}},
    "clipped by value": {"options": {"gradient_clip_val": 0.02, "gradient_clip_algorithm": "value"}},
    "accumulated": {"options": {"accumulate_grad_batches": 2}},
    "batch norm, convolutions and tied weights": {"network": normed, "keep_last": True},
    "augmented": {"data": {"augment": partial(flip_crop, padding=1)}},
    "double precision": {"options": {"precision": "64-true"}},
    "no validation": {"data": {"val_size": 0}, "monitor": None},
    "no dense round, scored by batches": {"dense": False, "criterion": snip, "schedule": one_shot(0.3)},
    "trained weights": {"rewind": keep_weights, "criterion": magnitude_increase, "rounds": 2},
}  # fmt: skip


@pytest.mark.parametrize("given", SETTINGS.values(), ids=SETTINGS)
def test_seeds_together_have_the_files_of_seeds_apart(tmp_path, given):
    sizes = play(tmp_path / "together", **given)
    play(tmp_path / "apart", together=False, **given)
    assert set(sizes) == {3}
    for seed in SEEDS:
        assert_close(tmp_path / "together" / f"seed={seed}", tmp_path / "apart" / f"seed={seed}")
