"""The matrix can fail: without each of the things that make a ticket exact, rows of it do."""

import pytest
from matrix import check_row

from lt_lightning import ticket
from lt_lightning.fit import frozen, hookable, position
from lt_lightning.fit.enforcement import Enforcement

pytestmark = pytest.mark.lightning_matrix


def nothing(*arguments, **options):
    pass


MUTATIONS = {
    "no mask on gradients": ([(Enforcement, "mask_gradients")], ["clipping by norm", "muon"]),
    "no mask after a step": ([(Enforcement, "_after_step")], ["muon"]),
    "no way back into the data": ([(position, "return_to_batch")], ["late rewinding"]),
    "no random state": (
        [(position, "set_random_state"), (ticket, "set_random_state")],
        ["late rewinding with random numbers"],
    ),
    "no hooks for optimizers without them": ([(hookable, "make_hookable")], ["lookahead with hooks"]),
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
