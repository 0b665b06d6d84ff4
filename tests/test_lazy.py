"""Lazy layers: their shapes are known before round 0, and all rounds start from the same numbers."""

import re

import lightning as L
import pytest
import torch
from tiny import Tiny, loaders, play, trainer
from torch import nn

from lt_lightning import lottery
from lt_lightning.disk.rundir import Checkpoint
from lt_lightning.fit.lazy import materialise

pytestmark = pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")


class Lazy(Tiny):
    """The tiny network, less what it can find out for itself."""

    def __init__(self, example=True):
        super().__init__()
        self.hidden, self.norm, self.output = nn.LazyLinear(12), nn.LazyBatchNorm1d(), nn.LazyLinear(3)
        if example:
            self.example_input_array = torch.ones(1, 8)


def weights(directory, name="final.ckpt"):
    return Checkpoint(directory / "round-01" / name)["state_dict"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_lottery_of_lazy_layers_and_the_same_bits_after_an_interruption(tmp_path):
    play(tmp_path / "whole", model=Lazy, controls=["reinit"])
    ticket = next(lottery(Lazy, rounds=1, directory=tmp_path / "parts", controls=["reinit"]))
    with pytest.raises(InterruptedError):
        trainer(ticket, [Stop()]).fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
    play(tmp_path / "parts", model=Lazy, controls=["reinit"])
    for name in ("final.ckpt", "reinit/final.ckpt"):
        assert equal(weights(tmp_path / "whole", name), weights(tmp_path / "parts", name))
    assert int((weights(tmp_path / "whole")["hidden.weight"] == 0).sum()) > 0


class Stop(L.Callback):
    def on_train_epoch_start(self, fit, module):
        if fit.current_epoch == 1:
            raise InterruptedError


def test_an_instance_may_be_lazy_too(tmp_path):
    play(tmp_path, model=Lazy(), rounds=1)
    assert (tmp_path / "round-01" / "done").exists()


@pytest.mark.parametrize(
    "example", [torch.ones(1, 8), (torch.ones(1, 8),), {"x": torch.ones(1, 8)}], ids=["tensor", "tuple", "names"]
)
def test_the_example_gives_shapes_and_touches_no_statistics(example):
    module = Lazy()
    module.example_input_array = example
    module.drop.eval()
    materialise(module)
    assert (module.hidden.weight.shape, module.output.weight.shape) == ((12, 8), (3, 12))
    assert not module.norm.running_mean.any()
    assert int(module.norm.num_batches_tracked) == 0
    assert (module.training, module.norm.training, module.drop.training) == (True, True, False)


def test_a_module_with_shapes_is_not_run():
    module = Tiny()
    module.forward = None
    materialise(module)


ADVICE = (
    "Add self.example_input_array = torch.zeros(1, ...) with the shape of an input to its __init__, or call the module "
    "once in the function that makes it."
)


def test_without_an_example_it_says_which_line_to_add(tmp_path):
    message = (
        "hidden.weight and 7 more of Lazy has no shape yet, so it cannot be pruned: the module has lazy layers and "
        f"no example_input_array. {ADVICE}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        next(lottery(lambda: Lazy(example=False), rounds=1, directory=tmp_path))


def test_an_example_that_does_not_reach_a_layer_is_not_enough():
    module = Lazy()
    module.unused = nn.LazyLinear(2, bias=False)
    message = (
        "unused.weight of Lazy has no shape yet, so it cannot be pruned: the module has lazy layers and an example "
        f"that does not reach it. {ADVICE}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        materialise(module)


def test_a_module_that_was_called_when_it_was_made_needs_no_example(tmp_path):
    def make():
        module = Lazy(example=False)
        module(torch.ones(2, 8))
        return module

    assert next(lottery(make, rounds=1, directory=tmp_path)).masks["hidden.weight"].shape == (12, 8)
