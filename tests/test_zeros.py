"""Pruned weights are zero in every forward pass, whoever writes them; where that cannot be, the fit raises an error."""

import copy
from pathlib import Path

import hands_on
import lightning as L
import pytest
import torch
from hands_on import NORM, WRITERS, Functional, InFit, Plain, Uncounted, watched
from tiny import loaders, trainer
from torch import nn

from lt_lightning import cubically, lottery, one_shot
from lt_lightning.disk.rundir import Checkpoint, RunDirectory
from lt_lightning.exchange.ticketfile import read
from lt_lightning.fit.enforcement import Enforcement
from lt_lightning.records import read_records


@pytest.mark.parametrize("name", WRITERS)
def test_no_forward_pass_sees_a_pruned_weight_whoever_writes_it(tmp_path, name):
    model, callbacks = WRITERS[name]
    watch, ticket = watched(tmp_path, model, callbacks)
    assert (watch.largest, watch.calls > 20) == (0.0, True)
    final = Checkpoint(RunDirectory(tmp_path).arm(1).final)["state_dict"]
    for name, mask in ticket.masks.items():
        assert not final[name][~mask].any()
        assert final[name].isfinite().all()


@pytest.mark.parametrize(
    ("model", "weight", "where"),
    [
        (Uncounted, "hidden.weight", r"0\.01 in a forward pass"),
        (InFit, "hidden.weight", r"0\.5 at a validation"),
        (Functional, "hidden.weight", r"0\.0\d+ (at|before|in) "),
        (hands_on.NowAndThen, "hidden.weight", r"0\.02 in a forward pass"),
        (hands_on.WithWrapper, "hidden.weight", r"0\.\d+ (in|at) "),
        (hands_on.Averages, "hidden.weight", r"0\.\d+ in a forward pass"),
        (hands_on.FunctionalInStep, "hidden.weight", r"0\.05 in a training step"),
    ],
)
def test_a_write_that_cannot_be_undone_in_time_ends_the_first_epoch_with_an_error(tmp_path, model, weight, where):
    with pytest.raises(RuntimeError, match=rf"^{weight} holds a pruned weight of {where}.*weight\.copy_") as raised:
        watched(tmp_path, model)
    assert f'prunable=["!{weight}"]' in str(raised.value)
    run = RunDirectory(tmp_path)
    assert not run.arm(1).done.exists()
    assert [row["round"] for row in read_records(run.records)] == [0]
    assert run.arm(0).done.exists()


def test_the_norm_that_manual_optimization_clips_to_is_that_of_usable_gradients(tmp_path):
    class Noted(hands_on.ByHand):
        def clip(self, optimizer):
            super().clip(optimizer)
            held = [each.grad for each in self.parameters()]
            self.norms.append(float(torch.stack([each.norm() for each in held]).norm()))
            self.unusable = [float(self.get_parameter(name).grad[~mask].abs().max()) for name, mask in self.masks]

    for ticket in lottery(Noted, rounds=1, schedule=one_shot(0.2), directory=tmp_path, monitor=None):
        ticket.model.masks = [(name, mask) for name, mask in ticket.masks.items() if not mask.all()]
        trainer(ticket, max_epochs=2).fit(ticket.model, *loaders(shuffle=False), ckpt_path=ticket.ckpt_path)
    assert ticket.model.norms == pytest.approx([NORM] * 10, rel=1e-4)
    assert ticket.model.unusable == [0.0, 0.0]


def test_hooks_of_parameters_see_masked_gradients(tmp_path):
    """As `wandb.watch` sets them."""
    seen = []

    class Watched(Plain):
        def on_fit_start(self):
            self.hidden.weight.register_hook(lambda gradient: seen.append(gradient.clone()))

    _, ticket = watched(tmp_path, Watched)
    assert len(seen) == 20
    assert not any(gradient[~ticket.masks["hidden.weight"]].any() for gradient in seen[10:])
    assert all(gradient.any() for gradient in seen)


def test_steps_within_the_backward_pass_see_masked_gradients(tmp_path):
    """As for saving memory: each parameter has an optimizer of its own, called as soon as its gradient is there."""

    class Within(Plain):
        def __init__(self):
            super().__init__(automatic=False)
            self.own = {each: torch.optim.SGD([each], 0.1) for each in self.parameters()}
            for each in self.parameters():
                each.register_post_accumulate_grad_hook(self.step)
            self.norms = []

        def step(self, parameter):
            if parameter is self.hidden.weight:
                self.norms.append(parameter.grad.clone())
            self.own[parameter].step()
            parameter.grad = None

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)  # for its state, which is empty

        def training_step(self, batch, index):
            self.manual_backward(self.loss(batch))

        def __deepcopy__(self, memo):
            return self

    _, ticket = watched(tmp_path, Within)
    assert len(ticket.model.norms) == 10
    assert not any(gradient[~ticket.masks["hidden.weight"]].any() for gradient in ticket.model.norms)


def outputs(module):
    with torch.no_grad():
        return module.eval()(loaders()[1].dataset.tensors[0])


@pytest.mark.parametrize("own", [True, False], ids=["by the ticket's Trainer", "by another Trainer"])
@pytest.mark.parametrize("way", ["validate", "test", "predict"])
def test_evaluations_see_the_ticket_also_before_its_fit(tmp_path, own, way):
    class Predicts(Plain):
        def predict_step(self, batch, index):
            return self(batch[0])

    for ticket in lottery(Predicts, rounds=1, schedule=one_shot(0.4), directory=tmp_path, monitor=None):
        expected = copy.deepcopy(ticket.model)
        if ticket.ckpt_path:
            expected.load_state_dict(Checkpoint(Path(ticket.ckpt_path))["state_dict"])
        for name, mask in ticket.masks.items():
            expected.get_parameter(name).data.mul_(mask)
        other = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        before = trainer(ticket) if own else L.Trainer(**other, enable_model_summary=False)
        quiet = {} if way == "predict" else {"verbose": False}
        found = getattr(before, way)(ticket.model, loaders()[1], ckpt_path=ticket.ckpt_path, **quiet)
        if way == "predict":
            assert torch.equal(torch.cat(found), outputs(expected))
        assert torch.equal(outputs(ticket.model), outputs(expected))
        trainer(ticket).fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)


def test_weights_that_a_start_writes_are_those_of_the_file_and_of_the_training(tmp_path):
    """Also where every start writes others: later fits train what their checkpoint holds."""
    first = {}

    class Halves(Plain):
        def on_train_start(self):
            with torch.no_grad():
                self.hidden.weight.mul_(0.5)

        def training_step(self, batch, index):
            if self.global_step == 0:
                first[len(first)] = self.hidden.weight.detach().clone()
            return super().training_step(batch, index)

    watched(tmp_path, Halves)
    run = RunDirectory(tmp_path)
    point = Checkpoint(run.point(0))["state_dict"]["hidden.weight"]
    masks = read(run.arm(1).ticket).masks
    assert torch.equal(first[0], point)
    assert torch.equal(first[1], point * masks["hidden.weight"])


def test_a_layer_that_is_called_twice_before_the_backward_pass_is_left_alone(tmp_path):
    class Twice(Plain):
        def training_step(self, batch, index):
            loss = self.loss(batch)
            return loss + self.loss(batch)

    watch, _ = watched(tmp_path, Twice)
    assert watch.largest == 0.0


def test_masks_of_weights_that_are_not_numbers_and_below_zero_give_plus_zero():
    weight = nn.Parameter(torch.tensor([float("nan"), -1.0, 2.0, float("inf")]))
    mask = torch.tensor([False, False, True, False])
    for kind in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64):
        held = nn.Parameter(weight.detach().to(kind))
        Enforcement({"w": mask}, {"w": held}).mask_weights()
        assert held.tolist() == [0.0, 0.0, 2.0, 0.0]
        assert kind.is_complex or not torch.signbit(held).any()


def test_a_plain_layer_beside_a_compiled_one_is_checked(tmp_path):
    torch._dynamo.reset()
    watch, _ = watched(tmp_path, hands_on.BesideCompiled)
    assert watch.largest == 0.0


def test_weights_that_a_module_saves_in_the_place_of_its_own_are_masked(tmp_path):
    _, ticket = watched(tmp_path, hands_on.SavesAverages)
    final = Checkpoint(RunDirectory(tmp_path).arm(1).final)["state_dict"]["hidden.weight"]
    assert torch.equal(final, ticket.masks["hidden.weight"].float())


@pytest.mark.parametrize("model", [hands_on.AssignsScaled, hands_on.LateHook])
def test_gradients_are_masked_before_they_are_scaled(tmp_path, model):
    _, ticket = watched(tmp_path, model)
    assert len(ticket.model.usable) >= 8
    assert ticket.model.usable == pytest.approx([NORM] * len(ticket.model.usable), rel=1e-4)


def test_a_callback_that_reads_gradients_through_a_function_sees_them_masked(tmp_path):
    reader = hands_on.Reader()
    _, ticket = watched(tmp_path, Plain, [reader])
    assert not reader.gradient[~ticket.masks["hidden.weight"]].any()
    assert reader.gradient.any()


def test_a_test_whose_hook_puts_other_weights_in_is_not_recorded_as_the_end(tmp_path):
    class Swaps(Plain):
        def on_test_start(self):
            with torch.no_grad():
                self.hidden.weight.fill_(0.5)

    for ticket in lottery(Swaps, rounds=1, schedule=one_shot(0.4), directory=tmp_path, monitor=None):
        fit = trainer(ticket, max_epochs=1)
        fit.fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
        if ticket.round == 1:
            with pytest.warns(UserWarning, match="is not recorded"):
                fit.test(ticket.model, loaders()[1], verbose=False)
            assert not ticket.model.hidden.weight[~ticket.masks["hidden.weight"]].any()
    assert not any(name.startswith("test/") for name in read_records(RunDirectory(tmp_path).records)[-1])


def test_a_hook_may_write_weights_while_masks_tighten_and_after_a_late_rewind_point(tmp_path):
    arguments = {"rounds": 1, "schedule": one_shot(0.4), "monitor": None}
    for name, more in {"tightening": {"gradual": cubically(end=0.6)}, "late": {"rewind_step": 7}}.items():
        for ticket in lottery(hands_on.RowMeans, directory=tmp_path / name, **arguments, **more):
            trainer(ticket, max_epochs=3).fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
        assert ticket.density == 53 / 132


def test_the_first_steps_after_a_late_rewind_point_are_looked_at(tmp_path):
    class Late(Plain):
        def on_train_batch_start(self, batch, index):
            if self.global_step == 8:
                self.hidden.weight.data.add_(0.02)

    with pytest.raises(RuntimeError, match=r"hidden\.weight holds a pruned weight of 0\.02 in a forward pass"):
        watched(tmp_path, Late, rewind_step=7)


def test_gradients_are_masked_for_code_within_a_decorator(tmp_path):
    class Decorated(Plain):
        @torch.no_grad()
        def on_train_batch_end(self, *_):
            self.last = self.hidden.weight.grad.clone()

    _, ticket = watched(tmp_path, Decorated)
    assert not ticket.model.last[~ticket.masks["hidden.weight"]].any()
    assert ticket.model.last.any()
