"""A ticket put into a model: what is loaded, what is masked, what is said if it does not fit."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import Tiny, play
from torch import nn

from lt_lightning import TicketFile, load_ticket

KEPT = torch.tensor([[True, False], [False, True], [True, True]])


class Net(nn.Module):
    """A body and a head, batch norm between them."""

    def __init__(self, head=2):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, head)


class Tied(nn.Module):
    """The encoder's weight is the decoder's."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(2, 3, bias=False), nn.Linear(2, 3, bias=False)
        self.decoder.weight = self.encoder.weight


def ticket_of(model, **masks):
    found = {name.replace("__", "."): mask for name, mask in masks.items()}
    return TicketFile(found, {name: value.clone() for name, value in model.state_dict().items()})


@pytest.fixture
def ticket():
    torch.manual_seed(1)
    found = Net()
    found.norm.running_mean.fill_(5)
    return ticket_of(found, body__weight=KEPT, head__weight=KEPT.t())


def assert_is(model, ticket, names=None):
    """The model holds the ticket's weights under its masks."""
    own = model.state_dict()
    for name in ticket.state if names is None else names:
        mask = ticket.masks.get(name, torch.tensor(True))
        assert torch.equal(own[name], ticket.state[name] * mask), name


def test_weights_and_buffers_are_loaded_and_pruned_weights_are_zero(ticket):
    model = Net()
    before = {name: each.data_ptr() for name, each in model.named_parameters()}
    applied = ticket.apply(model)
    assert list(applied) == ["body.weight", "head.weight"]
    assert all(torch.equal(applied[name], ticket.masks[name]) for name in applied)
    assert_is(model, ticket)
    assert {name: each.data_ptr() for name, each in model.named_parameters()} == before, "an optimizer still holds them"
    assert not torch.equal(ticket.state["body.weight"], model.body.weight), "the ticket itself is not changed"


def test_the_weights_of_the_model_can_be_masked_instead(ticket):
    model = Net()
    with torch.no_grad():
        model.body.weight[0, 1] = torch.nan  # which times zero is not zero
    expected = model.body.weight.detach().masked_fill(~KEPT, 0)
    bias = model.body.bias.detach().clone()
    ticket.apply(model, state=False)
    assert torch.equal(model.body.weight, expected)
    assert torch.equal(model.body.bias, bias)


@given(st.lists(st.booleans(), min_size=6, max_size=6), st.lists(st.floats(width=32), min_size=6, max_size=6))
def test_kept_weights_are_those_of_the_ticket_and_all_others_zero(kept, values):
    mask, weight = torch.tensor(kept).view(3, 2), torch.tensor(values).view(3, 2)
    model = nn.Linear(2, 3, bias=False)
    TicketFile({"weight": mask}, {"weight": weight}).apply(model)
    assert model.weight[mask].tolist() == pytest.approx(weight[mask].tolist(), nan_ok=True, rel=0, abs=0)
    assert (model.weight[~mask] == 0).all()
    again = model.weight.detach().clone()
    TicketFile({"weight": mask}).apply(model, state=False)
    assert torch.equal(again.nan_to_num(), model.weight.nan_to_num()), "a second time changes nothing"


def test_a_tied_weight_is_masked_wherever_it_is_held():
    model = Tied()
    ticket = ticket_of(Tied(), encoder__weight=KEPT)
    assert list(ticket.apply(model)) == ["encoder.weight"]
    assert model.decoder.weight is model.encoder.weight
    assert torch.equal(model.decoder.weight, ticket.state["decoder.weight"] * KEPT)
    other = ticket_of(Tied(), decoder__weight=KEPT)  # by the name that named_parameters leaves out
    assert list(other.apply(model)) == ["decoder.weight"]
    assert torch.equal(model.encoder.weight, other.state["encoder.weight"] * KEPT)


def test_what_was_tied_in_the_run_is_masked_where_it_is_not_tied_any_more():
    model = nn.ModuleDict({"encoder": nn.Linear(2, 3, bias=False), "decoder": nn.Linear(2, 3, bias=False)})
    ticket = replace(ticket_of(Tied(), encoder__weight=KEPT), tied={"decoder.weight": "encoder.weight"})
    assert list(ticket.apply(Tied())) == ["encoder.weight"]
    assert list(ticket.apply(model)) == ["encoder.weight", "decoder.weight"]
    assert_is(model, replace(ticket, masks=ticket.masks_by_name))


def test_a_run_writes_down_what_its_model_ties(tmp_path):
    class TiedTiny(Tiny):
        def __init__(self):
            super().__init__()
            self.again = nn.Linear(8, 12)
            self.again.weight = self.hidden.weight

    play(tmp_path, model=TiedTiny, rounds=1, controls=["reinit", "random_mask"], test=False)
    for folder in ("round-00", "round-01", "round-01/reinit", "round-01/random_mask", "round-01/next"):
        ticket = load_ticket(tmp_path / folder)
        assert ticket.tied == {"again.weight": "hidden.weight"}, folder
        assert list(ticket.masks) == ["hidden.weight", "output.weight"], "counted once"
    play(tmp_path / "plain", rounds=1, test=False)
    assert load_ticket(tmp_path / "plain" / "round-01").tied == {}


@pytest.mark.parametrize("whole", [True, False], ids=["model", "layer"])
def test_compiled_modules_have_the_names_of_what_they_compile(ticket, whole):
    model = Net()
    if whole:
        compiled = torch.compile(model, backend="eager")
    else:
        model.body = torch.compile(model.body, backend="eager")
        compiled = model
    assert any("_orig_mod" in name for name, _ in compiled.named_parameters())
    assert list(ticket.apply(compiled)) == ["body.weight", "head.weight"]
    assert_is(Net() if whole else model, TicketFile({}, {}))
    assert torch.equal(model.body.weight, ticket.state["body.weight"] * KEPT)
    assert torch.equal(model.norm.running_mean, torch.full((3,), 5.0))
    named = TicketFile({"body._orig_mod.weight": KEPT}, {"body._orig_mod.weight": torch.ones(3, 2)})
    named.apply(model, only=["body*"])  # a state dict of a module with a compiled layer
    assert torch.equal(model.body.weight, KEPT.float())


def test_a_model_may_be_in_another_precision(ticket):
    model = Net().half()
    ticket.apply(model)
    assert torch.equal(model.body.weight, (ticket.state["body.weight"] * KEPT).half())


def test_a_part_is_chosen_by_patterns_and_the_rest_is_left_alone(ticket):
    for only in (["body*", "norm*"], ["!head*"]):
        model = Net(head=7)  # another task
        head = model.head.weight.detach().clone()
        assert list(ticket.apply(model, only=only)) == ["body.weight"]
        assert_is(model, ticket, ["body.weight", "body.bias", "norm.running_mean"])
        assert torch.equal(model.head.weight, head)


def test_the_network_of_a_module_takes_the_ticket_without_the_prefix(ticket):
    longer = TicketFile(
        {f"network.{name}": mask for name, mask in ticket.masks.items()} | {"other.weight": KEPT},
        {f"network.{name}": value for name, value in ticket.state.items()} | {"loss.scale": torch.ones(1)},
    )
    model = Net()
    assert list(longer.apply(model, prefix="network.")) == ["body.weight", "head.weight"]
    assert_is(model, ticket)


def test_lazy_layers_take_their_shape_from_the_weights_and_have_none_to_mask_without(ticket):
    model = Net()
    model.body = nn.LazyLinear(3)
    with pytest.raises(ValueError, match=r"body.weight has no shape yet.*run the model on a batch first"):
        ticket.apply(model, state=False)
    ticket.apply(model)
    assert_is(model, ticket)


def unchanged_by(model, apply):
    """Run what fails, and see that nothing was changed; the error's text."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError) as error:  # noqa: PT011 its whole text is compared
        apply()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return str(error.value)


def test_what_does_not_fit_is_listed_and_nothing_is_changed(ticket):
    class Another(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.norm, self.extra = nn.Linear(2, 4), nn.BatchNorm1d(3), nn.Linear(1, 1, bias=False)

    model = Another()
    assert unchanged_by(model, lambda: ticket.apply(model)) == (
        "the ticket does not fit the model:\n"
        "  head.weight: in the ticket only\n"
        "  head.bias: in the ticket only\n"
        "  extra.weight: in the model only\n"
        "  body.weight: (3, 2) in the ticket, (4, 2) in the model\n"
        "  body.bias: (3,) in the ticket, (4,) in the model\n"
        'Give the model that it was found in, or leave out what does not fit: only=["!head*"] leaves out what matches, '
        'only=["hidden*"] takes nothing else.'
    )
    assert unchanged_by(model, lambda: ticket.apply(model, state=False)).startswith(
        "the ticket does not fit the model:\n  head.weight: in the ticket only\n  body.weight: (3, 2) in the ticket"
    )


def test_a_part_of_the_model_is_recognised_both_ways(ticket):
    wrapped = nn.ModuleDict({"network": Net()})
    assert unchanged_by(wrapped, lambda: ticket.apply(wrapped)).endswith(
        "\nThe ticket seems to be of a part of the model: give model.network."
    )
    longer = TicketFile({f"network.{name}": mask for name, mask in ticket.masks.items()})
    model = Net()
    assert unchanged_by(model, lambda: longer.apply(model, state=False)).endswith(
        '\nThe model seems to be a part of that of the ticket: pass prefix="network.".'
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"only": ["body*", "tail*"]},
            r"the pattern 'tail\*' matches nothing; the parameters are body.weight, head.weight",
        ),
        ({"only": ["!tail*"]}, r"the pattern 'tail\*' matches nothing"),
        ({"only": "body*"}, r"only='body\*' must be a list of patterns: only=\['body\*'\]"),
        ({"prefix": "net."}, r"no name in the ticket opens with prefix='net.'; they are body.weight"),
    ],
)
def test_what_chooses_nothing_is_refused(ticket, options, said):
    with pytest.raises(ValueError, match=said):
        ticket.apply(Net(), **options)


def test_a_ticket_without_weights_says_so():
    ticket = TicketFile({"weight": KEPT}, start="fresh")
    with pytest.raises(ValueError, match=r"holds no weights.*apply\(model, state=False\)"):
        ticket.apply(nn.Linear(2, 3))


def test_a_ticket_of_a_run_makes_a_fresh_model_that_of_its_round(tmp_path):
    play(tmp_path, rounds=1, rewind_step=2)
    torch.manual_seed(5)
    model = Tiny()
    ticket = load_ticket(tmp_path / "round-01")  # the directory of the round will do
    masks = ticket.apply(model)
    point = torch.load(tmp_path / "points" / "step-2.ckpt", weights_only=True)["state_dict"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, point[name] * masks.get(name, torch.ones_like(point[name]))), name
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.8 * sum(mask.numel() for mask in masks.values()))
