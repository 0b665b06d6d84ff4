"""Fits on sparse kernels against masked dense ones: results, checkpoints, restarts, and what is refused."""

import json
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from sampling import few
from tiny import Tiny, loaders, play, trainer
from torch import nn, optim

from lt_lightning import geometric, layerwise, lottery, sparse
from lt_lightning.disk.atomic import remove
from lt_lightning.disk.rundir import Checkpoint, RunDirectory
from lt_lightning.exchange.ticketfile import load_ticket
from lt_lightning.fit.replaced import Replaced
from lt_lightning.records import read_records

CLOSE = 1e-7
"""In double precision, over a whole run of a few dozen steps: weights, optimizer states and metrics, as share and as
difference. Adam and its like divide by the size of gradients, so that of small ones rounding is a larger share."""


momentum = partial(optim.SGD, momentum=0.9, weight_decay=0.01)


class Deep(Tiny):
    """A convolution and three linear layers, with all that Tiny has."""

    def __init__(self, optimizer=momentum, **options):
        super().__init__(optimizer, **options)
        self.conv = nn.Conv2d(1, 3, 2, stride=(2, 1), padding=1)
        self.wide = nn.Linear(27, 16)
        self.hidden = nn.Linear(16, 12, bias=False)  # before a batch norm its gradient would be rounding alone

    def forward(self, x):
        x = torch.relu(self.conv(x.view(-1, 1, 2, 4)))
        x = nn.functional.relu(self.wide(nn.functional.pad(x.flatten(1), (0, 27 - x[0].numel()))), inplace=True)
        return super().forward(x)


class Grouped(Deep):
    """Two groups of parameters, and two optimizers that are stepped by hand."""

    def __init__(self, **options):
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        for each in self.optimizers():
            each.zero_grad()
        self.manual_backward(loss)
        for each in self.optimizers():
            each.step()

    def configure_optimizers(self):
        one = [{"params": self.wide.parameters(), "lr": 0.02}, {"params": self.conv.parameters()}]
        others = [*self.hidden.parameters(), *self.norm.parameters(), *self.output.parameters()]
        return [optim.SGD(one, lr=0.05, momentum=0.9), optim.Adam(others, lr=0.01)], []


def run(directory, sparse, model=Deep, rounds=2, **arguments):
    settings = {"options": {"precision": "64-true"}, "schedule": geometric(0.5), "scope": layerwise} | arguments
    return play(directory, model=model, rounds=rounds, sparse=sparse, keep_last=True, **settings)


def assert_close(one, other, where="", bound=CLOSE):
    """Compares nested values: tensors and floats up to rounding, all else exactly."""
    if isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_close(one[key], other[key], f"{where}.{key}", bound)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, f"{where}.{number}", bound)
    elif isinstance(one, torch.Tensor) and one.is_floating_point():
        torch.testing.assert_close(one, other, rtol=bound, atol=bound, msg=lambda text: f"{where}: {text}")
    elif isinstance(one, torch.Tensor):
        assert one.equal(other), where
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=bound, abs=bound), where
    else:
        assert one == other, where


def assert_same_run(one, other, bound=CLOSE):
    one, other = RunDirectory(one), RunDirectory(other)
    rows = [read_records(each.records) for each in (one, other)]
    for row in (*rows[0], *rows[1]):
        row.pop("seconds")
    assert_close(*rows, bound=bound)
    for round in {row["round"] for row in rows[0]}:
        for name in ("last", "early_stop", "final"):
            contents = [dict(Checkpoint(getattr(each.arm(round), name))) for each in (one, other)]
            for content in contents:
                content.pop("callbacks", None)
            assert_close(*contents, f"{round}.{name}", bound)
        tickets = [load_ticket(each.arm(round).ticket) for each in (one, other)]
        assert all(tickets[0].masks[name].equal(mask) for name, mask in tickets[1].masks.items())


def chosen(directory, round=1):
    layers = json.loads(RunDirectory(directory).arm(round).sparse.read_text())["layers"]
    return {name for name, choice in layers.items() if choice["sparse"]}


@pytest.mark.parametrize("kind", few(sparse.ELEMENTWISE, 0, 2))
def test_a_whole_run_is_that_of_masked_dense_layers_with_any_elementwise_optimizer(tmp_path, kind):
    model = partial(Deep, optimizer=kind)
    run(tmp_path / "dense", "off", model)
    run(tmp_path / "sparse", 1.0, model)
    assert chosen(tmp_path / "sparse") == {"conv.weight", "wide.weight", "hidden.weight", "output.weight"}
    assert not RunDirectory(tmp_path / "dense").arm(1).sparse.exists()
    assert_same_run(tmp_path / "dense", tmp_path / "sparse")


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip_val": 0.1},
        {"accumulate_grad_batches": 2},
        {"val_check_interval": 1, "max_steps": 7, "max_epochs": -1},
        {"inference_mode": False},
    ],
    ids=str,
)
def test_a_whole_run_is_that_of_masked_dense_layers_however_it_trains(tmp_path, options):
    for name, asked in (("dense", "off"), ("sparse", 1.0)):
        run(tmp_path / name, asked, options={"precision": "64-true"} | options, rewind_step=2, controls=["reinit"])
    assert_same_run(tmp_path / "dense", tmp_path / "sparse")


def test_manual_optimization_with_groups_and_several_optimizers(tmp_path):
    run(tmp_path / "dense", "off", Grouped)
    run(tmp_path / "sparse", 1.0, Grouped)
    assert_same_run(tmp_path / "dense", tmp_path / "sparse")


def test_in_single_precision_a_whole_run_differs_by_rounding(tmp_path):
    run(tmp_path / "dense", "off", options={})
    run(tmp_path / "sparse", 1.0, options={})
    assert_same_run(tmp_path / "dense", tmp_path / "sparse", bound=1e-4)


def test_it_may_be_switched_at_any_round_and_within_one(tmp_path):
    run(tmp_path / "dense", "off", rounds=3)
    run(tmp_path / "switched", "off", rounds=1)
    with pytest.raises(Stop):
        run(tmp_path / "switched", 1.0, rounds=3, make_callbacks=lambda: [StopAt(12)])
    assert chosen(tmp_path / "switched", 2)
    run(tmp_path / "switched", "off", rounds=2)
    run(tmp_path / "switched", 0.3, rounds=3)
    assert_same_run(tmp_path / "dense", tmp_path / "switched")


class Stop(Exception):
    pass


class StopAt(L.Callback):
    """Ends a pruned round at a step, as if the program crashed."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, *_):
        if trainer.global_step == self.step and module.conv.weight.dim() == 1:
            raise Stop


@pytest.mark.parametrize("step", few([1, 4, 5, 7, 14], 3))
@pytest.mark.parametrize("every", ["1 epoch", "3 steps"])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, step, every):
    run(tmp_path / "whole", 1.0, rounds=1, options={}, every=every)
    with pytest.raises(Stop):
        run(tmp_path / "again", 1.0, rounds=1, options={}, every=every, make_callbacks=lambda: [StopAt(step)])
    run(tmp_path / "again", 1.0, rounds=1, options={}, every=every)
    assert_same_run(tmp_path / "whole", tmp_path / "again", bound=0.0)


@pytest.mark.parametrize("step", [1, 7])
def test_a_restarted_fit_chooses_what_was_written(tmp_path, step, monkeypatch):
    def measured(faster, layer, mask, seen):
        return (1.0, 0.5) if tuple(layer.weight.shape) in faster else (1.0, 2.0)

    monkeypatch.setattr(sparse, "measure", partial(measured, ((3, 1, 2, 2), (16, 27))))
    with pytest.raises(Stop):
        run(tmp_path, "auto", rounds=1, make_callbacks=lambda: [StopAt(step)])
    assert chosen(tmp_path) == {"conv.weight", "wide.weight"}
    before = RunDirectory(tmp_path).arm(1).sparse.read_bytes()
    monkeypatch.setattr(sparse, "measure", partial(measured, ((12, 16),)))
    kinds = {}
    run(tmp_path, "auto", rounds=1, make_callbacks=lambda: [Look(kinds)])
    assert RunDirectory(tmp_path).arm(1).sparse.read_bytes() == before
    assert kinds == {"conv": 1, "wide": 1, "hidden": 2, "output": 2}


class Look(L.Callback):
    """Notes the dimensions of the weights at the last step."""

    def __init__(self, kinds):
        self.kinds = kinds

    def on_train_batch_end(self, trainer, module, *_):
        layers = ("conv", "wide", "hidden", "output")
        self.kinds |= {name: getattr(module, name).weight.dim() for name in layers if name != "conv"}
        self.kinds["conv"] = module.conv.weight.dim()


@pytest.mark.parametrize("damage", [lambda path: path.write_text("{"), lambda path: flip(path), remove])
def test_a_choice_that_is_damaged_or_lost_is_made_anew(tmp_path, damage):
    with pytest.raises(Stop):
        run(tmp_path / "sparse", 1.0, rounds=1, make_callbacks=lambda: [StopAt(7)])
    damage(RunDirectory(tmp_path / "sparse").arm(1).sparse)
    run(tmp_path / "sparse", 1.0, rounds=1)
    run(tmp_path / "dense", "off", rounds=1)
    assert len(chosen(tmp_path / "sparse")) == 4
    assert_same_run(tmp_path / "dense", tmp_path / "sparse")


def flip(path):
    path.write_text(path.read_text().replace("true", "false", 1))


def test_a_density_chooses_the_layers_that_are_no_denser(tmp_path):
    run(tmp_path, 0.25, rounds=1, schedule=lambda round: {"wide*": 0.25, "*": 0.5} if round else 1.0)
    assert chosen(tmp_path) == {"wide.weight"}


def test_auto_measures_each_layer_and_writes_it_down(tmp_path):
    run(tmp_path, "auto", rounds=1)
    content = json.loads(RunDirectory(tmp_path).arm(1).sparse.read_text())
    assert content["sparse"] == "auto"
    for choice in content["layers"].values():
        assert choice["why"] == "measured"
        assert choice["sparse"] == (choice["sparse_seconds"] < 0.9 * choice["dense_seconds"])
        assert 0 < choice["density"] < 1


def test_the_measure_finds_that_few_weights_of_a_large_layer_are_faster_and_all_of_a_small_one_slower():
    large, small = nn.Linear(800, 800), nn.Linear(4, 4)
    mask = torch.rand(800, 800, generator=torch.Generator().manual_seed(0)) < 0.01
    seen = sparse._Seen(torch.Size([64, 800]), True)
    state = torch.get_rng_state()
    dense, quick = sparse.measure(large, mask, seen)
    assert quick < dense / 2
    dense, quick = sparse.measure(small, torch.ones(4, 4).bool(), sparse._Seen(torch.Size([8, 4]), False))
    assert quick > dense
    assert state.equal(torch.get_rng_state())
    assert large.weight.grad is None


class Unusual(Deep):
    def __init__(self):
        super().__init__(optimizer=optim.SGD)
        self.tied = nn.Linear(12, 3)
        self.tied.weight = self.output.weight
        self.attention = nn.MultiheadAttention(4, 1)
        self.grouped = nn.Conv2d(2, 2, 1, groups=2)
        self.same = nn.Conv2d(1, 1, 3, padding="same")
        self.unused = nn.Linear(3, 3)
        self.own = nn.Linear(3, 3)
        self.own.forward = partial(nn.Linear.forward, self.own)
        self.bilinear = nn.Bilinear(2, 2, 2)


def test_what_cannot_run_on_sparse_kernels_stays_dense_and_says_why(tmp_path):
    run(tmp_path, "auto", Unusual, rounds=1, options={})
    layers = json.loads(RunDirectory(tmp_path).arm(1).sparse.read_text())["layers"]
    plain = "sparse kernels are for the weights of plain Linear and Conv2d layers"
    assert {name: choice["why"] for name, choice in layers.items() if choice["why"] != "measured"} == {
        "output.weight": "its weight is tied",
        "attention.in_proj_weight": f"MultiheadAttention: {plain}",
        "attention.out_proj.weight": f"NonDynamicallyQuantizableLinear: {plain}",
        "grouped.weight": "a convolution with groups, dilation or another padding than zeros",
        "same.weight": 'padding="same"',
        "unused.weight": "not called in the first step",
        "own.weight": "its forward was replaced",
        "bilinear.weight": f"Bilinear: {plain}",
    }


def test_layers_of_torchs_own_transformer_and_frozen_ones_stay_dense():
    module = nn.Sequential(nn.TransformerEncoderLayer(4, 1, 4), nn.Linear(4, 4))
    masks = {name: torch.eye(4).bool() for name in ("0.linear1.weight", "1.weight")}
    found = dict(sparse._candidates(module, masks, []))
    assert found["0.linear1.weight"] == "a part of torch's own attention, which reads its weight elsewhere"
    assert found["1.weight"] == "no optimizer holds its weight"


def replaced(optimizer=optim.Adam):
    """A layer of two kept weights that has taken a dense step, its optimizer, and what replaces it."""
    layer = nn.Linear(2, 2)
    layer.weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    made = optimizer(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 2)).sum().backward()
    layer.weight.grad.mul_(torch.eye(2))
    made.step()
    return layer, made, lambda: Replaced(layer, torch.eye(2).bool(), [made])


def test_the_optimizer_holds_state_for_kept_weights_alone():
    layer, optimizer, replace = replaced()
    dense, before = layer.weight, optimizer.state[layer.weight]["exp_avg"].clone()
    replacement = replace()
    assert layer.weight.shape == (2,)
    assert optimizer.param_groups[0]["params"][0] is layer.weight
    assert optimizer.state[layer.weight]["exp_avg"].equal(before.diagonal())
    assert dense not in optimizer.state
    assert dense.numel() == 0
    replacement.restore()
    assert layer.weight is dense
    assert optimizer.state[dense]["exp_avg"].equal(before)
    assert "forward" not in vars(layer)
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_states_are_saved_and_loaded_dense():
    layer, optimizer, replace = replaced()
    before = layer.state_dict()["weight"].clone(), optimizer.state_dict()["state"][0]["exp_avg"].clone()
    replace()
    saved = nn.Sequential(layer).state_dict(), optimizer.state_dict()
    assert saved[0]["0.weight"].equal(before[0])
    assert saved[1]["state"][0]["exp_avg"].equal(before[1])
    assert saved[1]["state"][0]["step"] == 1
    with torch.no_grad():
        layer.weight.zero_()
    optimizer.state[layer.weight]["exp_avg"].zero_()
    nn.Sequential(layer).load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    assert layer.weight.equal(before[0].diagonal())
    assert optimizer.state[layer.weight]["exp_avg"].equal(before[1].diagonal())


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.Conv2d(3, 2, 1)])
def test_a_dense_weight_in_a_functional_call_is_used_as_it_is(layer):
    dense = torch.randn(layer.weight.shape)
    inputs = torch.randn(4, 3, 1, 1) if isinstance(layer, nn.Conv2d) else torch.randn(4, 3)
    expected = torch.func.functional_call(layer, {"weight": dense}, inputs)
    Replaced(layer, torch.rand(layer.weight.shape) < 0.5, [])
    assert torch.func.functional_call(layer, {"weight": dense}, inputs).equal(expected)


def test_autocast_within_a_step_is_refused():
    layer, _, replace = replaced()
    replace()
    with torch.autocast("cpu"), pytest.raises(ValueError, match="not possible within torch"):
        layer(torch.ones(1, 2))


def test_checkpoints_of_others_are_dense(tmp_path):
    made = []

    def callbacks():
        made.append(ModelCheckpoint(every_n_train_steps=7, save_top_k=-1, dirpath=tmp_path / f"own-{len(made)}"))
        return [made[-1]]

    run(tmp_path / "run", 1.0, rounds=1, make_callbacks=callbacks, options={"enable_checkpointing": True})
    (path, *_) = (tmp_path / "own-1").glob("*step=7.ckpt")
    content = torch.load(path, weights_only=False)
    assert content["state_dict"]["wide.weight"].shape == (16, 27)
    assert content["optimizer_states"][0]["state"][5]["momentum_buffer"].shape == (3, 1, 2, 2)


def fails(tmp_path, match, model=Deep, make_callbacks=lambda: (), **options):
    with pytest.raises(ValueError, match=match):
        run(tmp_path, "auto", model, make_callbacks=make_callbacks, options=options)
    assert not list(tmp_path.glob("points/*"))


class Averaging(WeightAveraging):
    def should_update(self, step_idx=None, epoch_idx=None):
        return True


def test_what_cannot_be_is_refused_before_any_training(tmp_path):
    fails(tmp_path, "not possible with precision=bf16-mixed: the kernels know single", precision="bf16-mixed")
    for make in (Averaging, lambda: StochasticWeightAveraging(0.1)):
        fails(tmp_path, "Averaging: it averages dense weights", make_callbacks=lambda make=make: [make()])
    fails(tmp_path, "torch.compile: compiled layers", lambda: torch.compile(Deep(), backend="eager"))
    fails(tmp_path, "torch.compile: compiled layers", with_compiled_layer)
    fails(tmp_path, "LBFGS: it may look at several weights together", partial(Deep, optimizer=optim.LBFGS))
    fails(tmp_path, "Mine: it may look at several", partial(Deep, optimizer=type("Mine", (optim.SGD,), {})))


def with_compiled_layer():
    model = Deep()
    model.wide.compile(backend="eager")
    return model


def test_several_processes_are_refused(tmp_path):
    for ticket in lottery(Deep, rounds=1, directory=tmp_path, sparse="auto"):
        fit = trainer(ticket, strategy="ddp")
        with pytest.raises(ValueError, match="DDPStrategy on cpu: the kernels are exact"):
            sparse.check(fit, ticket.model, ticket.model)
        fit = trainer(ticket)
        fit.fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)


@pytest.mark.parametrize("value", [True, 0, 1.5, "on", float("nan"), [0.1]])
def test_a_value_that_cannot_be_is_refused_with_those_that_can(tmp_path, value):
    with pytest.raises(ValueError, match=r'sparse=.* must be "auto" .*, "off", or a density in \(0, 1\]'):
        lottery(Deep, rounds=1, directory=tmp_path, sparse=value)
