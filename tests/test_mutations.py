"""The matrix can fail: without each of the things that make a ticket exact, rows of it do."""

import pytest
from matrix import check_row

from lt_lightning import ticket
from lt_lightning.fit import position
from lt_lightning.fit.enforcement import Enforcement

pytestmark = pytest.mark.lightning_matrix


def nothing(*arguments, **options):
    pass


MUTATIONS = {
    "no mask on gradients": ([(Enforcement, "_mask_gradients_from_now_on"), (Enforcement, "mask_gradients")], ["clipping by norm", "muon"]),
    "no mask after a step": ([(Enforcement, "_after_step")], ["muon"]),
    "no way back into the data": ([(position, "return_to_batch")], ["late rewinding"]),
    "no random state": (
        [(position, "set_random_state"), (ticket, "set_random_state")],
        ["late rewinding with random numbers"],
    ),
}
"""What is taken away: the functions, and the rows that have to notice."""


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_row_notices_what_is_missing(tmp_path, monkeypatch, record_property, name):
    places, rows = MUTATIONS[name]
    for owner, function in places:
        monkeypatch.setattr(owner, function, nothing)
    for row in rows:
        with pytest.raises(AssertionError):
            check_row(tmp_path / row, row)
    record_property("table", f"{name}: fails {', '.join(rows)}")
