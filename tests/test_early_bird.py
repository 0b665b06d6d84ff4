"""The dense round ends once the masks that would be drawn from it have settled."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_gradual import Kill, same_run
from test_messages import Watched, refused
from tiny import STEPS_PER_EPOCH, Tiny, loaders, trainer

from lt_lightning import lottery, settled, snip
from lt_lightning.criteria import magnitude
from lt_lightning.disk.rundir import Checkpoint, RunDirectory
from lt_lightning.early_bird import mask_distance
from lt_lightning.plan import describe
from lt_lightning.records import read_curves, read_records
from lt_lightning.scopes import globally

PRUNABLE = 8 * 12 + 12 * 3


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.01, 1), st.integers(1, 4))
def test_settled_is_when_so_many_distances_in_a_row_are_small(distances, threshold, epochs):
    enough = len(distances) >= epochs and all(each < threshold for each in distances[-epochs:])
    assert settled(threshold, epochs)(distances) == enough


def test_it_is_a_partial_of_a_module_function_so_that_it_can_be_compared():
    assert describe(settled()) == {"function": "lt_lightning.early_bird._settled", "distance": 0.1, "epochs": 5}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_the_distance_is_the_part_of_the_weights_that_differ(pairs):
    one, other = ({"w": torch.tensor(side)} for side in zip(*pairs, strict=True))
    assert mask_distance(one, other) == mask_distance(other, one) == sum(a != b for a, b in pairs) / len(pairs)


def bird(directory, stop=None, model=Tiny, epochs=12, **arguments):
    """Run a lottery of one round; the names of the fits that ran. `stop` is a step at which round 0 is killed."""
    names = []
    arguments = {"density": 0.25, "every": "1 epoch", "early_bird": settled(0.04, epochs=2)} | arguments
    for ticket in lottery(model, rounds=1, directory=directory, **arguments):
        fit = trainer(ticket, [Kill(stop)] if stop is not None else [], max_epochs=epochs)
        fit.fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
        names.append(ticket.name)
    return names


def test_round_0_ends_when_the_masks_have_settled_and_the_ticket_trains_its_full_length(tmp_path):
    bird(tmp_path / "whole", early_bird=None, every="1 epoch", keep_last=True)
    masks, saved = [], []

    class Snapshots(Tiny):
        def on_train_epoch_end(self):
            weights = {name: self.get_parameter(name).detach().clone() for name in ("hidden.weight", "output.weight")}
            saved.append(weights)

    bird(tmp_path / "early", model=Snapshots)
    dense = saved[: -12 if len(saved) > 12 else None]
    full = {name: torch.ones(w.shape).bool() for name, w in dense[0].items()}
    for weights in dense:
        masks.append(globally({name: w.abs() for name, w in weights.items()}, full, 0.25))
    distances = [mask_distance(one, other) for one, other in pairwise(masks)]
    ends = next(n for n in range(2, len(distances) + 1) if max(distances[n - 2 : n]) < 0.04)
    rows = read_records(tmp_path / "early" / "records.csv")
    assert len(dense) == len(distances) + 1 == ends + 1 < 12
    assert [row["steps"] for row in rows] == [(ends + 1) * STEPS_PER_EPOCH, 12 * STEPS_PER_EPOCH]
    assert rows[0]["mask_distance"] == pytest.approx(distances[-1], rel=1e-6)
    curves = read_curves(RunDirectory(tmp_path / "early").arm(0).curves)
    told = {row["epoch"]: row["mask_distance"] for row in curves if "mask_distance" in row}
    assert [told[epoch] for epoch in range(1, ends + 1)] == pytest.approx(distances, rel=1e-6)


def test_the_ticket_is_drawn_from_where_round_0_ended(tmp_path):
    bird(tmp_path)
    final = Checkpoint(RunDirectory(tmp_path).arm(0).final)["state_dict"]
    from lt_lightning import load_ticket

    masks = load_ticket(RunDirectory(tmp_path).arm(1).ticket).masks
    full = {name: torch.ones(mask.shape).bool() for name, mask in masks.items()}
    drawn = globally({name: final[name].abs() for name in masks}, full, 0.25)
    assert all(torch.equal(drawn[name], mask) for name, mask in masks.items())


@pytest.mark.parametrize("stop", [6, 11, 13])
def test_a_round_0_that_is_killed_ends_at_the_same_epoch_with_the_same_bits(stop, tmp_path):
    bird(tmp_path / "whole")
    steps = read_records(tmp_path / "whole" / "records.csv")[0]["steps"]
    assert stop < steps < 60
    with pytest.raises(KeyError, match="killed"):
        bird(tmp_path / "killed", stop=stop, every="1 epoch")
    bird(tmp_path / "killed")
    same_run(tmp_path / "whole", tmp_path / "killed")


def test_without_settling_it_trains_its_full_length(tmp_path):
    bird(tmp_path, early_bird=lambda distances: len(distances) > 99, epochs=3)
    assert [row["steps"] for row in read_records(tmp_path / "records.csv")] == [15, 15]


def test_what_cannot_work_is_refused_before_training(tmp_path):
    def act(directory="a", **arguments):
        return lambda: bird(tmp_path / directory, model=Watched, **arguments)

    refused(act(early_bird=0.1), ValueError, "early_bird=0.1 is not a function: pass one such as settled(0.1).")
    refused(act(dense=False), ValueError, "early_bird says when the dense round ends, which dense=False has not")
    dense = lambda: lottery(Watched, rounds=0, directory=tmp_path, early_bird=settled())  # noqa: E731
    refused(dense, ValueError, "and rounds=0 has none")
    refused(act("b", criterion=snip), ValueError, "asks for batches or for a copy of the module")
    for wrong in ({"distance": 0}, {"distance": 1.5}, {"epochs": 0}, {"epochs": True}):
        refused(lambda wrong=wrong: settled(**wrong), ValueError, "must")


def test_the_criterion_sees_what_it_would_see_between_rounds(tmp_path):
    seen = []

    def spy(evidence):
        seen.append((evidence.round, evidence.density))
        return magnitude(evidence)

    bird(tmp_path, criterion=spy, early_bird=lambda distances: False, epochs=2)
    assert set(seen[:3]) == {(0, 0.25)}
