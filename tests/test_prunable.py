"""Every kind of weight: what of it is pruned, what not and why, and that a pruned weight is zero where it counts."""

import re

import lightning as L
import pytest
import torch
from tiny import loaders, trainer
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

from lt_lightning import (
    globally,
    layer_weights,
    layerwise,
    lottery,
    magnitude,
    magnitude_increase,
    movement,
    one_shot,
    random,
)
from lt_lightning.prunable import find_prunable, survey


class Only(nn.Module):
    """A layer and what to feed it: 8 numbers per example, reshaped."""

    def __init__(self, layer, feed):
        super().__init__()
        self.layer, self.feed = layer, feed

    def forward(self, x):
        out = self.feed(self.layer, x)
        return out[0] if isinstance(out, tuple) else out


class Tied(nn.Module):
    """Words in and out by the same matrix, whichever of the two is made first."""

    def __init__(self, embedding_first):
        super().__init__()
        made = {"embedding": nn.Embedding(4, 3), "head": nn.Linear(3, 4, bias=False)}
        for name in made if embedding_first else reversed(made):
            setattr(self, name, made[name])
        self.hidden = nn.Linear(3, 3)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.hidden(self.embedding(words(x))))


class Bare(nn.Module):
    """It holds its matrix itself."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(8, 3))

    def forward(self, x):
        return x @ self.matrix


class Fit(L.LightningModule):
    """Trains whatever it is given."""

    def __init__(self, make, lr=0.05):
        super().__init__()
        self.net, self.lr = make(), lr
        self.example_input_array = torch.zeros(1, 8)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return (self(batch[0]) - 1).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def words(x):
    return (x.abs() * 100).long() % 4


def shaped(*shape):
    return lambda layer, x: layer(x.view(len(x), *shape))


def attend(layer, x):
    return layer(x.view(-1, 2, 4), x.view(-1, 4, 2)[:, :, :2], x.view(-1, 4, 2)[:, :, :2])


def normed(norm, layer=None):
    return lambda: Only(norm(layer() if layer else nn.Linear(8, 4)), shaped(8))


def sequence():
    return shaped(4, 2)


BOTH = ["weight_ih_l0", "weight_hh_l0"]
REVERSE = ["weight_ih_l0_reverse", "weight_hh_l0_reverse"]
KINDS = {
    "linear": (lambda: Only(nn.Linear(8, 3), shaped(8)), ["weight"]),
    "bilinear": (lambda: Only(nn.Bilinear(4, 4, 3), lambda f, x: f(x[:, :4], x[:, 4:])), ["weight"]),
    "conv1d": (lambda: Only(nn.Conv1d(2, 3, 2), shaped(2, 4)), ["weight"]),
    "conv2d": (lambda: Only(nn.Conv2d(2, 3, 2), shaped(2, 2, 2)), ["weight"]),
    "conv3d": (lambda: Only(nn.Conv3d(1, 3, 2), shaped(1, 2, 2, 2)), ["weight"]),
    "transposed1d": (lambda: Only(nn.ConvTranspose1d(2, 3, 2), shaped(2, 4)), ["weight"]),
    "transposed2d": (lambda: Only(nn.ConvTranspose2d(2, 3, 2), shaped(2, 2, 2)), ["weight"]),
    "transposed3d": (lambda: Only(nn.ConvTranspose3d(1, 3, 2), shaped(1, 2, 2, 2)), ["weight"]),
    "grouped": (lambda: Only(nn.Conv2d(2, 4, 2, groups=2), shaped(2, 2, 2)), ["weight"]),
    "depthwise": (lambda: Only(nn.Conv1d(4, 4, 2, groups=4), shaped(4, 2)), ["weight"]),
    "lstm": (
        lambda: Only(nn.LSTM(2, 4, bidirectional=True, proj_size=2, batch_first=True), sequence()),
        [*BOTH, "weight_hr_l0", *REVERSE, "weight_hr_l0_reverse"],
    ),
    "gru": (
        lambda: Only(nn.GRU(2, 3, num_layers=2, batch_first=True), sequence()),
        [*BOTH, "weight_ih_l1", "weight_hh_l1"],
    ),
    "rnn": (lambda: Only(nn.RNN(2, 3, batch_first=True), sequence()), BOTH),
    "lstm cell": (lambda: Only(nn.LSTMCell(8, 3), shaped(8)), ["weight_ih", "weight_hh"]),
    "gru cell": (lambda: Only(nn.GRUCell(8, 3), shaped(8)), ["weight_ih", "weight_hh"]),
    "rnn cell": (lambda: Only(nn.RNNCell(8, 3), shaped(8)), ["weight_ih", "weight_hh"]),
    "attention": (
        lambda: Only(nn.MultiheadAttention(4, 2, batch_first=True), lambda f, x: f(*[x.view(-1, 2, 4)] * 3)),
        ["in_proj_weight", "out_proj.weight"],
    ),
    "attention of other keys": (
        lambda: Only(nn.MultiheadAttention(4, 2, kdim=2, vdim=2, add_bias_kv=True, batch_first=True), attend),
        ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
    ),
    "weight norm": (normed(parametrizations.weight_norm), ["parametrizations.weight.original1"]),
    "weight norm of columns": (
        normed(lambda layer: parametrizations.weight_norm(layer, dim=1), lambda: nn.Linear(8, 6)),
        ["parametrizations.weight.original1"],
    ),
    "spectral norm": (normed(parametrizations.spectral_norm), ["parametrizations.weight.original"]),
    "old weight norm": (normed(weight_norm), ["weight_v"]),
    "old spectral norm": (normed(spectral_norm), ["weight_orig"]),
    "lazy": (lambda: Only(nn.LazyLinear(3), shaped(8)), ["weight"]),
}
CHOSEN = {
    "embedding": (lambda: Only(nn.Embedding(4, 3), lambda f, x: f(words(x))), ["layer.weight"], ["+net.layer.weight"]),
    "tied, embedding first": (lambda: Tied(True), ["hidden.weight"], None),
    "tied, embedding last": (lambda: Tied(False), ["hidden.weight"], None),
    "tied and chosen by its other name": (lambda: Tied(True), ["embedding.weight"], ["net.head.*"]),
    "bare parameter": (Bare, ["matrix"], ["+net.matrix"]),
    "orthogonal, chosen": (
        normed(parametrizations.orthogonal),
        ["layer.parametrizations.weight.original"],
        ["*.original"],
    ),
}
CASES = {kind: (make, [f"layer.{name}" for name in names], None) for kind, (make, names) in KINDS.items()} | CHOSEN


def play(directory, make, prunable=None, lr=0.05, **arguments):
    """Two rounds of two steps, the second at half the density in every tensor; returns the last ticket."""
    arguments = {"schedule": one_shot(0.5), "scope": layerwise, "monitor": None} | arguments
    ticket = None
    for ticket in lottery(lambda: Fit(make, lr), rounds=1, directory=directory, prunable=prunable, **arguments):
        fit = trainer(ticket, max_epochs=1, limit_train_batches=2)
        fit.fit(ticket.model, loaders()[0], ckpt_path=ticket.ckpt_path)
    return ticket


def effective(model, name):
    """The tensor that the layer computes with."""
    path, _, leaf = name.rpartition(".")
    layer, computed = path, leaf.removesuffix("_v").removesuffix("_orig")
    if (".parametrizations." in name and leaf == "original") or leaf == "original1":
        layer, _, computed = path.partition(".parametrizations.")
    return getattr(model.get_submodule(layer), computed)


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.replace(" ", "-"))
@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_of_every_kind_half_the_weights_are_zero_in_what_the_layer_computes_with(kind, tmp_path):
    make, names, prunable = CASES[kind]
    ticket = play(tmp_path, make, prunable)
    assert ticket.round == 1
    assert list(ticket.masks) == [f"net.{name}" for name in names]
    model = ticket.model.eval()
    assert model(torch.randn(5, 8)).isfinite().all()  # and an old-style norm computes its weight
    for name, mask in ticket.masks.items():
        assert int(mask.sum()) == round(0.5 * mask.numel())
        assert not model.get_parameter(name)[~mask].any()
        if "orthogonal" not in kind:
            assert torch.equal(effective(model, name) != 0, mask)


class OneToFive(nn.Module):
    """A parameter of every number of dimensions."""

    def __init__(self):
        super().__init__()
        self.of = nn.ParameterList(torch.randn(*[2] * (n - 1), 6) for n in range(1, 6))

    def forward(self, x):
        return sum(parameter.sum() for parameter in self.of) + x


@pytest.mark.parametrize("criterion", [magnitude, magnitude_increase, movement, random])
@pytest.mark.parametrize("scope", [globally, layerwise])
def test_criteria_and_scopes_take_any_number_of_dimensions(criterion, scope, tmp_path):
    ticket = play(tmp_path, OneToFive, ["net.*"], criterion=criterion, scope=scope)
    assert [mask.dim() for mask in ticket.masks.values()] == [1, 2, 3, 4, 5]
    assert sum(int(mask.sum()) for mask in ticket.masks.values()) == (6 + 12 + 24 + 48 + 96) // 2


@pytest.mark.slow  # importing transformers takes seconds
def test_a_transformer_of_hugging_face(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    def make():
        gpt = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32, n_positions=16))
        return Only(gpt, lambda f, x: f(words(x)).logits)

    ticket = play(tmp_path, make)
    block = "net.layer.transformer.h.0"
    assert list(ticket.masks) == [
        f"{block}.{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    for name, mask in ticket.masks.items():
        assert int(mask.sum()) == mask.numel() // 2
        assert torch.equal(ticket.model.get_parameter(name) != 0, mask)
    reasons = {row.name.removeprefix("net.layer.transformer."): row.reason for row in survey(ticket.model)}
    assert reasons["wte.weight"] == (
        'embedding; add it with prunable=["+net.layer.transformer.wte.weight"] (tied to net.layer.lm_head.weight)'
    )
    assert reasons["ln_f.weight"] == "normalisation"


# What is chosen


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3), nn.Embedding(4, 2))


def test_frozen_weights_are_left_alone():
    module = network()
    module[0].weight.requires_grad_(False)
    assert list(find_prunable(module)) == ["3.weight"]


def test_tied_weights_count_once():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    assert list(find_prunable(module)) == ["0.weight"]


def test_patterns_choose_leave_out_and_add():
    for patterns, names in (
        (["4.*"], ["4.weight"]),
        (["*.weight", "!1.*"], ["0.weight", "3.weight", "4.weight"]),
        (["!3.*"], ["0.weight"]),
        (["+4.*"], ["0.weight", "3.weight", "4.weight"]),
        (["+4.*", "+1.weight", "!0.*"], ["1.weight", "3.weight", "4.weight"]),
        ([], ["0.weight", "3.weight"]),
    ):
        assert list(find_prunable(network(), patterns)) == names


def test_a_predicate_chooses():
    def embeddings(name, parameter, module):
        return isinstance(module, nn.Embedding)

    assert list(find_prunable(network(), embeddings)) == ["4.weight"]
    both = find_prunable(network(), lambda *each: embeddings(*each) or layer_weights(*each))
    assert list(both) == ["0.weight", "3.weight", "4.weight"]


def test_a_predicate_is_given_the_layer_whose_weight_is_computed():
    module = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)))
    given = []
    find_prunable(module, lambda name, parameter, layer: given.append((name, layer)) or True)
    assert [name for name, _ in given] == [
        "0.bias", "0.parametrizations.weight.original0", "0.parametrizations.weight.original1"
    ]  # fmt: skip
    assert all(layer is module[0] for _, layer in given)


def test_a_module_that_is_held_twice_is_one_layer():
    layer = nn.Linear(3, 3)
    module = nn.ModuleDict({"encoder": layer, "decoder": layer})
    assert list(find_prunable(module, lambda name, *_: name == "encoder.weight")) == ["encoder.weight"]


def test_a_compiled_module_has_the_same_names():
    module = nn.Sequential(torch.compile(nn.Linear(2, 2)))
    assert list(find_prunable(module)) == ["0.weight"]


# Why not


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).T


def reasons(module, prunable=layer_weights):
    return {row.name: row.reason for row in survey(module, prunable)}


def test_what_is_not_pruned_has_a_reason():
    module = nn.ModuleDict(
        {
            "linear": nn.Linear(2, 2),
            "frozen": nn.Linear(2, 2, bias=False).requires_grad_(False),
            "norm": nn.LayerNorm(2),
            "words": nn.EmbeddingBag(3, 2),
            "attention": nn.MultiheadAttention(2, 1, bias=False, add_bias_kv=True),
            "bare": Bare(),
            "scaled": parametrizations.weight_norm(nn.Linear(2, 2, bias=False)),
            "symmetric": parametrize.register_parametrization(nn.Linear(2, 2, bias=False), "weight", Symmetric()),
            "orthogonal": parametrizations.orthogonal(nn.Linear(2, 2, bias=False)),
        }
    )
    module["linear"].extra = nn.Parameter(torch.zeros(2))
    assert {name: reason for name, reason in reasons(module).items() if reason} == {
        "linear.extra": "no weight of Linear that we know; name it in prunable",
        "linear.bias": "bias",
        "frozen.weight": "frozen (requires_grad=False)",
        "norm.weight": "normalisation",
        "norm.bias": "normalisation",
        "words.weight": 'embedding; add it with prunable=["+words.weight"]',
        "attention.bias_k": "bias",
        "attention.bias_v": "bias",
        "bare.matrix": "a parameter of Bare, which is no layer that we know; name it in prunable",
        "scaled.parametrizations.weight.original0": "the length in the weight norm of weight",
        "symmetric.parametrizations.weight.original": (
            "its parametrization (Symmetric) does not keep zeros, as far as we know"
        ),
        "orthogonal.parametrizations.weight.original": (
            "its parametrization (Orthogonal) does not keep zeros, as far as we know"
        ),
    }


def test_a_tied_weight_says_with_what():
    assert reasons(Tied(True))["embedding.weight"] == (
        'embedding; add it with prunable=["+embedding.weight"] (tied to head.weight)'
    )
    assert reasons(Tied(False))["head.weight"] == (
        'tied to embedding.weight: embedding; add it with prunable=["+embedding.weight"]'
    )
    assert reasons(Tied(False), ["+embedding.weight"])["head.weight"] is None


def test_what_patterns_and_predicates_do_not_choose_has_a_reason():
    def convolutions(name, parameter, module):
        return isinstance(module, nn.Conv2d)

    assert reasons(network(), ["0.*", "!*.bias"])["3.weight"] == 'not chosen by prunable=["0.*", "!*.bias"]'
    assert reasons(network(), ["0.*", "!*.bias"])["0.bias"] == 'left out by "!*.bias"'
    assert reasons(network(), ["!3.*"])["1.weight"] == "normalisation"
    assert reasons(network(), convolutions)["3.weight"] == "not accepted by convolutions"


# What is refused


@pytest.mark.parametrize("pattern", ["nothing*", "!nothing*", "+nothing*"])
def test_a_pattern_without_a_match_is_refused_with_the_names(pattern):
    with pytest.raises(ValueError, match=r"'nothing\*' matches nothing; the parameters are 0.weight, 0.bias, 1.weight"):
        find_prunable(network(), [pattern])


def test_nothing_prunable_is_refused():
    with pytest.raises(ValueError, match=r"nothing is prunable: of the 2 parameters of LayerNorm \(weight, bias\)"):
        find_prunable(nn.LayerNorm(3))


def test_to_choose_and_to_add_at_once_is_refused():
    message = (
        'prunable=["0.*", "+4.*"] both chooses and adds to the default: write "+0.*" to add that to the default as '
        'well, or "4.*" to choose these alone.'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        find_prunable(network(), ["0.*", "+4.*"])


NAME = "net.layer.parametrizations.weight.original1"


def small_rows(dim=0):
    """Its first row has the smallest directions, so that a mask may leave nothing of it."""
    made = Only(parametrizations.weight_norm(nn.Linear(8, 4), dim=dim), shaped(8))
    with torch.no_grad():
        made.layer.parametrizations.weight.original1[:2] *= 1e-6
    return made


def test_masks_that_would_make_a_weight_norm_nan_are_refused_when_they_are_drawn(tmp_path):
    message = (
        f"no ticket can be drawn from round 0: the masks leave nothing of 2 rows of {NAME}, by whose norm its layer "
        f'divides: that gives NaN. Leave it out with prunable=["!{NAME}"], or choose another scope or a higher density.'
        f" Its weights: {tmp_path / 'round-00' / 'final.ckpt'}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        play(tmp_path, small_rows, lr=0)


def test_of_a_norm_over_everything_one_weight_is_enough(tmp_path):
    ticket = play(tmp_path, lambda: small_rows(dim=None), lr=0)
    assert ticket.model(torch.randn(5, 8)).isfinite().all()


def test_masks_of_a_control_that_would_make_a_weight_norm_nan_are_refused_before_it_trains(tmp_path):
    def first_row(ticket):
        mask = torch.zeros(4, 8, dtype=torch.bool)
        mask[0] = True
        ticket.masks[NAME] = mask
        return ticket

    with pytest.raises(ValueError, match=re.escape(f"the masks leave nothing of 3 rows of {NAME}, by whose norm")):
        play(tmp_path, normed(parametrizations.weight_norm), controls=[first_row])
    assert (tmp_path / "round-01" / "done").exists()


def test_a_run_ends_well_if_only_the_round_after_it_would_be_nan(tmp_path):
    def schedule(round):
        return [1.0, 0.9, 0.5][round]

    play(tmp_path, small_rows, lr=0, schedule=schedule)
    assert (tmp_path / "round-01" / "done").exists()
    assert not (tmp_path / "round-01" / "next").exists()
