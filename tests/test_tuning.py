"""Finders of learning rates and batch sizes: one search for all fits, and none of its traces in them."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, EMAWeightAveraging, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from test_lottery import assert_same_state, final, records_without_time
from tiny import Tiny, data, loaders, trainer
from torch.utils.data import DataLoader

from lt_lightning import lottery
from lt_lightning.disk.rundir import Checkpoint

pytestmark = pytest.mark.lightning_matrix
slow = pytest.mark.slow


class Stop(Exception):
    pass


class Ending(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.global_step == self.step:
            raise Stop


class Scheduled(Tiny):
    """With a schedule that starts from the learning rate given, and loaders of its own."""

    def __init__(self, lr=0.01, batch_size=20):
        super().__init__(lr=lr)
        self.batch_size = batch_size

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), self.lr)
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "step"}}

    def train_dataloader(self):
        return DataLoader(data(), self.batch_size, shuffle=True)

    def val_dataloader(self):
        return loaders()[1]


def rate_finder():
    return LearningRateFinder(min_lr=1e-4, max_lr=0.5, num_training_steps=25, early_stop_threshold=None)


def size_finder():
    return BatchSizeFinder(max_trials=3, steps_per_trial=1, init_val=8)


def both():
    return [size_finder(), rate_finder(), EMAWeightAveraging(decay=0.7)]


def play(directory, make_callbacks=both, model=Scheduled, stop=None, options=None, before=lambda *_: None, **arguments):
    """All fits' modules by name; `stop` is the name of the fit to interrupt."""
    models = {}
    for ticket in lottery(model, rounds=1, directory=directory, controls=["reinit"], every="1 epoch", **arguments):
        callbacks = [*make_callbacks(), *([Ending(7)] if ticket.name == stop else [])]
        fit = trainer(ticket, callbacks, **{"max_steps": 13, "max_epochs": -1} | (options or {}))
        models[ticket.name] = ticket.model
        before(fit, ticket)
        fit.fit(ticket.model, ckpt_path=ticket.ckpt_path)
    return models


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    return directory, play(directory)


def assert_same_run(a, b):
    assert records_without_time(a) == records_without_time(b)
    for name in ("round-00", "round-01", "round-01/reinit"):
        assert_same_state(final(a, name), final(b, name))


def test_all_fits_train_with_what_the_first_one_found(whole):
    directory, models = whole
    found = Checkpoint(directory / "points" / "step-0.ckpt")["callbacks"]["Ticket"]["found"]
    assert found["batch_size"] == 32
    assert found["lr"] not in (None, 0.01)
    assert {(model.batch_size, model.lr) for model in models.values()} == {(32, found["lr"])}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, pytest.param({"max_steps": -1, "max_epochs": 3}, marks=slow)], ids=["steps", "epochs"]
)
def test_a_search_leaves_no_other_trace(tmp_path, options):
    """As if its values had been there from the start."""
    models = play(tmp_path / "searched", options=options)
    lr = models["round-00"].lr
    without = lambda: [EMAWeightAveraging(decay=0.7)]  # noqa: E731
    play(tmp_path / "given", without, model=lambda: Scheduled(lr, 32), options=options)
    assert_same_run(tmp_path / "searched", tmp_path / "given")


@pytest.mark.parametrize(
    "stop", [pytest.param(each, marks=slow) for each in ("round-00", "round-01", "round-01/reinit")]
)
def test_an_interrupted_fit_does_not_search_again(tmp_path, whole, stop):
    with pytest.raises(Stop):
        play(tmp_path, stop=stop)
    play(tmp_path)
    assert_same_run(tmp_path, whole[0])


def test_a_finder_that_joins_later_is_refused(tmp_path):
    with pytest.raises(Stop):
        play(tmp_path, list, stop="round-01")
    with pytest.raises(ValueError, match="LearningRateFinder was not there when round 0 began, so no lr was found"):
        play(tmp_path, lambda: [rate_finder()])


def test_a_finder_that_searches_at_other_times_is_refused(tmp_path):
    class Often(LearningRateFinder):
        def on_fit_start(self, trainer, module):
            pass

    with pytest.raises(ValueError, match=r"Often has an on_fit_start of its own; .*callbacks=\[LearningRateFinder"):
        play(tmp_path, lambda: [Often()])


def test_a_trial_does_not_search(tmp_path):
    models = play(tmp_path, options={"fast_dev_run": True})
    assert {(model.batch_size, model.lr) for model in models.values()} == {(20, 0.01)}


class Looking(Scheduled):
    """Looks under the masks in every training step, those of a search too."""

    ticket, looks = None, 0

    def training_step(self, batch, index):
        for name, mask in self.ticket.masks.items():
            assert not self.get_parameter(name).detach()[~mask].any()
        self.looks += 1
        return super().training_step(batch, index)


def tune(found):
    def search(fit, ticket):
        Tuner(fit).scale_batch_size(ticket.model, max_trials=3, init_val=8, steps_per_trial=1)
        finder = Tuner(fit).lr_find(ticket.model, num_training=15, early_stop_threshold=None)
        found.append((ticket.name, finder.results["loss"]))

    return search


def test_a_tuner_searches_on_the_ticket(tmp_path):
    for ticket in lottery(Looking, rounds=1, directory=tmp_path):
        fit = trainer(ticket)
        ticket.model.ticket = ticket
        Tuner(fit).lr_find(ticket.model, num_training=13, early_stop_threshold=None)
        assert ticket.model.looks == 13
        fit.fit(ticket.model, ckpt_path=ticket.ckpt_path)
        assert ticket.model.looks == 28
        assert fit.global_step == 15


@slow
@pytest.mark.parametrize("instance", [True, False])
@pytest.mark.parametrize("rewind_step", [0, 7])
def test_a_tuner_may_search_in_every_round_on_the_ticket(tmp_path, instance, rewind_step):
    def run(directory, stop=None, search=True, **values):
        found = []
        torch.manual_seed(3)
        made = Looking(**values) if instance else lambda: Looking(**values)
        for ticket in lottery(made, rounds=1, directory=directory, rewind_step=rewind_step, every="1 epoch"):
            fit = trainer(ticket, [Ending(9)] if ticket.name == stop else [], max_steps=13, max_epochs=-1)
            ticket.model.ticket = ticket
            if search:
                tune(found)(fit, ticket)
            fit.fit(ticket.model, ckpt_path=ticket.ckpt_path)
        return found

    whole = run(tmp_path / "whole")
    assert whole[0][1] != whole[1][1]
    with pytest.raises(Stop):
        run(tmp_path / "stopped", stop="round-01")
    again = run(tmp_path / "stopped")
    assert again[-1] == whole[-1]
    point = Checkpoint(tmp_path / "whole" / "points" / "step-0.ckpt")
    lr = point["optimizer_states"][0]["param_groups"][0]["lr"]
    run(tmp_path / "given", search=False, lr=lr, batch_size=32)
    for name in ("round-00", "round-01"):
        assert_same_state(final(tmp_path / "whole", name), final(tmp_path / "stopped", name))
        assert_same_state(final(tmp_path / "whole", name), final(tmp_path / "given", name))
