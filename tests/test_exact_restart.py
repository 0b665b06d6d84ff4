"""A fit may be interrupted and saved anywhere, within an epoch too, and ends with the same bits and metrics."""

import pytest
import torch
from sampling import few
from test_lottery import Stop, StopAt, assert_same_state, final, records_without_time
from tiny import Tiny, play
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lt_lightning.records import read_records

slow = pytest.mark.slow


class Measuring(Tiny):
    """Logs every kind of metric, from every hook of the training loop."""

    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(3)
        self.several = MetricCollection([MulticlassAccuracy(3, average="micro"), MulticlassF1Score(3)], prefix="train/")
        self.gathered = MeanMetric()

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        predicted = self(batch[0]).argmax(1)
        self.log("train/both", loss, on_step=True, on_epoch=True)
        for reduce in ("min", "max", "sum"):
            self.log(f"train/{reduce}", loss, reduce_fx=reduce, on_step=False, on_epoch=True)
        self.accuracy(predicted, batch[1])
        self.log("train/accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.several(predicted, batch[1])
        self.log_dict(self.several, on_step=False, on_epoch=True)
        self.gathered.update(loss.detach())
        return loss

    def on_train_batch_end(self, outputs, batch, index):
        self.log("train/end", outputs["loss"].detach() * 2, on_step=False, on_epoch=True)

    def on_train_epoch_end(self):
        self.log("train/gathered", self.gathered.compute())
        self.gathered.reset()


class Plateau(Tiny):
    """Lowers its learning rate when a metric stalls."""

    def __init__(self, interval="epoch", monitor="val/loss", frequency=1):
        super().__init__()
        self.plan = {"interval": interval, "monitor": monitor, "frequency": frequency}

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), 0.05)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=0, threshold=0.2)
        return {"optimizer": optimizer, "lr_scheduler": self.plan | {"scheduler": schedule}}


class Hooked(Tiny):
    """Its own hooks change weights after each batch."""

    def on_train_batch_end(self, outputs, batch, index):
        with torch.no_grad():
            self.norm.weight.mul_(0.99)


MODELS = {
    "metrics": Measuring,
    "plateau": Plateau,
    "plateau by training": lambda: Plateau(monitor="train/acc"),
    "plateau by step": lambda: Plateau(interval="step", monitor="train/loss"),
    "plateau by rare step": lambda: Plateau(interval="step", monitor="val/loss", frequency=4),
    "hook": Hooked,
}
OPTIONS = {
    "epochs": {"max_epochs": 4},
    "steps": {"max_steps": 17, "max_epochs": -1},
    "validate often": {"max_epochs": 4, "val_check_interval": 2},
    "accumulate": {"max_epochs": 4, "accumulate_grad_batches": 2},
}


def same(directory, other, name):
    assert_same_state(final(directory, name), final(other, name))
    curves = [read_records(d / name / "metrics.csv") for d in (directory, other)]
    assert curves[0] == curves[1]


SAVED = [("validate often", each) for each in ("1 step", "1 epoch", "3 steps")]
SAVED += [(options, "3 steps") for options in ("epochs", "steps", "accumulate")]


@pytest.mark.parametrize(("options", "every"), few(SAVED, 0))
@pytest.mark.parametrize("model", MODELS)
def test_a_fit_that_is_interrupted_anywhere_ends_with_the_same_bits_and_metrics(tmp_path, model, options, every):
    if model == "plateau by rare step" and options != "validate often":
        pytest.skip("its metric would be missing")
    arguments = {"model": MODELS[model], "options": OPTIONS[options], "every": every, "rewind_step": 2}
    play(tmp_path / "whole", **arguments)
    for count in (5, 3, 8):
        with pytest.raises(Stop):
            play(tmp_path / "stopped", make_callbacks=lambda n=count: [StopAt("on_train_batch_end", n)], **arguments)
    models = play(tmp_path / "stopped", **arguments)
    assert records_without_time(tmp_path / "stopped") == records_without_time(tmp_path / "whole")
    for name in ("round-00", "round-01"):
        same(tmp_path / "stopped", tmp_path / "whole", name)
    assert models


@pytest.mark.parametrize("rewind_step", few([3, "1 epoch", 8], 0))
@pytest.mark.parametrize("model", MODELS)
def test_a_dense_ticket_repeats_the_metrics_of_round_0(tmp_path, model, rewind_step):
    options = OPTIONS["validate often"]
    play(tmp_path, model=MODELS[model], schedule=lambda n: 1.0, rewind_step=rewind_step, options=options)
    assert_same_state(final(tmp_path, "round-00"), final(tmp_path, "round-01"))
    first, second = records_without_time(tmp_path)
    for key in first.keys() - {"round"}:
        assert first[key] == second[key] or key.startswith("early_stop"), key
