"""Seeds that are trained together have the files of seeds that are trained one after the other, up to rounding."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from itertools import cycle

import lightning as L
import pytest
import torch
from app import ROOT, composed, run
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import EarlyStopping, ProgressBar
from lightning.pytorch.core.datamodule import LightningDataModule
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf, open_dict
from tiny import Tiny
from torch import nn
from torch.optim import SGD, Adafactor, Adam, AdamW
from torch.optim.lr_scheduler import MultiStepLR

from lt_lightning import cubically, fine_tune, keep_weights, lottery, magnitude_increase, one_shot, snip
from lt_lightning.data import Images, Splits, digits, flip_crop
from lt_lightning.disk import atomic, lock
from lt_lightning.disk.runs import find
from lt_lightning.early_bird import settled
from lt_lightning.exchange import ticketfile
from lt_lightning.fit.interruption import Interrupted
from lt_lightning.models import Classifier
from lt_lightning.models.optimizers import decay_matrices
from lt_lightning.records import read_records
from lt_lightning.replicates import configured, fit, same_data, side_by_side
from lt_lightning.replicates.stacked import clip, stack
from lt_lightning.replicates.stacked import run as run_stacked
from lt_lightning.sparse import ELEMENTWISE

SEEDS = (3, 4)


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
    if any(isinstance(each, ProgressBar) for each in options["callbacks"]):
        del quiet["enable_progress_bar"]
    return L.Trainer(**(quiet | machine | {"max_epochs": 2, "log_every_n_steps": 2} | options))


MOMENTUM = partial(SGD, lr=0.1, momentum=0.9)


def play(root, together=True, seeds=SEEDS, **given):
    """Train a lottery of each seed, together or one after the other; returns the sizes of the groups."""
    sizes = []
    for part in [seeds] if together else [[seed] for seed in seeds]:
        sizes += play_group(root, part, **given)
    return sizes


def play_group(
    root, seeds, network=linear, optimizer=MOMENTUM, scheduler=None, options=None, data=None,
    make_callbacks=lambda: (), make_logger=lambda ticket: False, **arguments,
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
        trainers = [
            make(default_root_dir=each.directory, callbacks=[*make_callbacks(), each], logger=make_logger(each))
            for each in tickets
        ]
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
    "a learning rate that is held": {
        "rewind": fine_tune,
        "scheduler": partial(MultiStepLR, milestones=[3, 6], gamma=0.3),
        "rewind_step": 2,
    },
    "trained weights": {"rewind": keep_weights, "criterion": magnitude_increase, "rounds": 2},
}  # fmt: skip


RARER = ("clipped by value", "accumulated", "augmented", "double precision", "trained weights")
"""Settings that are tried with `-m slow`."""


@pytest.mark.parametrize(
    "given",
    [pytest.param(each, id=name, marks=[pytest.mark.slow] * (name in RARER)) for name, each in SETTINGS.items()],
)
def test_seeds_together_have_the_files_of_seeds_apart(tmp_path, given):
    sizes = play(tmp_path / "together", **given)
    play(tmp_path / "apart", together=False, **given)
    assert set(sizes) == {2}
    for seed in SEEDS:
        assert_close(tmp_path / "together" / f"seed={seed}", tmp_path / "apart" / f"seed={seed}")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ELEMENTWISE)
def test_every_elementwise_optimizer_goes_on_from_its_own_state(tmp_path, optimizer):
    given = {
        "optimizer": partial(optimizer, lr=1e-3),
        "rounds": 0,
        "monitor": None,
        "keep_last": True,
        "may_vary": ["max_epochs"],
    }
    for name in (True, False):
        for epochs in (1, 2):  # the second time it goes on
            (tmp_path / f"{name}").mkdir(exist_ok=True)
            for done in (tmp_path / f"{name}").rglob("done"):
                done.unlink()
            play(tmp_path / f"{name}", name, options={"max_epochs": epochs, "num_sanity_val_steps": 0}, **given)
    for seed in SEEDS:
        assert_close(tmp_path / f"True/seed={seed}", tmp_path / f"False/seed={seed}")
        state = torch.load(tmp_path / f"True/seed={seed}/round-00/last.ckpt", weights_only=True)
        assert state["global_step"] == 10


def test_seeds_load_their_data_once(tmp_path):
    first, calls = images(), []
    first.source = lambda: calls.append(1) or few()
    others = [first.reordered(seed) for seed in (1, 2)]
    for each in (others[0], first, others[1]):
        each.setup("fit")
    assert len(calls) == 1
    orders = [next(iter(each.train_dataloader()))[1].tolist() for each in (first, *others, first.reordered(1))]
    assert orders[0] != orders[1] != orders[2]
    assert orders[3] == orders[1]


def test_in_half_precision_seeds_together_are_as_good_as_seeds_apart(tmp_path):
    for together in (True, False):
        play(tmp_path / str(together), together, options={"precision": "bf16-mixed"})
    for seed in SEEDS:
        found, wanted = (read_records(tmp_path / name / f"seed={seed}/records.csv") for name in ("True", "False"))
        assert [row["val/loss"] for row in found] == pytest.approx([row["val/loss"] for row in wanted], rel=0.02)


# Going on


class Interrupting(ProgressBar):
    """Sends a signal to its process after so many steps, in the middle of what the callbacks of the seeds do."""

    def __init__(self, step, sent):
        super().__init__()
        self.step, self.sent = step, sent

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step and not self.sent:
            self.sent.append(self.step)
            os.kill(os.getpid(), signal.SIGTERM)


ADAM = {"optimizer": partial(Adam, lr=3e-3), "scheduler": partial(MultiStepLR, milestones=[3, 6], gamma=0.3)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Seeds 0, 1 and 2 together, never interrupted."""
    root = tmp_path_factory.mktemp("whole")
    assert play(root, seeds=range(3), **ADAM) == [3, 3]
    return root


def interrupt(root, step, seeds=range(3), every=None):
    sent = []
    with pytest.raises(Interrupted):
        play(root, seeds=seeds, make_callbacks=lambda: [Interrupting(step, sent)], every=every, **ADAM)


@pytest.mark.parametrize(("sent", "step"), [(1, 2), (4, 5), (5, 5), (10, 10)])  # an epoch has 5, the fit 10
def test_interrupted_seeds_are_saved_at_one_step_and_go_on_to_the_same_bits(tmp_path, whole, sent, step):
    interrupt(tmp_path, sent)
    saved = [torch.load(tmp_path / f"seed={n}/round-00/last.ckpt", weights_only=True) for n in range(3)]
    assert [each["global_step"] for each in saved] == [step] * 3
    assert not list(tmp_path.rglob("lock"))
    assert play(tmp_path, seeds=range(3), **ADAM) == [3, 3]
    for n in range(3):
        assert_equal(tmp_path / f"seed={n}", whole / f"seed={n}")


def test_ordinary_runs_go_on_with_interrupted_seeds(tmp_path, whole):
    interrupt(tmp_path, 3)
    assert play(tmp_path, together=False, seeds=range(3), **ADAM) == [1] * 6
    for n in range(3):
        assert_close(tmp_path / f"seed={n}", whole / f"seed={n}")


def test_a_seed_that_was_not_saved_with_the_others_catches_up_alone(tmp_path, whole):
    interrupt(tmp_path, 3)
    (tmp_path / "seed=1/round-00/last.ckpt").unlink()
    assert play(tmp_path, seeds=range(3), **ADAM) == [1, 2, 3]
    for n in range(3):
        assert_close(tmp_path / f"seed={n}", whole / f"seed={n}")


def test_seeds_that_were_trained_before_wait_for_those_that_were_not(tmp_path, whole):
    assert play(tmp_path, seeds=[1], **ADAM) == [1, 1]
    assert play(tmp_path, seeds=range(3), **ADAM) == [2, 2]
    assert play(tmp_path, seeds=range(3), **ADAM) == []
    for n in range(3):
        assert_close(tmp_path / f"seed={n}", whole / f"seed={n}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seed=2/round-00/final.ckpt", "seed=2/round-01/final.ckpt"])
def test_seeds_that_ended_together_and_were_not_all_written_are_written(tmp_path, whole, monkeypatch, name):
    def killed(stage, path):
        if path == tmp_path / name:
            raise Killed
        replace(stage, path)

    replace = atomic.take_place
    monkeypatch.setattr(atomic, "take_place", killed)
    with pytest.raises(Killed):
        play(tmp_path, seeds=range(3), **ADAM)
    monkeypatch.undo()
    assert (tmp_path / name).with_name("last.ckpt").exists()
    play(tmp_path, seeds=range(3), **ADAM)
    for n in range(3):
        assert_equal(tmp_path / f"seed={n}", whole / f"seed={n}")


class Killed(BaseException):
    """In the place of a kill."""


def test_an_ordinary_run_adds_a_round(tmp_path):
    play(tmp_path / "together", **ADAM)
    assert play(tmp_path / "together", seeds=[3], rounds=2, **ADAM) == [1]
    play(tmp_path / "apart", seeds=[3], rounds=2, **ADAM)
    assert_close(tmp_path / "together/seed=3", tmp_path / "apart/seed=3")


def seed_4_has_come_far(records):
    return records[-1]["seed"] == 4


def test_rounds_end_for_each_seed_by_its_own_records(tmp_path):
    assert play(tmp_path, rounds=2, stop_when=seed_4_has_come_far) == [2, 1, 1]
    assert [run.stopped_after for run in find(tmp_path)] == [None, 0]
    assert all(run.is_done for run in find(tmp_path))


def hold(directory, held, ended):
    with lock.hold(directory / "lock"):
        held.set()
        ended.wait(60)


def test_a_directory_in_use_is_refused_before_any_seed_is_trained(tmp_path):
    context = multiprocessing.get_context("fork")
    held, ended = context.Event(), context.Event()
    (tmp_path / "seed=4").mkdir()
    other = context.Process(target=hold, args=(tmp_path / "seed=4", held, ended))
    other.start()
    try:
        assert held.wait(60)
        with pytest.raises(lock.InUseError, match=f"seed=4 is in use by process {other.pid}"):
            play(tmp_path)
    finally:
        ended.set()
        other.join()
    assert not list(tmp_path.rglob("*.ckpt"))


# What each seed logs


def test_each_seed_logs_what_it_logs_alone(tmp_path):
    options = {"val_check_interval": 2, "log_every_n_steps": 1}
    for name, together in (("together", True), ("apart", False)):
        logger = partial(logger_of, tmp_path / name)
        play(tmp_path / "runs" / name, together, make_logger=logger, options=options, controls=["reinit"])
    logs = sorted(path.relative_to(tmp_path / "apart") for path in (tmp_path / "apart").rglob("metrics.csv"))
    assert len(logs) == 6
    for log in logs:
        found, wanted = (dict(leaves(read_records(tmp_path / name / log))) for name in ("together", "apart"))
        assert_alike(found, wanted, 2e-5, log)
        assert any("val/acc" in key for key in wanted)


def logger_of(root, ticket):
    return CSVLogger(root, name=f"seed={ticket.plan.seed}/{ticket.name}", version="", flush_logs_every_n_steps=1)


# Pieces


@pytest.mark.parametrize("network", [linear, normed])
def test_stacked_networks_are_the_networks(network):
    torch.manual_seed(0)
    networks = [network().train() for _ in range(3)]
    stacked = stack(networks)
    inputs = torch.randn(3, 7, 1, 8, 8)
    outputs = run_stacked(stacked, inputs)
    outputs.square().sum().backward()
    for n, each in enumerate(networks):
        wanted = each(inputs[n])
        wanted.square().sum().backward()
        torch.testing.assert_close(outputs[n], wanted, atol=1e-5, rtol=1e-5)
        for mine, theirs in zip(stacked.parameters(), each.parameters(), strict=True):
            torch.testing.assert_close(mine.grad[n], theirs.grad, atol=1e-3, rtol=1e-4)
        for mine, theirs in zip(stacked.buffers(), each.buffers(), strict=True):
            torch.testing.assert_close(mine[n], theirs, atol=1e-6, rtol=1e-6)
    alike = run_stacked(stacked.eval(), inputs[0], shared=True)
    torch.testing.assert_close(alike[2], networks[2].eval()(inputs[0]), atol=1e-5, rtol=1e-5)


def test_linear_layers_take_inputs_of_any_dimensions():
    layers = [nn.Linear(5, 4, bias=bias) for bias in (True, True)]
    for shape in ((5,), (6, 5), (2, 3, 5)):
        inputs = torch.randn(2, *shape)
        found = run_stacked(stack(layers), inputs)
        torch.testing.assert_close(found, torch.stack([layer(x) for layer, x in zip(layers, inputs, strict=True)]))


@given(st.integers(1, 4), st.floats(0.1, 10), st.sampled_from(["norm", "value"]))
def test_each_networks_gradients_are_clipped_as_torch_does_alone(count, value, algorithm):
    draws = torch.Generator().manual_seed(count)
    gradients = [torch.randn(count, *shape, generator=draws) for shape in ((3, 2), (3,), ())]
    wanted = []
    for n in range(count):
        parameters = [nn.Parameter(torch.zeros(each.shape[1:])) for each in gradients]
        for parameter, each in zip(parameters, gradients, strict=True):
            parameter.grad = each[n].clone()
        if algorithm == "norm":
            nn.utils.clip_grad_norm_(parameters, value)
        else:
            nn.utils.clip_grad_value_(parameters, value)
        wanted.append([parameter.grad for parameter in parameters])
    clip(gradients, value, algorithm)
    for each, of_networks in zip(gradients, zip(*wanted, strict=True), strict=True):
        torch.testing.assert_close(each, torch.stack(of_networks))


# Refusals


class Own(Classifier):
    """A module that could do anything in its training step."""


class Chooses(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1)) if x.sum() >= 0 else self.layer(-x.flatten(1))


def dropping():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5))


class Draws(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1)) + (torch.rand(()) if self.training else 0)


REFUSED = {
    "Adafactor, in which": ({"optimizer": partial(Adafactor, lr=0.1)}, "set model.optimizer to one of SGD, Adam,"),
    "the callback EarlyStopping": ({"make_callbacks": lambda: [EarlyStopping("val/loss")]}, "leave it out"),
    r"dropout \(2, p=0.5\)": ({"network": dropping}, "set its p to 0"),
    "Draws, which torch.func.vmap cannot run .vmap: called random": ({"network": Draws}, "choose another model"),
    "Chooses, which torch.func.vmap cannot run": ({"network": Chooses}, "choose another model"),
    "precision=bf16-true": ({"options": {"precision": "bf16-true"}}, "set trainer.precision to 32-true"),
    "masks that tighten": ({"gradual": cubically(), "density": 0.5}, "leave out prune=gradual"),
    "a round 0 whose length": ({"early_bird": settled(0.1)}, "leave out prune=early_bird"),
    "prune.sparse=auto": ({"sparse": "auto"}, "set prune.sparse=off"),
    "prune.steps_per_batch=20": ({"steps_per_batch": 20}, "set prune.steps_per_batch=1"),
    "DDPStrategy on 2 processes": ({"options": {"strategy": "ddp", "devices": 2}}, "trainer=cpu or trainer=gpu"),
}  # fmt: skip


@pytest.mark.parametrize(("what", "given", "instead"), [(what, *rest) for what, rest in REFUSED.items()], ids=REFUSED)
def test_what_cannot_be_trained_together_is_refused_before_any_training(tmp_path, what, given, instead):
    with pytest.raises(ValueError, match=f"replicates cannot be trained together with .*({what})") as error:
        play(tmp_path, **given)
    assert instead in str(error.value)
    assert "--multirun seed=0,1,2 instead of replicates=3" in str(error.value)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_other_modules_and_data_are_refused(tmp_path):
    for make, data, what in (
        (Tiny, images(), "the module Tiny"),
        (own, images(), "the module Own"),
        (plain, LightningDataModule(), "the data module LightningDataModule"),
    ):
        tickets = [next(lottery(make, rounds=1, directory=tmp_path / what / f"{n}")) for n in range(2)]
        trainers = [make_trainer(callbacks=[ticket]) for ticket in tickets]
        with pytest.raises(ValueError, match=what):
            fit(make_trainer, trainers, tickets, [data, data])


def plain():
    return Classifier(linear(), partial(SGD, lr=0.1))


def own():
    return Own(linear(), partial(SGD, lr=0.1))


def test_optimizers_that_differ_by_seed_are_refused(tmp_path):
    rates = cycle([0.1, 0.2])
    with pytest.raises(ValueError, match="optimizers that differ from seed to seed: set the same"):
        play(tmp_path, optimizer=lambda parameters: SGD(parameters, lr=next(rates)))


@pytest.mark.parametrize("count", [0, -1, 1.5, "two", True])
def test_another_number_than_a_positive_one_is_refused(count):
    with pytest.raises(ValueError, match=r"replicates=.* must be a whole number, 1 or more"):
        configured(OmegaConf.create({"seed": 0, "replicates": count}), "runs/seed=0")


def test_a_directory_that_does_not_tell_seeds_apart_is_refused():
    with pytest.raises(ValueError, match=r"mine does not end in seed=0: leave out hydra.run.dir, or let it end in"):
        configured(OmegaConf.create({"seed": 0, "replicates": 2}), "runs/mine")


def test_data_that_differ_by_seed_in_more_than_their_order_are_refused():
    cfg = composed("replicates=2", "data.split_seed=${seed}")
    with open_dict(cfg):
        del cfg["hydra"]
    with pytest.raises(ValueError, match=r"data.split_seed that differ from seed to seed: let the seed decide"):
        same_data(configured(cfg, "runs/seed=0"))


# The command


@pytest.mark.slow
def test_the_command_makes_ordinary_run_directories(tmp_path, capsys):
    options = ("trainer.max_epochs=2", "prune.rounds=1", "data.batch_size=200")
    run(tmp_path / "together/seed=5", "seed=5", "replicates=2", *options)
    said = capsys.readouterr().out
    for seed in (5, 6):
        run(tmp_path / f"apart/seed={seed}", f"seed={seed}", *options)
        assert_close(tmp_path / f"together/seed={seed}", tmp_path / f"apart/seed={seed}")
        assert said.count(f"  seed {seed}\n") == 3
        assert (tmp_path / f"together/seed={seed}/report.png").exists()
    assert [each.is_done for each in find(tmp_path / "together")] == [True, True]
    run(tmp_path / "together/seed=6", "seed=6", *options)
    assert capsys.readouterr().out.count("done before") == 3


def test_a_trial_counts_as_nothing(tmp_path):
    run(tmp_path / "seed=0", "replicates=2", "trainer=smoke", "prune.rounds=1")
    assert [len(list((tmp_path / f"seed={n}/fast_dev_run").glob("round-*"))) for n in range(2)] == [2, 2]
    assert not list(tmp_path.rglob("done"))


@pytest.mark.kill
@pytest.mark.slow
def test_the_command_is_killed_at_random_instants_and_ends_with_ordinary_run_directories(tmp_path):
    options = ("trainer.max_epochs=2", "prune.rounds=2", "data.batch_size=200", "prune.every='3 steps'")
    for seed in (5, 6):
        run(tmp_path / f"apart/seed={seed}", f"seed={seed}", *options)

    def started(directory):
        command = [sys.executable, "train.py", "seed=5", "replicates=2", "logger=csv", *options]
        command.append(f"hydra.run.dir='{tmp_path / directory}/seed=5'")
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

    began = time.monotonic()
    assert started("whole").wait() == 0
    longest = 0.5 * (time.monotonic() - began)  # less than a run takes, however the machine's speed changes
    draws, kills = random.Random(0), 0
    while kills < 100:
        process = started("together")
        with suppress(subprocess.TimeoutExpired):
            assert process.wait(draws.uniform(0.4, 1.0) * longest) == 0
            break
        process.kill()
        process.wait()
        kills, longest = kills + 1, longest * 1.2  # so that it comes to an end
    assert kills >= 3
    for seed in (5, 6):
        (tmp_path / f"together/seed={seed}/lock").unlink(missing_ok=True)
        assert_close(tmp_path / f"together/seed={seed}", tmp_path / f"apart/seed={seed}")
