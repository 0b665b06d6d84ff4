"""What a fit and its tests measured is recorded under names that are true, and nothing is lost without a word."""

import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from sampling import few
from torch.utils.data import DataLoader, TensorDataset

from lt_lightning import cubically, lottery, settled
from lt_lightning.disk.rundir import Checkpoint, RunDirectory
from lt_lightning.records import COLUMNS, read_records

STEPS = 4
"""In an epoch."""


class Plain(BoringModel):
    """Trains so fast that the validation loss rises after the first epoch."""

    def training_step(self, batch, index):
        return {"loss": self.layer(batch[0]).pow(2).mean()}

    def validation_step(self, batch, index):
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch, index):
        self.log("test/loss", self.loss(batch))

    def loss(self, batch):
        return (self.layer(batch[0]) - 0.3 * batch[0][:, :2]).pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.3)


def data(count=32):
    x = torch.randn(count, 32, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x), 8)


def trainer(ticket, *callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    few = {"max_epochs": 3, "log_every_n_steps": 2, "enable_checkpointing": False}
    return L.Trainer(callbacks=[*callbacks, ticket], default_root_dir=ticket.directory, **(quiet | few | options))


def run(directory, model=Plain, body=None, validation=data, callbacks=lambda: (), options=None, **arguments):
    """A lottery whose fits are followed by `body(trainer, ticket)`; returns its records."""
    for ticket in lottery(model, directory=directory, **({"rounds": 0} | arguments)):
        made = trainer(ticket, *callbacks(), **(options or {}))
        made.fit(ticket.model, data(), validation(), ckpt_path=ticket.ckpt_path)
        if body:
            body(made, ticket)
    return read_records(directory / "records.csv")


def curves(directory, name="round-00"):
    return read_records(directory / name / "metrics.csv")


# Names

OURS = [*COLUMNS, "epoch", "step", "experiment", "method", "run", "best_checkpoint_x"]


class Clashing(Plain):
    """Logs everything that is a column of ours: the 1,000 + epoch."""

    def validation_step(self, batch, index):
        super().validation_step(batch, index)
        for name in OURS:
            self.log(name, 1000.0 + self.current_epoch)


def test_a_metric_with_the_name_of_a_column_has_one_of_its_own(tmp_path):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        rows = run(tmp_path, Clashing, rounds=1, monitor="val/loss")
    plain = run(tmp_path / "plain", rounds=1, monitor="val/loss")
    for row, right in zip(rows, plain, strict=True):
        assert {k: row[k] for k in right if k != "seconds"} == {k: v for k, v in right.items() if k != "seconds"}
        assert row["early_stop_step"] in (STEPS, 2 * STEPS, 3 * STEPS)
        assert {name: row[f"logged/{name}"] for name in OURS} == dict.fromkeys(OURS, 1002.0)
        best = 1000.0 + row["early_stop_step"] / STEPS - 1
        assert {name: row[f"early_stop_logged_{name}"] for name in OURS} == dict.fromkeys(OURS, best)
    lines = [line for line in curves(tmp_path) if line["logged/step"] is not None]
    assert [(line["step"], line["epoch"], line["logged/step"]) for line in lines] == [
        (4, 0, 1000.0), (8, 1, 1001.0), (12, 2, 1002.0)
    ]  # fmt: skip
    said = [str(each.message) for each in told if "another column" in str(each.message)]
    assert len(said) == len(OURS)
    assert said[-2:][0] == (
        f"{tmp_path}: the module logs 'run', which is the name of another column of the records: its values are "
        "recorded as 'logged/run'. Log it under another name to choose one yourself."
    )


@pytest.mark.slow
def test_a_metric_called_density_stands_beside_that_of_masks_that_tighten(tmp_path):
    class Own(Plain):
        def training_step(self, batch, index):
            self.log("density", 7.0)
            return super().training_step(batch, index)

    with pytest.warns(UserWarning, match="'logged/density'"):
        run(tmp_path, Own, rounds=1, density=0.5, gradual=cubically(), gradual_every="1 step", monitor=None)
    lines = curves(tmp_path, "round-01")
    assert {line["logged/density"] for line in lines} == {7.0, None}
    assert lines[-1]["density"] == 0.5


def test_a_metric_with_the_name_of_the_distance_of_masks_is_refused(tmp_path):
    class Own(Plain):
        def validation_step(self, batch, index):
            self.log("mask_distance", 7.0)

    with pytest.raises(ValueError, match="the module logs 'mask_distance', which is the column of what early_bird"):
        run(tmp_path, Own, rounds=1, early_bird=settled(0.1), monitor=None)


def test_metrics_whose_names_differ_by_a_slash_alone_both_have_a_column_at_the_early_stop(tmp_path):
    class Two(Plain):
        def validation_step(self, batch, index):
            super().validation_step(batch, index)
            self.log_dict({"val/acc": 0.25, "val_acc": 0.75})

    row = run(tmp_path, Two, monitor="val/loss")[0]
    assert (row["early_stop_val/acc"], row["early_stop_val_acc"]) == (0.25, 0.75)
    assert (row["val/acc"], row["val_acc"]) == (0.25, 0.75)


def test_a_test_that_logs_the_names_of_the_validation_replaces_nothing(tmp_path):
    class Same(Plain):
        def test_step(self, batch, index):
            self.log_dict({"val/loss": 100.0, "step": 9.0})

    def body(made, ticket):
        made.test(ticket.model, data(), verbose=False)
        made.test(ticket.model, data(), ckpt_path=ticket.early_stop_path, verbose=False)

    with pytest.warns(UserWarning, match="recorded as 'logged/step'"):
        row = run(tmp_path, Same, body, monitor="val/loss")[0]
    assert (row["logged/step"], row["early_stop_logged_step"]) == (9.0, 9.0)
    assert row["early_stop_step"] in (STEPS, 2 * STEPS, 3 * STEPS)
    assert max(row["val/loss"], row["early_stop_val_loss"]) < 10
    assert (row["test/val/loss"], row["early_stop_test_val_loss"]) == (100.0, 100.0)


# Which weights were tested


def loss_of(path):
    """The test loss of a checkpoint."""
    module = Plain()
    module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    with torch.no_grad():
        return pytest.approx(float(torch.stack([module.loss(batch) for batch in data()]).mean()))


def best():
    return [ModelCheckpoint(monitor="best/of", mode="max", save_weights_only=True, save_last=True)]


class Judged(Plain):
    """Best by another metric after the second epoch, where nothing else is best."""

    def validation_step(self, batch, index):
        super().validation_step(batch, index)
        self.log("best/of", float(self.current_epoch == 1))


SAVED = {"callbacks": best, "options": {"enable_checkpointing": True, "max_epochs": 3}, "monitor": "val/loss"}


@pytest.mark.parametrize("named", few([True, False], 0), ids=["best", "without a model"])
def test_the_best_checkpoint_has_columns_of_its_own(tmp_path, named):
    paths = []

    def body(made, ticket):
        if named:
            made.test(ticket.model, data(), ckpt_path="best", verbose=False)
        else:
            with pytest.warns(UserWarning, match="The best model of the previous `fit` call will be used"):
                made.test(dataloaders=data(), verbose=False)
        paths.append(made.checkpoint_callback.best_model_path)

    rows = run(tmp_path, Judged, body, rounds=1, **SAVED)
    for row, path in zip(rows, paths, strict=True):
        assert row["best_checkpoint_test_loss"] == loss_of(path)
        assert "test/loss" not in row


@pytest.mark.parametrize("how", few(["no model", "path", "last"], 0))
def test_the_weights_decide_where_a_test_is_recorded(tmp_path, how):
    """Without a monitor Lightning's best checkpoint is the last one, which holds the weights of the end."""

    def body(made, ticket):
        given = {"path": made.checkpoint_callback.best_model_path, "last": "last", "no model": None}[how]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.test(ticket.model if given else None, data(), ckpt_path=given, verbose=False)

    options = {"enable_checkpointing": True}
    row = run(tmp_path, Plain, body, callbacks=lambda: [ModelCheckpoint(save_last=True)], options=options)[0]
    assert row["test/loss"] == loss_of(tmp_path / "round-00" / "final.ckpt")
    assert "best_checkpoint_test_loss" not in row


def test_other_weights_are_not_recorded_and_the_test_says_so(tmp_path):
    def body(made, ticket):
        made.test(ticket.model, data(), verbose=False)
        path = ticket.files.path / "mine.ckpt"
        mine = Checkpoint(ticket.files.final)
        torch.save({**mine, "state_dict": {k: torch.zeros_like(v) for k, v in mine["state_dict"].items()}}, path)
        with pytest.warns(UserWarning, match="a test of the weights of .*mine.ckpt is not recorded") as told:
            made.test(ticket.model, data(), ckpt_path=path, verbose=False)
        assert 'ckpt_path="best" and ModelCheckpoint(monitor=...)' in str(told[-1].message)
        with pytest.warns(UserWarning, match="a test of weights that changed since the fit is not recorded"):
            made.test(ticket.model, data(), verbose=False)
        with pytest.warns(UserWarning, match="a test of another module is not recorded"):
            made.test(Plain(), data(), verbose=False)
        other = L.Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu")
        with pytest.warns(UserWarning, match="round-00: this test is not recorded, as its Trainer does not have"):
            other.test(ticket.model, data(), verbose=False)

    row = run(tmp_path, Plain, body)[0]
    assert row["test/loss"] == loss_of(tmp_path / "round-00" / "final.ckpt")


def test_a_test_before_the_fit_is_never_the_final_one(tmp_path):
    for ticket in lottery(Plain, rounds=0, directory=tmp_path):
        made = trainer(ticket)
        with pytest.warns(UserWarning, match="round-00: a test before the fit is not recorded"):
            made.test(ticket.model, data(), verbose=False)
        made.fit(ticket.model, data(), data(), ckpt_path=ticket.ckpt_path)
    row = read_records(tmp_path / "records.csv")[0]
    assert "test/loss" not in row
    assert row["steps"] == 3 * STEPS


def test_weights_that_are_not_a_number_are_those_of_the_end_all_the_same(tmp_path):
    class Diverging(Plain):
        def on_train_end(self):
            torch.nn.init.constant_(self.layer.bias, float("nan"))

    def body(made, ticket):
        made.test(ticket.model, data(), verbose=False)

    row = run(tmp_path, Diverging, body)[0]
    assert row["test/loss"] != row["test/loss"]


# Several validation loaders


class Several(Plain):
    def validation_step(self, batch, index, dataloader_idx=0):
        if not self.silent or not self.trainer.sanity_checking:
            self.log("val/loss", self.loss(batch) + dataloader_idx)

    silent = False


class Silent(Several):
    silent = True


def two():
    return [data(), data(16)]


NAMES = ["val/loss/dataloader_idx_0", "val/loss/dataloader_idx_1"]


LOADERS = [
    (Several, {}, NAMES[1]),
    (Several, {}, "auto"),
    (Several, {"num_sanity_val_steps": 0}, NAMES[1]),
    (Several, {"num_sanity_val_steps": 0}, "auto"),
    (Silent, {}, NAMES[1]),
    (Silent, {}, "auto"),
]


@pytest.mark.parametrize(("model", "options", "monitor"), few(LOADERS, 0, 3))
def test_every_validation_loader_is_recorded(tmp_path, model, options, monitor):
    row = run(tmp_path, model, validation=two, options=options, monitor=monitor)[0]
    lines = [line for line in curves(tmp_path) if line.get(NAMES[0]) is not None]
    assert [line["step"] for line in lines] == [4, 8, 12]
    values = [line[NAMES[0] if monitor == "auto" else monitor] for line in lines]
    assert row["early_stop_step"] == lines[values.index(min(values))]["step"]
    assert all(line[NAMES[1]] > 1 > line[NAMES[0]] for line in lines)
    for name in NAMES:
        assert row[name] == lines[-1][name]
        assert row["early_stop_" + name.replace("/", "_")] == lines[values.index(min(values))][name]


def test_a_name_that_only_other_loaders_have_is_still_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="did not log the monitor 'val/loss'") as error:
        run(tmp_path, Several, validation=two, monitor="val/loss")
    assert f"it logged {NAMES}" in str(error.value)
    assert not (tmp_path / "round-00" / "metrics.csv").exists()


def test_a_silent_sanity_check_does_not_loosen_the_monitor(tmp_path):
    with pytest.raises(ValueError, match="did not log the monitor 'val/acc'"):
        run(tmp_path, Silent, validation=data, monitor="val/acc")
    assert not (tmp_path / "records.csv").exists()


# The default monitor


def logging_as(**metrics):
    """A module whose validation logs the loss times a factor each, under these names."""

    class Named(Plain):
        def validation_step(self, batch, index):
            for name, factor in metrics.items():
                self.log(name.replace("__", "/"), factor * self.loss(batch))

    return Named


DEFAULTS = [
    ({"val_loss": 1, "val_mae": -1}, "val_loss"),
    ({"validation_loss": 1, "elbo_validation": -1}, "validation_loss"),
    ({"ptl__val_loss": 1}, "ptl/val_loss"),
    ({"val_acc": 1}, None),
    ({}, None),
]


@pytest.mark.parametrize(("metrics", "found"), few(DEFAULTS, 0, 3))
def test_the_default_monitor_is_the_validation_loss_in_every_fit(tmp_path, caplog, metrics, found):
    caplog.set_level("INFO", logger="lightning.pytorch")
    rows = run(tmp_path, logging_as(**metrics), rounds=1, controls=["reinit"])
    name = f"early_stop_{found}".replace("/", "_")
    for row, fit in zip(rows, ["round-00", "round-01/reinit", "round-01"], strict=True):
        assert (row["early_stop_step"] is not None) == (found is not None), fit
        assert name in row or not found
    said = [each for each in caplog.messages if each.startswith('monitor="auto"')]
    assert RunDirectory(tmp_path).monitor_found() == found
    if found:
        assert said == [f'monitor="auto": {found!r} decides the early stop (prune.monitor)']
    else:
        assert said[0].startswith('monitor="auto": no early stop, as no validation loss is among')


@pytest.mark.slow
def test_a_fit_that_restarts_keeps_the_monitor_that_was_found(tmp_path):
    """The first validation logs one loss, later ones another that would be preferred."""

    class Changing(Plain):
        def validation_step(self, batch, index):
            self.log("valid_loss" if self.current_epoch == 0 else "val/loss", self.loss(batch))
            self.log("my_valid_loss", self.loss(batch))

    def fit(directory, epochs):
        for ticket in lottery(Changing, rounds=1, directory=directory, every="1 epoch"):
            made = trainer(ticket, Stop(epochs))
            made.fit(ticket.model, data(), data(), ckpt_path=ticket.ckpt_path)

    fit(tmp_path / "whole", epochs=9)
    with pytest.raises(Killed):
        fit(tmp_path / "killed", epochs=2)
    fit(tmp_path / "killed", epochs=9)
    rows = [read_records(tmp_path / name / "records.csv") for name in ("whole", "killed")]
    assert [[row["early_stop_step"] for row in each] for each in rows] == [[STEPS, STEPS]] * 2
    assert RunDirectory(tmp_path / "killed").monitor_found() == "valid_loss"


class Killed(Exception):
    pass


class Stop(L.Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == self.epochs:
            raise Killed


def test_the_default_monitor_is_a_loss_of_which_less_is_better(tmp_path):
    with pytest.raises(ValueError, match='mode="max" needs the name of a metric') as error:
        run(tmp_path, mode="max")
    assert 'lottery(..., monitor="val/acc", mode="max"); prune.monitor=val/acc.' in str(error.value)


# What a test draws


class Drawing(Plain):
    def test_step(self, batch, index):
        self.log("test/drawn", torch.randn(()))


def shuffled():
    return DataLoader(data().dataset, 8, shuffle=True)


def test_a_test_draws_the_same_numbers_after_a_kill_between_fit_and_done(tmp_path):
    def body(made, ticket):
        body.drawn.append(torch.rand(()).item())
        if body.dies:
            raise Killed
        made.test(ticket.model, shuffled(), verbose=False)
        made.test(ticket.model, shuffled(), ckpt_path=ticket.early_stop_path, verbose=False)

    body.drawn, body.dies = [], False
    right = run(tmp_path / "whole", Drawing, body)[0]
    body.dies = True
    with pytest.raises(Killed):
        run(tmp_path / "killed", Drawing, body)
    body.dies = False
    row = run(tmp_path / "killed", Drawing, body)[0]
    assert row["test/drawn"] == right["test/drawn"] == right["early_stop_test_drawn"]
    assert len(set(body.drawn)) == 1
    assert run(tmp_path / "other", Drawing, body, seed=1)[0]["test/drawn"] != right["test/drawn"]
