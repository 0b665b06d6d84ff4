"""All fits of a run train alike: a program that was edited between two starts is noticed, whatever was edited."""

import csv
import json
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, GradientAccumulationScheduler
from tiny import Tiny, loaders, play, trainer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, SequentialLR, StepLR

from lt_lightning import lottery, reinit
from lt_lightning.disk.checksum import from_json

slow = pytest.mark.slow


class Mine(Tiny):
    """A module as people write them, with most of what can be edited."""

    def __init__(self, width=12, act=torch.nn.ReLU, p=0.3, alpha=1.0, optimizer=torch.optim.Adam, plan=None, **options):
        super().__init__(optimizer=partial(optimizer, **options), schedule=False)
        self.hidden, self.act = torch.nn.Linear(8, width), act()
        self.norm, self.output = torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 3)
        self.drop = torch.nn.Dropout(p)
        self.alpha, self.plan = alpha, plan

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return optimizer if self.plan is None else ([optimizer], [self.plan(optimizer)])


class Saved(Tiny):
    def __init__(self, lr=0.01, smoothing=0.0):
        super().__init__(lr=lr)
        self.save_hyperparameters()


def warm(first):
    return lambda o: SequentialLR(o, [LambdaLR(o, lambda n: first), StepLR(o, 2)], milestones=[1])


def rate(value):
    def make():
        module = Mine()
        module.drop_path_rate = value
        return module

    return make


def lr(value):
    class Edited(Tiny):
        def __init__(self):
            super().__init__(lr=value)

    Edited.__qualname__ = "Edited"
    return Edited


def run(directory, model=Mine, rounds=1, batch_size=20, callbacks=lambda: (), **options):
    """Train what is missing, as a program does that was started again; returns the names of what was trained."""
    names = []
    for ticket in lottery(model, rounds=rounds, directory=directory, may_vary=options.pop("may_vary", ())):
        fit = trainer(ticket, callbacks(), **{"max_epochs": 1} | options)
        train = torch.utils.data.DataLoader(loaders()[0].dataset, batch_size, shuffle=True)
        fit.fit(ticket.model, train, loaders()[1], ckpt_path=ticket.ckpt_path)
        names.append(ticket.name)
    return names


EDITS = {
    "lr": ({"model": lr(0.1)}, {"model": lr(0.2)}, "hyperparameters.lr: 0.1, now 0.2; optimizer.lr"),
    "optimizer": ({}, {"model": partial(Mine, optimizer=torch.optim.AdamW)}, "optimizer: Adam, now AdamW"),
    "decay": ({}, {"model": partial(Mine, weight_decay=0.1)}, "optimizer.weight_decay: 0, now 0.1"),
    "betas": ({}, {"model": partial(Mine, betas=(0.8, 0.9))}, r"optimizer.betas: \[0.9, 0.999\], now \[0.8, 0.9\]"),
    "width": (
        {},
        {"model": partial(Mine, 16)},
        "does not fit the model:\n  hidden.weight: the mask is .12, 8., the weight is .16, 8.",
    ),
    "layer": ({}, {"model": partial(Mine, act=torch.nn.Tanh)}, r"layers.act: ReLU\(\), now Tanh\(\)"),
    "dropout": ({}, {"model": partial(Mine, p=0.1)}, r"layers.drop: Dropout\(p=0.3.*now Dropout\(p=0.1"),
    "attribute": ({}, {"model": partial(Mine, alpha=0.5)}, "hyperparameters.alpha: 1.0, now 0.5"),
    "hyperparameter": ({"model": Saved}, {"model": partial(Saved, smoothing=0.1)}, "smoothing: 0.0, now 0.1"),
    "frozen": ({}, {"model": lambda: frozen(Mine())}, "parameters.norm.bias: 12 float32, now 12 float32, frozen"),
    "schedule": (
        {"model": partial(Mine, plan=lambda o: StepLR(o, 3))},
        {"model": partial(Mine, plan=lambda o: CosineAnnealingLR(o, 3))},
        "schedule: StepLR, now CosineAnnealingLR",
    ),
    "lambda": (
        {"model": partial(Mine, plan=lambda o: LambdaLR(o, lambda n: 0.9**n))},
        {"model": partial(Mine, plan=lambda o: LambdaLR(o, lambda n: 0.8**n))},
        r"schedule.factors 1: \[0.9, ",
    ),
    "a later step of a lambda": (
        {"model": partial(Mine, plan=lambda o: LambdaLR(o, lambda n: 1.0 if n < 4 else 0.1))},
        {"model": partial(Mine, plan=lambda o: LambdaLR(o, lambda n: 1.0 if n < 8 else 0.1))},
        r"schedule.factors 1, all: \w+, now \w+",
    ),
    "a rate that is no path": ({"model": rate(0.1)}, {"model": rate(0.5)}, "drop_path_rate: 0.1, now 0.5"),
    "warm-up": (
        {"model": partial(Mine, plan=warm(0.1))},
        {"model": partial(Mine, plan=warm(0.2))},
        r"schedule.1.factors 1: \[0.1, 0.1, 0.1, 0.1\], now \[0.2",
    ),
    "epochs": ({}, {"max_epochs": 2}, "max_epochs: 1, now 2"),
    "steps": ({"max_steps": 4, "max_epochs": -1}, {"max_steps": 5, "max_epochs": -1}, "max_steps: 4, now 5"),
    "accumulation": ({}, {"accumulate_grad_batches": 2}, "accumulate_grad_batches: 1, now 2"),
    "clipping": ({}, {"gradient_clip_val": 0.5}, "gradient_clip_val: not set, now 0.5"),
    "how to clip": (
        {"gradient_clip_val": 0.5},
        {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"},
        "gradient_clip_algorithm: norm, now value",
    ),
    "precision": ({}, {"precision": "bf16-mixed"}, "precision: 32-true, now bf16-mixed"),
    "batch size": ({}, {"batch_size": 10}, "data.batches_an_epoch: 5, now 10; data.batch_size: 20, now 10"),
    "less data": ({}, {"limit_train_batches": 3}, "data.batches_an_epoch: 5, now 3"),
    "validation": ({}, {"val_check_interval": 2}, "val_check_interval: 1.0, now 2"),
    "early end": (
        {},
        {"callbacks": lambda: [EarlyStopping("val/loss", patience=1)]},
        "callbacks.EarlyStopping: not set, now True",
    ),
    "patience": (
        {"callbacks": lambda: [EarlyStopping("val/loss", patience=2)]},
        {"callbacks": lambda: [EarlyStopping("val/loss", patience=1)]},
        "callbacks.EarlyStopping.patience: 2, now 1",
    ),
    "averaging": (
        {"callbacks": lambda: [EMAWeightAveraging(decay=0.9)]},
        {"callbacks": lambda: [EMAWeightAveraging(decay=0.8)]},
        "callbacks.EMAWeightAveraging.decay: 0.9, now 0.8",
    ),
    "accumulation by epoch": (
        {"callbacks": lambda: [GradientAccumulationScheduler({0: 2})]},
        {"callbacks": lambda: [GradientAccumulationScheduler({0: 3})]},
        "callbacks.GradientAccumulationScheduler.scheduling: {'0': 2}, now {'0': 3}",
    ),
}
APART = ("width", "frozen", "averaging", "accumulation by epoch")
"""Edits after which a checkpoint of one program cannot be continued by the other."""

QUICK = ("lr", "width", "epochs", "batch size")


def frozen(module):
    module.norm.requires_grad_(False)
    return module


@pytest.mark.parametrize("edit", [each if each in QUICK else pytest.param(each, marks=slow) for each in EDITS])
def test_an_edited_program_is_refused_before_it_trains_another_round(tmp_path, edit):
    before, after, told = EDITS[edit]
    run(tmp_path, rounds=0, **before)
    final = (tmp_path / "round-00" / "final.ckpt").read_bytes()
    with pytest.raises(ValueError, match=told) as error:
        run(tmp_path, **before | after)
    assert (tmp_path / "round-00" / "final.ckpt").read_bytes() == final
    assert not list(tmp_path.glob("round-01/*.ckpt"))
    assert run(tmp_path, **before) == ["round-01"]
    text = str(error.value)
    if edit == "width":  # which masks and checkpoints tell by themselves
        return
    assert text.startswith(f"round-00 in {tmp_path} was trained with ")
    assert "choose another directory" in text
    assert "lottery(..., may_vary=[" in text
    assert "\n" not in text


@slow
@pytest.mark.parametrize("edit", [edit for edit in EDITS if edit not in APART])
def test_fits_may_differ_where_that_is_said(tmp_path, edit):
    before, after, _ = EDITS[edit]
    run(tmp_path, rounds=0, **before)
    assert run(tmp_path, may_vary=["*"], **before | after) == ["round-01"]


def test_a_schedule_by_round_names_what_it_changes(tmp_path):
    for ticket in lottery(Tiny, rounds=1, directory=tmp_path, may_vary=["max_epochs"]):
        fit = trainer(ticket, max_epochs=1 + ticket.round)
        fit.fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
    with open(tmp_path / "records.csv") as file:
        assert [row["steps"] for row in csv.DictReader(file)] == ["5", "10"]


def test_within_one_process_it_is_refused_too_and_for_controls(tmp_path):
    def program():
        for ticket in lottery(Tiny, rounds=1, directory=tmp_path, controls=[reinit]):
            fit = trainer(ticket, max_epochs=1, precision="64-true" if ticket.arm == "reinit" else "32-true")
            fit.fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)

    with pytest.raises(ValueError, match=r"round-00 in .* was trained with precision: 32-true, now 64-true"):
        program()
    assert not (tmp_path / "round-01" / "reinit" / "final.ckpt").exists()


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (lr(0.2), "hyperparameters.lr: 0.01, now 0.2"),
        (partial(Mine, 16), "parameters.hidden.weight: 12x8 float32, now 16x8 float32"),
    ],
)
def test_a_finished_program_that_was_edited_is_refused_where_its_module_tells(tmp_path, model, told):
    run(tmp_path, lr(0.01), rounds=0)
    with pytest.raises(ValueError, match=told):
        run(tmp_path, model, rounds=0)


def test_the_optimizer_of_a_finished_program_is_looked_at(tmp_path):
    run(tmp_path, partial(Mine, weight_decay=0.1), rounds=0)
    with pytest.raises(ValueError, match=r"optimizer\.weight_decay: 0\.1, now 0\.2"):
        run(tmp_path, partial(Mine, weight_decay=0.2), rounds=0)


def test_a_finished_program_says_with_what_its_results_were_computed(tmp_path, capsys):
    run(tmp_path, rounds=0)
    capsys.readouterr()
    assert run(tmp_path, rounds=0, max_epochs=3) == []
    assert capsys.readouterr().out == (
        f"nothing was trained: all rounds in {tmp_path} were done before, with max_epochs=1, max_steps=-1, "
        "precision=32-true, optimizer=Adam, optimizer.lr=0.01, data.batch_size=20. If the program has been changed "
        "since, choose another directory to train it.\n"
    )


def test_with_a_configuration_that_was_compared_nothing_is_said(tmp_path, capsys):
    for _ in range(2):
        capsys.readouterr()
        play(tmp_path, rounds=0, config={"epochs": 3})
    assert capsys.readouterr().out == ""


def test_what_changes_no_result_may_change(tmp_path):
    run(tmp_path, rounds=0)
    callbacks = lambda: [L.pytorch.callbacks.ModelSummary()]  # noqa: E731
    quiet = {"logger": True, "enable_checkpointing": True, "log_every_n_steps": 1, "profiler": "simple"}
    assert run(tmp_path, callbacks=callbacks, strategy="auto", num_sanity_val_steps=0, **quiet) == ["round-01"]


def test_a_trial_is_not_compared_and_notes_nothing(tmp_path):
    run(tmp_path, fast_dev_run=True)
    assert not list(tmp_path.rglob("fit.json"))
    run(tmp_path, rounds=0)
    assert run(tmp_path, fast_dev_run=True, accumulate_grad_batches=2) == ["round-01"]


def test_the_facts_are_a_small_readable_file_with_a_checksum(tmp_path):
    run(tmp_path, rounds=0)
    told = from_json((tmp_path / "fit.json").read_text())
    assert list(told) == ["fit", "model", "training", "data"]
    assert told["fit"] == "round-00"
    assert told["data"] == {"data.batches_an_epoch": 5, "data.batch_size": 20}
    assert told["training"]["optimizer.lr"] == 0.01
    assert told["model"]["parameters.hidden.weight"] == "12x8 float32"


def test_a_damaged_file_of_facts_is_set_aside_with_a_warning(tmp_path):
    run(tmp_path, rounds=0)
    content = json.loads((tmp_path / "fit.json").read_text())
    content["training"]["max_epochs"] = 7
    (tmp_path / "fit.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r"fit\.json is damaged: .*is now fit\.json\.damaged"):
        assert run(tmp_path) == ["round-01"]
    assert from_json((tmp_path / "fit.json").read_text())["training"]["max_epochs"] == 1
    assert (tmp_path / "fit.json.damaged").exists()


def test_runs_that_share_round_0_are_compared_with_what_that_was_trained_with(tmp_path):
    def one(name, epochs):
        shared = {"dense_directory": tmp_path / "dense", "config": {"data": "same"}}
        for ticket in lottery(Tiny, rounds=0, directory=tmp_path / name, **shared):
            trainer(ticket, max_epochs=epochs).fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)

    one("a", 1)
    assert from_json((tmp_path / "a" / "fit.json").read_text())["training"]["max_epochs"] == 1
    with pytest.raises(ValueError, match=r"round-00 in .*b was trained with max_epochs: 1, now 2"):
        one("b", 2)


def test_what_was_refused_at_its_start_may_be_edited(tmp_path):
    def one(epochs):
        for ticket in lottery(Tiny, rounds=0, directory=tmp_path, rewind_step=7):
            trainer(ticket, max_epochs=epochs).fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)

    with pytest.raises(ValueError, match="rewind_step=7 steps lies at or beyond the end of the fit"):
        one(epochs=1)
    one(epochs=2)
    assert from_json((tmp_path / "fit.json").read_text())["training"]["max_epochs"] == 2


def test_names_of_what_may_vary_are_texts(tmp_path):
    with pytest.raises(
        ValueError, match=r"may_vary=\[3\] must be names or patterns over names: may_vary=\[.max_epochs"
    ):
        lottery(Tiny, rounds=1, directory=tmp_path, may_vary=[3])
