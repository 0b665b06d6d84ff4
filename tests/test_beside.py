"""What an earlier round has left on a Trainer is noticed before anything is trained."""

import lightning as L
import pytest
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from tiny import Tiny, loaders, play, trainer

from lt_lightning import lottery
from lt_lightning.records import read_records

slow = pytest.mark.slow


class Own(L.Callback):
    """An early stop as a user may write one."""

    best = None

    def on_validation_end(self, trainer, module):
        self.best = float(trainer.callback_metrics["val/loss"])

    def state_dict(self):
        return {"best": self.best}


OUTSIDE = {
    "EarlyStopping": lambda folder: EarlyStopping("val/loss"),
    "ModelCheckpoint": lambda folder: ModelCheckpoint(folder / "mine", monitor="val/loss"),
    "Timer": lambda folder: Timer(duration="00:01:00:00"),
    "StochasticWeightAveraging": lambda folder: StochasticWeightAveraging(0.01),
    "Own": lambda folder: Own(),
}


@pytest.mark.parametrize(
    "kind", ["EarlyStopping", *(pytest.param(each, marks=slow) for each in OUTSIDE if each != "EarlyStopping")]
)
def test_a_callback_with_the_state_of_an_earlier_round_is_refused(tmp_path, kind):
    made, options = OUTSIDE[kind](tmp_path), {"max_epochs": 2, "enable_checkpointing": True}
    told = rf"this {kind} has the state of an earlier fit, so that round-01 .*inside the loop: .*\[{kind}\(\.\.\.\), "
    with pytest.raises(ValueError, match=told):
        play(tmp_path / "run", make_callbacks=lambda: [made], options=options, model=lambda: Tiny(schedule=False))
    assert [row["round"] for row in read_records(tmp_path / "run" / "records.csv")] == [0]
    assert not list(tmp_path.glob("run/round-01/*.ckpt"))
    again = {"make_callbacks": lambda: [OUTSIDE[kind](tmp_path)], "model": lambda: Tiny(schedule=False)}
    assert list(play(tmp_path / "run", options=options, **again)) == ["round-01"]


def test_one_that_was_used_before_the_lottery_is_refused_too(tmp_path):
    made = EarlyStopping("val/loss")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    L.Trainer(max_epochs=1, callbacks=[made], accelerator="cpu", **quiet).fit(Tiny(), *loaders())
    with pytest.raises(ValueError, match="this EarlyStopping has the state of an earlier fit, so that round-00 "):
        play(tmp_path, make_callbacks=lambda: [made])


def test_callbacks_without_state_may_be_shared(tmp_path):
    made = LearningRateMonitor()
    models = play(tmp_path, make_callbacks=lambda: [made], options={"max_epochs": 1, "logger": CSVLogger(tmp_path)})
    assert list(models) == ["round-00", "round-01"]


@slow
def test_an_interrupted_fit_may_go_on_with_its_own_callback(tmp_path):
    class Stop(Exception):
        pass

    class Ending(L.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 2:
                raise Stop

    made = EarlyStopping("val/loss", patience=9)
    with pytest.raises(Stop):
        play(tmp_path, rounds=0, make_callbacks=lambda: [made, Ending()])
    assert list(play(tmp_path, rounds=0, make_callbacks=lambda: [made])) == ["round-00"]


def test_model_pruning_beside_the_ticket_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ModelPruning prunes weights of which the ticket does not know: leave it out"):
        play(tmp_path, make_callbacks=lambda: [ModelPruning("l1_unstructured", amount=0.5)])
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    import wandb

    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true", "CONSOLE": "off"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield wandb
    wandb.teardown()


def logged(directory, make_logger, after=lambda: None):
    for ticket in lottery(Tiny, rounds=1, directory=directory):
        fit = trainer(ticket, max_epochs=1, logger=make_logger())
        fit.fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
        after()


@slow
@pytest.mark.parametrize("outside", [False, True])
def test_a_run_of_wandb_that_was_not_finished_is_refused(tmp_path, wandb, outside):
    made = WandbLogger(project="lottery")
    make_logger = (lambda: made) if outside else lambda: WandbLogger(project="lottery")
    with pytest.raises(ValueError, match=r"the W&B run .* is that of round-00, and round-01 .*wandb\.finish\(\)"):
        logged(tmp_path / "run", make_logger)
    wandb.finish()
    logged(tmp_path / "run", lambda: WandbLogger(project="lottery"), after=wandb.finish)
    assert [row["round"] for row in read_records(tmp_path / "run" / "records.csv")] == [0, 1]
    logged(tmp_path / "other", lambda: WandbLogger(project="lottery"), after=wandb.finish)
