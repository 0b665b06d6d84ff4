"""The contract of every pace at which masks tighten, and whole runs that prune while they train."""

from functools import partial
from itertools import pairwise

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging, WeightAveraging
from sampling import few
from test_messages import Watched, refused
from tiny import STEPS_PER_EPOCH, Tiny, loaders, trainer

from lt_lightning import cubically, geometrically, gradual, linearly, lottery, movement, snip
from lt_lightning.disk.rundir import Checkpoint, RunDirectory
from lt_lightning.exchange.ticketfile import read
from lt_lightning.masks import density
from lt_lightning.plan import describe
from lt_lightning.records import read_curves, read_records

PACES = [cubically, linearly, geometrically]
PRUNABLE = 8 * 12 + 12 * 3
GRADUAL = {"rounds": 1, "density": 0.25, "dense": False, "gradual": cubically()}


def test_the_contract_covers_every_pace():
    ours = [value for name, value in vars(gradual).items() if name[0] != "_" and name.endswith("ly")]
    assert ours == PACES


@pytest.mark.parametrize("make", PACES)
@given(
    before=st.floats(0.01, 1),
    share=st.floats(0.01, 1),
    span=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda span: span[0] < span[1]),
)
def test_a_pace_falls_from_one_density_to_the_other_between_begin_and_end(make, before, share, span):
    begin, end = span
    pace, after = make(begin, end), before * share
    assert pace(begin, before, after) == pytest.approx(before)
    assert [pace(progress, before, after) for progress in (end, 1.0)] == [after, after]
    assert all(b <= a + 1e-12 for a, b in pairwise(pace(n / 20, before, after) for n in range(21)))
    gradual.check(pace, 1, before, after)


@pytest.mark.parametrize("make", PACES)
def test_a_pace_is_a_partial_of_a_module_function_so_that_it_can_be_compared(make):
    assert isinstance(make(), partial)
    told = describe(make(0.1))
    assert told == {"function": f"lt_lightning.gradual._{make.__name__}", "begin": 0.1, "end": 0.75}


@pytest.mark.parametrize("make", PACES)
@pytest.mark.parametrize("span", [(0.5, 0.5), (-0.1, 1), (0, 1.1), (0.9, 0.1), (0, float("nan"))])
def test_a_span_outside_the_fit_is_refused(make, span):
    with pytest.raises(ValueError, match=r"shares of the fit, between which weights are pruned: they need 0 <= begin"):
        make(*span)


def test_the_cubic_pace_is_the_papers_formula():
    assert cubically(0.2, 0.6)(0.3, 1.0, 0.1) == pytest.approx(0.1 + 0.9 * 0.75**3)


class Watch(L.Callback):
    """The masks at the end of every batch, and what the weights were under them at every validation."""

    def __init__(self, ticket):
        self.ticket, self.kept, self.masks, self.validated = ticket, [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.kept.append(kept(self.ticket.masks))
        self.masks.append(dict(self.ticket.masks))

    def on_validation_start(self, trainer, module):
        if not trainer.sanity_checking:
            self.validated.append(self.kept and kept(self.ticket.masks))
            parameters = dict(module.named_parameters())
            assert all(not parameters[name][~mask].any() for name, mask in self.ticket.masks.items())

    def on_train_batch_start(self, trainer, module, batch, index):
        parameters = dict(module.named_parameters())
        for name, mask in self.ticket.masks.items():
            assert not parameters[name][~mask].any()


def kept(masks):
    return sum(int(mask.sum()) for mask in masks.values())


def watched(directory, make_callbacks=lambda: (), stop=None, model=Tiny, options=None, **arguments):
    """Run a gradual lottery with a `Watch` of each fit; `stop` is a step at which the last fit is killed."""
    watches = []
    for ticket in lottery(model, directory=directory, **({"every": "1 epoch"} | GRADUAL | arguments)):
        watch = Watch(ticket)
        watches.append(watch)
        train, validation = loaders()
        end = [Kill(stop)] if stop and ticket.round else []
        fit = trainer(ticket, [*make_callbacks(), watch, *end], **({"max_epochs": 8} | (options or {})))
        fit.fit(ticket.model, train, validation, ckpt_path=ticket.ckpt_path)
        fit.test(ticket.model, validation, verbose=False)
    return watches


class Kill(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == self.step:
            raise KeyError("killed")


def test_masks_tighten_after_every_epoch_nested_and_exact_in_count(tmp_path):
    _, watch = watched(tmp_path)
    expected = [round(cubically()(epoch / 8, 1.0, 0.25) * PRUNABLE) for epoch in range(9)]
    assert expected[0] == PRUNABLE
    assert expected[6:] == [33, 33, 33]
    batches = [expected[(n + 1) // STEPS_PER_EPOCH] for n in range(8 * STEPS_PER_EPOCH)]
    seen_by_a_callback_before_the_ticket = [PRUNABLE, *batches[:-1]]
    assert watch.kept == seen_by_a_callback_before_the_ticket
    assert watch.validated == expected[1:]
    for earlier, later in pairwise(watch.masks):
        assert all(not (later[name] & ~earlier[name]).any() for name in earlier)


def test_its_row_is_round_1_and_its_ticket_and_weights_are_of_the_final_density(tmp_path):
    watched(tmp_path, controls=["reinit", "random_mask"])
    rows = {(row["round"], row["arm"]): row for row in read_records(tmp_path / "records.csv")}
    assert rows[0, "ticket"]["steps"] == 0
    assert (rows[1, "ticket"]["density"], rows[1, "ticket"]["steps"]) == (33 / PRUNABLE, 40)
    files = RunDirectory(tmp_path).arm(1)
    ticket = read(files.ticket)
    assert density(ticket.masks) == 33 / PRUNABLE
    state = Checkpoint(files.final)["state_dict"]
    assert all(not state[name][~mask].any() for name, mask in ticket.masks.items())
    reinit = read(RunDirectory(tmp_path).arm(1, "reinit").ticket).masks
    assert all(torch.equal(reinit[name], mask) for name, mask in ticket.masks.items())
    assert rows[1, "random_mask"]["density"] == 33 / PRUNABLE


def test_the_early_stop_is_the_best_validation_at_the_final_density(tmp_path):
    watched(tmp_path)
    row = read_records(tmp_path / "records.csv")[1]
    curves = [row for row in read_curves(RunDirectory(tmp_path).arm(1).curves) if "val/loss" in row]
    assert {row["step"] for row in curves} == {5, 10, 15, 20, 25, 30, 35, 40}
    final = {row["step"]: row["val/loss"] for row in curves if row["step"] >= 0.75 * 40}
    assert {row["density"] for row in curves if row["step"] >= 0.75 * 40} == {33 / PRUNABLE}
    assert row["early_stop_val_loss"] == min(final.values())
    state = Checkpoint(RunDirectory(tmp_path).arm(1).early_stop)["state_dict"]
    masks = read(RunDirectory(tmp_path).arm(1).ticket).masks
    assert all(not state[name][~mask].any() for name, mask in masks.items())


def test_masks_may_tighten_every_few_steps_and_are_at_the_end_in_time(tmp_path):
    pace = linearly(0.25, 0.8)
    _, watch = watched(tmp_path, gradual=pace, gradual_every="3 steps", options={"max_steps": 20, "max_epochs": -1})
    counts = [PRUNABLE]
    for step in range(1, 20):
        due = step % 3 == 0 or step == 16
        counts.append(round(pace(step / 20, 1.0, 0.25) * PRUNABLE) if due else counts[-1])
    assert watch.kept == counts
    assert counts[16:] == [33, 33, 33, 33]


def test_patterns_tighten_each_to_its_own_density(tmp_path):
    from lt_lightning import geometric

    watched(tmp_path, density=None, schedule=geometric({"output*": 0.5, "*": 0.75}))
    masks = read(RunDirectory(tmp_path).arm(1).ticket).masks
    assert {name: density({name: mask}) for name, mask in masks.items()} == {
        "hidden.weight": 0.25, "output.weight": 0.5,
    }  # fmt: skip


def test_every_round_tightens_from_where_the_one_before_ended(tmp_path):
    from lt_lightning import explicit

    _, first, second = watched(tmp_path, density=None, schedule=explicit([0.5, 0.25]), rounds=2)
    assert (first.kept[0], first.kept[-1], second.kept[0], second.kept[-1]) == (PRUNABLE, 66, 66, 33)
    start, end = (read(RunDirectory(tmp_path).arm(n).ticket).masks for n in (1, 2))
    assert all(not (end[name] & ~start[name]).any() for name in start)


def test_what_moved_least_goes_if_movement_is_the_criterion(tmp_path):
    _, watch = watched(tmp_path, criterion=movement, options={"max_epochs": 1}, gradual=linearly(end=1.0))
    initial = Checkpoint(RunDirectory(tmp_path).point(0))["state_dict"]
    final = Checkpoint(RunDirectory(tmp_path).arm(1).final)["state_dict"]
    masks = read(RunDirectory(tmp_path).arm(1).ticket).masks
    moved = torch.cat([(final[name] - initial[name]).abs()[mask] for name, mask in masks.items()])
    assert len(moved) == 33  # pruned at the very last batch, so the others are where they were
    assert kept(watch.masks[-1]) == PRUNABLE
    plain = {}
    for ticket in lottery(Tiny, rounds=1, density=0.25, criterion=movement, directory=tmp_path / "plain"):
        fit = trainer(ticket, max_epochs=1)
        fit.fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
        plain |= {ticket.round: dict(ticket.masks)}
    assert all(torch.equal(plain[1][name], mask) for name, mask in masks.items())


def same_run(one, other):
    for round in (0, 1):
        a, b = (RunDirectory(path).arm(round) for path in (one, other))
        first, second = (Checkpoint(each.final)["state_dict"] for each in (a, b))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert a.ticket.read_bytes() == b.ticket.read_bytes()
        assert a.curves.read_text() == b.curves.read_text()
    rows = [read_records(path / "records.csv") for path in (one, other)]
    drop = [[{k: v for k, v in row.items() if k != "seconds"} for row in each] for each in rows]
    assert drop[0] == drop[1]


@pytest.mark.parametrize("stop", few([1, 7, 12, 23, 31, 39], 1, 3))
@pytest.mark.parametrize("every", ["1 epoch", "3 steps"])
def test_a_fit_that_is_killed_anywhere_ends_with_the_same_bits(stop, every, tmp_path):
    options = {"gradual_every": "4 steps", "every": every}
    watched(tmp_path / "whole", **options)
    with pytest.raises(KeyError, match="killed"):
        watched(tmp_path / "killed", stop=stop, **options)
    _ = watched(tmp_path / "killed", **options)
    same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_fit_that_is_done_but_not_marked_goes_on_with_the_same_bits(tmp_path):
    for name in ("whole", "again"):
        watched(tmp_path / name, keep_last=True)
    files = RunDirectory(tmp_path / "again").arm(1)
    files.done.unlink()
    watched(tmp_path / "again", keep_last=True)
    same_run(tmp_path / "whole", tmp_path / "again")


@pytest.mark.parametrize(("file", "makers"), [("ticket", [0, 1]), ("final", [1])])
def test_a_damaged_file_is_made_again_with_the_same_bits(file, makers, tmp_path):
    for name in ("whole", "damaged"):
        watched(tmp_path / name)
    path = getattr(RunDirectory(tmp_path / "damaged").arm(1), file)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged"):
        again = watched(tmp_path / "damaged")
    assert [watch.ticket.round for watch in again] == makers
    same_run(tmp_path / "whole", tmp_path / "damaged")


class Averaging(WeightAveraging):
    def __init__(self):
        super().__init__(avg_fn=lambda average, weight, count: average + (weight - average) / 2)


@pytest.mark.filterwarnings("ignore:.*SWA|Swapping scheduler")
@pytest.mark.parametrize("make", [Averaging, partial(StochasticWeightAveraging, 0.01, swa_epoch_start=2)])
def test_averages_hold_no_weight_that_was_pruned_later(make, tmp_path):
    watched(tmp_path, make_callbacks=lambda: (make(),), model=partial(Tiny, schedule=False))
    files = RunDirectory(tmp_path).arm(1)
    state = Checkpoint(files.final)["state_dict"]
    for name, mask in read(files.ticket).masks.items():
        assert not state[name][~mask].any()
        assert state[name][mask].any()


def test_a_fit_from_a_later_point_has_the_density_of_its_progress(tmp_path):
    _, watch = watched(tmp_path, rewind_step="2 epochs")
    assert (watch.kept[0], watch.kept[5]) == (PRUNABLE, round(cubically()(3 / 8, 1.0, 0.25) * PRUNABLE))
    assert len(watch.kept) == 30


def test_a_trial_prunes_and_counts_as_nothing(tmp_path):
    _, watch = watched(tmp_path, options={"fast_dev_run": True, "max_epochs": None})
    assert kept(watch.ticket.masks) == 33
    assert not (tmp_path / "records.csv").exists()


def test_a_directory_of_another_pace_is_refused(tmp_path):
    watched(tmp_path)
    with pytest.raises(ValueError, match=r"lottery\.gradual\.end: 0\.75 there, 0\.5 now"):
        watched(tmp_path, gradual=cubically(end=0.5))


def test_what_cannot_work_is_refused_before_training(tmp_path):
    def act(directory="a", options=None, **arguments):
        return lambda: watched(tmp_path / directory, model=Watched, options=options, **arguments)

    refused(act(gradual=0.1), ValueError, "gradual=0.1 is not a function: pass one such as cubically().")
    refused(act(gradual_every="0 steps"), ValueError, 'gradual_every="0 steps" must be at least 1')
    refused(act(gradual_every="soon"), ValueError, "gradual_every='soon' is not understood")
    refused(
        act(gradual=lambda p, before, after: 0.5), ValueError, "gradual is 0.5 at the end of round 1, whose density is"
    )
    rising = lambda p, before, after: after if p == 1 else 0.3 + p / 2  # noqa: E731
    refused(act(gradual=rising), ValueError, "gradual must fall within (0, 1] in round 1", "0.3, 0.305, 0.31")
    refused(act("b", {"max_epochs": -1}), ValueError, "this Trainer has no end: pass max_steps or max_epochs")
    refused(
        act("c", criterion=snip),
        ValueError,
        "asks for batches or for a copy of the module",
        "prune/criterion=magnitude",
    )


def test_a_fit_that_ends_too_early_says_so_and_goes_on_once_that_is_mended(tmp_path):
    stopper = lambda: (EarlyStopping("val/loss", patience=0, min_delta=100.0),)  # noqa: E731
    with pytest.raises(
        RuntimeError, match=r"round 1 ended after 10 steps at a density of .*, before its masks had come to"
    ):
        watched(tmp_path / "a", make_callbacks=stopper)
    assert not RunDirectory(tmp_path / "a").arm(1).done.exists()


def test_sparse_execution_is_refused(tmp_path):
    with pytest.raises(ValueError, match="sparse='auto' fixes where the kept weights of a fit lie, and gradual moves"):
        lottery(Tiny, rounds=1, density=0.5, gradual=linearly(), sparse="auto", directory=tmp_path)
