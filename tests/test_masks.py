import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_lightning.masks import all_kept, check_fit, density, kept, total


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_density_is_kept_over_total(bits):
    masks = {"w": torch.tensor(bits)}
    assert (kept(masks), total(masks)) == (sum(bits), len(bits))
    assert density(masks) == sum(bits) / len(bits)


def test_all_kept_has_density_one():
    assert density(all_kept({"a": torch.zeros(2, 3), "b": torch.zeros(4)})) == 1.0


def test_a_ticket_that_does_not_fit_is_refused_with_names_and_shapes():
    masks = {"a": torch.ones(2).bool(), "b": torch.ones(2, 3).bool()}
    with pytest.raises(ValueError, match="does not fit") as error:
        check_fit(masks, {"b": torch.zeros(3, 2), "c": torch.zeros(1)})
    assert "a: in the ticket only" in str(error.value)
    assert "c: in the model only" in str(error.value)
    assert "b: the mask is (2, 3), the weight is (3, 2)" in str(error.value)
