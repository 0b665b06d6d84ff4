import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lt_lightning.masks import all_kept, check_fit, density, find_prunable, kept, total


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3), nn.Embedding(4, 2))


def test_weights_of_linear_and_convolution_are_prunable_and_nothing_else():
    assert list(find_prunable(network())) == ["0.weight", "3.weight"]


def test_attention_projections_are_prunable():
    assert list(find_prunable(nn.MultiheadAttention(4, 2))) == ["in_proj_weight", "out_proj.weight"]
    assert "q_proj_weight" in find_prunable(nn.MultiheadAttention(4, 2, kdim=3, vdim=3))


def test_frozen_weights_are_left_alone():
    module = network()
    module[0].weight.requires_grad_(False)
    assert list(find_prunable(module)) == ["3.weight"]


def test_tied_weights_count_once():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    assert list(find_prunable(module)) == ["0.weight"]


def test_a_weight_tied_to_an_embedding_is_prunable_by_its_first_holder():
    module = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4))
    module[1].weight = module[0].weight
    with pytest.raises(ValueError, match="nothing is prunable"):
        find_prunable(module)


def test_patterns_choose_and_leave_out():
    assert list(find_prunable(network(), ["4.*"])) == ["4.weight"]
    assert list(find_prunable(network(), ["*.weight", "!1.*"])) == ["0.weight", "3.weight", "4.weight"]
    assert list(find_prunable(network(), ["!3.*"])) == ["0.weight"]


def test_a_predicate_chooses():
    assert list(find_prunable(network(), lambda name, p, module: isinstance(module, nn.Embedding))) == ["4.weight"]


def test_a_compiled_module_has_the_same_names():
    module = nn.Sequential(torch.compile(nn.Linear(2, 2)))
    assert list(find_prunable(module)) == ["0.weight"]


@pytest.mark.parametrize("pattern", ["nothing*", "!nothing*"])
def test_a_pattern_without_a_match_is_refused_with_the_names(pattern):
    with pytest.raises(ValueError, match=r"'nothing\*' matches nothing; the parameters are 0.weight, 0.bias, 1.weight"):
        find_prunable(network(), [pattern])


def test_nothing_prunable_is_refused():
    with pytest.raises(ValueError, match=r"nothing is prunable: of the 2 parameters of LayerNorm \(weight, bias\)"):
        find_prunable(nn.LayerNorm(3))


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
