"""The matrix can fail: without each of the things that make a ticket exact, rows of it do."""

import pytest
from hands_on import WRITERS, InFit, watched
from matrix import check_row

from lt_lightning import ticket
from lt_lightning.fit import frozen, position
from lt_lightning.fit.enforcement import Enforcement, _Held, _Look

pytestmark = pytest.mark.lightning_matrix


def nothing(*arguments, **options):
    pass


MUTATIONS = {
    "no mask on gradients": (
        [(Enforcement, "_mask_gradients_from_now_on"), (Enforcement, "mask_gradients")],
        ["clipping by norm", "muon", "clipping after backward", "sam by hand"],
    ),
    "no mask after a step": ([(Enforcement, "_after_step")], ["muon"]),
    "no way back into the data": ([(position, "return_to_batch")], ["late rewinding"]),
    "no random state": (
        [(position, "set_random_state"), (ticket, "set_random_state")],
        ["late rewinding with random numbers"],
    ),
    "nothing frozen again": ([(frozen, "switch_off")], ["finetuning, rewound after the thaw"]),
    "frozen layers left out": ([(frozen, "note")], ["finetuning"]),
}
"""What is taken away: the functions, and the rows that have to notice."""


SELDOM = ("nothing frozen again", "frozen layers left out")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SELDOM else []) for n in MUTATIONS])
def test_a_row_notices_what_is_missing(tmp_path, monkeypatch, record_property, name):
    places, rows = MUTATIONS[name]
    for owner, function in places:
        monkeypatch.setattr(owner, function, nothing)
    for row in rows:
        with pytest.raises(AssertionError):
            check_row(tmp_path / row, row)
    record_property("table", f"{name}: fails {', '.join(rows)}")


@pytest.mark.parametrize("name", ["row means", "a target network", "another callback"])
def test_a_forward_pass_sees_pruned_weights_without_the_check_before_it(tmp_path, monkeypatch, name):
    monkeypatch.setattr(_Look, "__call__", nothing)
    monkeypatch.setattr(Enforcement, "require_zeros", nothing)
    watch, _ = watched(tmp_path, *WRITERS[name])
    assert watch.largest > 1e-4


def test_a_dense_network_is_recorded_as_sparse_without_the_trip_wire(tmp_path, monkeypatch):
    monkeypatch.setattr(Enforcement, "require_zeros", nothing)
    monkeypatch.setattr(_Held, "leak", lambda held: 0.0)
    watch, _ = watched(tmp_path, InFit)
    assert watch.largest == 0.5
