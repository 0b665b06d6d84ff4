"""The contract of every change of a weight, and whole runs that start from changed weights."""

import inspect
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_lottery import first_steps
from tiny import Tiny, play

from lt_lightning import changes, controls, rewinds
from lt_lightning.changes import Weight, kept_signs, noisy, shuffled, signed_constant
from lt_lightning.disk.rundir import MARK, Checkpoint
from lt_lightning.exchange.ticketfile import read
from lt_lightning.records import read_records
from lt_lightning.seeding import generator

CHANGES = [signed_constant, kept_signs, shuffled, partial(noisy, sigma=0.5)]


@st.composite
def weights(draw):
    draws = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    start, initial = (torch.randn(shape, generator=draws).to(dtype) for _ in range(2))
    return start, initial, torch.rand(shape, generator=draws) < 0.7


def changed(change, start, initial, mask, seed=0):
    return change(Weight(start, initial, mask, generator(seed)))


def test_the_contract_covers_every_change():
    written = {value.__name__ for value in vars(changes).values() if inspect.isfunction(value)}
    ours = {name for name in written if name[0] != "_" and name not in ("require_sigma", "dataclass")}
    assert ours == {getattr(change, "func", change).__name__ for change in CHANGES}


@pytest.mark.parametrize("change", CHANGES)
@given(given=weights())
def test_a_change_keeps_shape_and_type_modifies_nothing_and_is_a_function_of_its_draws(change, given):
    before = [tensor.clone() for tensor in given]
    result = changed(change, *given)
    assert (result.shape, result.dtype) == (given[0].shape, given[0].dtype)
    assert torch.equal(result, changed(change, *given))
    result.fill_(7)
    assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))


@pytest.mark.parametrize("change", [signed_constant, kept_signs])
@given(given=weights())
def test_signs_are_kept(change, given):
    start, initial, _ = given
    result = changed(change, *given)
    same = (result.sign() == start.sign()) | (result == 0)
    assert same.all()
    if change is kept_signs:
        assert torch.equal(result.abs().flatten().sort().values, initial.abs().flatten().sort().values)


def test_a_signed_constant_is_the_deviation_at_step_0():
    start, initial = torch.tensor([0.1, -9.0, 0.0, 2.0]), torch.tensor([2.0, 4.0, 6.0, 8.0])
    assert changed(signed_constant, start, initial, None).tolist() == pytest.approx([5**0.5, -(5**0.5), 0.0, 5**0.5])


@given(given=weights())
def test_what_is_shuffled_stays_within_the_mask(given):
    start, _, mask = given
    result = changed(shuffled, *given)
    assert torch.equal(result[~mask], start[~mask])
    assert torch.equal(result[mask].sort().values, start[mask].sort().values)


def test_noise_is_in_units_of_the_deviation_at_step_0():
    start, initial = torch.full((200, 200), 3.0), torch.randn(200, 200) * 4
    added = changed(partial(noisy, sigma=0.5), start, initial, None) - start
    assert float(added.std()) == pytest.approx(2.0, rel=0.03)
    assert float(added.mean()) == pytest.approx(0.0, abs=0.05)
    twice = changed(partial(noisy, sigma=1.0), start, initial, None) - start
    assert torch.allclose(twice, 2 * added, atol=1e-5)


# Whole runs

ARMS = {
    "signed_constant": (controls.signed_constant, rewinds.signed_constant),
    "kept_signs": (controls.kept_signs, rewinds.keep_signs),
    "shuffled_weights": (controls.shuffled_weights, rewinds.shuffle_weights),
    "noise_0.5": (controls.noise(0.5), rewinds.noise(0.5)),
}


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """A run with all of them as controls, rewound to step 7 of round 0."""
    directory = tmp_path_factory.mktemp("beside")
    play(directory, controls=[control for control, _ in ARMS.values()], rewind_step=7, test=False)
    return directory


@pytest.mark.parametrize("arm", ARMS)
def test_a_control_starts_from_the_rewind_point_with_other_prunable_weights_and_nothing_else(beside, arm):
    point = Checkpoint(beside / "rewind.ckpt")
    start = Checkpoint(beside / "round-01" / arm / "start.ckpt")
    ticket, control = (read(beside / "round-01" / d / "ticket.safetensors", state=True) for d in ("", arm))
    assert control.start == "file"
    assert all(torch.equal(ticket.masks[name], control.masks[name]) for name in ticket.masks)
    assert set(start) == set(point)
    for name, value in point["state_dict"].items():
        assert torch.equal(start["state_dict"][name], value) == (name not in ticket.masks), name
        assert torch.equal(control.state[name], start["state_dict"][name])
    for key in set(point) - {"state_dict", "callbacks", "optimizer_states", MARK}:
        assert start[key] == point[key]
    moments = point["optimizer_states"][0]["state"][0], start["optimizer_states"][0]["state"][0]
    assert all(torch.equal(moments[0][key], moments[1][key]) for key in moments[0])
    assert [row["steps"] for row in read_records(beside / "records.csv")] == [15] * 6


@pytest.mark.parametrize("arm", ["kept_signs", "noise_0.5"])
def test_a_rewind_starts_where_its_control_does(beside, tmp_path, arm):
    play(tmp_path, rewind=ARMS[arm][1], rewind_step=7, test=False)
    one, other = (
        read(d / "ticket.safetensors", state=True) for d in (beside / "round-01" / arm, tmp_path / "round-01")
    )
    assert all(torch.equal(value, other.state[name]) for name, value in one.state.items())
    final = [Checkpoint(d / "final.ckpt")["state_dict"] for d in (beside / "round-01" / arm, tmp_path / "round-01")]
    assert all(torch.equal(value, final[1][name]) for name, value in final[0].items())


def test_a_control_that_is_killed_goes_on_with_the_same_bits(beside, tmp_path):
    class Killed(Exception):
        pass

    class Kill(Tiny):
        def on_train_batch_start(self, batch, index):
            if armed and (self.trainer.default_root_dir, self.global_step) == (
                str(tmp_path / "round-01/noise_0.5"),
                12,
            ):
                raise Killed

    armed = True
    arguments = {"controls": [control for control, _ in ARMS.values()], "rewind_step": 7, "test": False, "model": Kill}
    with pytest.raises(Killed):
        play(tmp_path, **arguments)
    armed = False
    play(tmp_path, **arguments)
    for arm in ARMS:
        for file in ("final.ckpt", "start.ckpt"):
            one, other = (Checkpoint(d / "round-01" / arm / file)["state_dict"] for d in (beside, tmp_path))
            assert all(torch.equal(one[name], other[name]) for name in one)


def test_another_step_is_another_start_and_nothing_else(tmp_path):
    spies, models = first_steps(tmp_path, controls=["at_step(0)"], rewind_step=7)
    ticket, control = (read(tmp_path / "round-01" / d / "ticket.safetensors", state=True) for d in ("", "at_step_0"))
    assert all(torch.equal(ticket.masks[name], control.masks[name]) for name in ticket.masks)
    step_0 = Checkpoint(tmp_path / "points" / "step-0.ckpt")["state_dict"]
    assert all(torch.equal(control.state[name], value) for name, value in step_0.items())
    assert (spies["round-01"].step, spies["round-01/at_step_0"].step) == (7, 0)
    assert models["round-01/at_step_0"].seen == models["round-00"].seen


def test_round_0_saves_the_step_that_a_control_starts_from(tmp_path):
    play(tmp_path, controls=["at_step(5)"], rewind_step=7, test=False)
    assert Checkpoint(tmp_path / "points" / "step-5.ckpt")["global_step"] == 5


def test_a_step_that_was_not_saved_is_told_with_those_that_were(tmp_path):
    play(tmp_path, rewind_step=7, test=False)
    with pytest.raises(FileNotFoundError, match=r"is not there: round 0 has saved steps \[0, 7\], as it was trained"):
        play(tmp_path, controls=["at_step(5)"], rewind_step=7, test=False)


def test_tied_weights_change_together(tmp_path):
    class Tied(Tiny):
        def __init__(self):
            super().__init__()
            self.again = self.hidden

    play(tmp_path, model=Tied, controls=["signed_constant"], test=False)
    start = Checkpoint(tmp_path / "round-01" / "signed_constant" / "start.ckpt")["state_dict"]
    assert torch.equal(start["hidden.weight"], start["again.weight"])
    assert len(start["hidden.weight"].abs().unique()) == 1


def test_averaged_weights_change_too(tmp_path):
    from lightning.pytorch.callbacks import EMAWeightAveraging

    callbacks = {"make_callbacks": lambda: [EMAWeightAveraging(decay=0.9)]}
    play(tmp_path, controls=["signed_constant"], rewind_step=7, test=False, **callbacks)
    start = Checkpoint(tmp_path / "round-01" / "signed_constant" / "start.ckpt")
    for key in ("state_dict", "current_model_state"):
        assert len(start[key]["hidden.weight"].abs().unique()) == 1


def test_checkpoints_in_parts_are_refused():
    from lt_lightning.pruning import in_parts

    assert in_parts("the control noise_0.5") == (
        "the control noise_0.5 changes the weights that a round starts from, which is not possible where checkpoints "
        'lie in parts: train under strategy="ddp" or on one device.'
    )
