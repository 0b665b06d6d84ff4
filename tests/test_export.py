"""Tickets in the forms of others: torch.nn.utils.prune, state dicts, ONNX."""

from functools import partial
from importlib import import_module

import pytest
import torch
from safetensors.torch import load_file
from test_apply import KEPT, Net, Tied, ticket_of
from torch import nn
from torch.nn.utils import parametrizations, prune

from lt_lightning import to_onnx, to_torch_prune
from lt_lightning.exchange.export import in_prune_form, masked, write_weights
from lt_lightning.models import Classifier, gpt, lenet_300_100
from lt_lightning.prunable import find_prunable

MASKS = {"body.weight": KEPT, "head.weight": KEPT.t()}


def random_masks(model):
    return {name: torch.rand(each.shape) < 0.5 for name, each in find_prunable(model).items()}


def test_the_prune_form_has_masks_as_buffers_and_torch_takes_it_from_there():
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pairs = to_torch_prune(model, MASKS)
    assert pairs == [(model.body, "weight"), (model.head, "weight")]
    assert all(prune.is_pruned(layer) for layer, _ in pairs)
    assert torch.equal(model.body.weight_orig, before["body.weight"])
    assert torch.equal(model.body.weight_mask, KEPT.float())
    assert torch.equal(model.body.weight, before["body.weight"] * KEPT)
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=2)  # of the 8 that are left
    assert int(model.body.weight_mask.sum() + model.head.weight_mask.sum()) == 6
    assert not (model.body.weight_mask.bool() & ~KEPT).any()


def test_pruned_weights_stay_zero_in_training_and_after_the_way_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    masks = {"0.weight": KEPT, "2.weight": KEPT.t()}
    pairs = to_torch_prune(model, masks)
    optimizer = torch.optim.Adam(model.parameters(), 0.1, weight_decay=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 2)).square().mean().backward()
        optimizer.step()
    found = model(torch.ones(1, 2))
    for layer, name in pairs:
        prune.remove(layer, name)
    assert sorted(model.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    for name, mask in masks.items():
        assert (model.get_parameter(name) == 0).equal(~mask)
    assert torch.equal(model(torch.ones(1, 2)), found)


def test_a_tied_weight_is_pruned_in_each_layer_and_stays_tied():
    model = Tied()
    pairs = to_torch_prune(model, {"encoder.weight": KEPT})
    assert pairs == [(model.encoder, "weight"), (model.decoder, "weight")]
    assert model.encoder.weight_orig is model.decoder.weight_orig
    assert torch.equal(model.decoder.weight, model.encoder.weight)
    assert (model.decoder.weight[~KEPT] == 0).all()


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: nn.Conv2d(2, 4, 3, groups=2), (1, 2, 5, 5)),
        (lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True), (2, 1, 3)),
        (lambda: nn.GRU(3, 4), (2, 1, 3)),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), (3, 1, 8)),
        (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4))), (1, 3)),
        (lambda: nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(3, 4))), (1, 3)),
    ],
    ids=["grouped", "lstm", "gru", "attention", "weight norm", "old weight norm"],
)
@pytest.mark.filterwarnings("ignore")
def test_layers_of_all_kinds_compute_what_they_do_with_their_weights_at_zero(make, inputs):
    torch.manual_seed(0)
    model, x = make(), torch.randn(inputs)
    masks = random_masks(model)
    for mask in masks.values():
        mask[:, 0] = True  # no norm is zero
    pruned = make()
    pruned.load_state_dict(model.state_dict())
    pairs = to_torch_prune(pruned, masks)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).masked_fill_(~mask, 0)

    def output(network):
        found = network(x)
        return found[0] if isinstance(found, tuple) else found

    assert torch.equal(output(pruned), output(model))
    for layer, name in pairs:
        prune.remove(layer, name)
    assert torch.equal(output(pruned), output(model))
    assert pruned.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ({"tail.weight": KEPT}, r"tail.weight is not in the model, and its mask of shape \(3, 2\)"),
        ({"body.weight": KEPT.t()}, r"body.weight is of shape \(3, 2\), and its mask of shape \(2, 3\)"),
    ],
)
def test_masks_of_another_model_are_refused_before_anything_is_pruned(masks, said):
    model = Net()
    with pytest.raises(ValueError, match=said):
        to_torch_prune(model, {"head.weight": KEPT.t()} | masks)
    assert not prune.is_pruned(model)
    to_torch_prune(model, MASKS)
    with pytest.raises(ValueError, match="a model that is not pruned yet"):
        to_torch_prune(model, MASKS)


def test_the_state_dict_in_prune_form_is_that_of_a_pruned_model():
    model = Net()
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    to_torch_prune(model, MASKS)
    expected = model.state_dict()
    found = in_prune_form(plain, MASKS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype for name in found)
    reader = Net()
    for layer in (reader.body, reader.head):
        prune.identity(layer, "weight")
    reader.load_state_dict(found)
    reader.body(torch.ones(1, 2))
    assert torch.equal(reader.body.weight, plain["body.weight"] * KEPT)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.ckpt", "w.bin", "w.safetensors"])
def test_weights_are_written_for_torch_and_as_safetensors(tmp_path, name):
    state = masked(ticket_of(Tied()).state, {"encoder.weight": KEPT, "decoder.weight": KEPT})
    state["decoder.weight"] = state["encoder.weight"]  # one tensor under two names
    write_weights(tmp_path / name, state)
    read = load_file(tmp_path / name) if name.endswith("tensors") else torch.load(tmp_path / name, weights_only=True)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[each], state[each]) for each in state)
    assert sorted(tmp_path.iterdir()) == [tmp_path / name]


def test_other_names_of_files_and_other_masks_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"w.npz: the name must end with .safetensors, or with .pt"):
        write_weights(tmp_path / "w.npz", {})
    with pytest.raises(ValueError) as error:  # noqa: PT011 its whole text is compared
        masked({"w": torch.ones(2), "v": torch.ones(2)}, {"w": KEPT, "u": KEPT})
    assert str(error.value) == (
        "the masks do not fit the weights:\n  u: no such weight; there are w, v\n"
        "  w: the mask is (3, 2), the weight is (2,)\nGive weights of the model that the ticket is of."
    )


def test_onnx_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lt-lightning\[export\]"'):
        to_onnx(Net(), torch.ones(1, 2), tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


NETWORKS = {
    "lenet": (
        lambda: Classifier(lenet_300_100((1, 8, 8)), partial(torch.optim.Adam, lr=1e-3)),
        torch.randn(1, 1, 8, 8),
    ),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)),
        torch.randn(2, 1, 8, 8),
    ),
    "gpt": (lambda: gpt(vocabulary=11, context=8, layers=1, heads=2, width=8), torch.randint(11, (1, 8))),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore")
def test_an_onnx_file_computes_what_the_model_does_and_its_pruned_weights_are_zero(tmp_path, name):
    onnx = pytest.importorskip("onnx", reason='needs onnx: pip install "lt-lightning[export]"')
    pytest.importorskip("onnxscript", reason='needs onnxscript: pip install "lt-lightning[export]"')
    ReferenceEvaluator = import_module("onnx.reference").ReferenceEvaluator
    torch.manual_seed(0)
    make, inputs = NETWORKS[name]
    model = make().train()
    masks = random_masks(model)
    with torch.no_grad():
        for each, mask in masks.items():
            model.get_parameter(each).masked_fill_(~mask, 0)
    to_onnx(model, inputs, tmp_path / "x.onnx")
    assert model.training, "as it was"
    assert sorted(tmp_path.iterdir()) == [tmp_path / "x.onnx"], "one file"
    evaluator = ReferenceEvaluator(str(tmp_path / "x.onnx"))
    batch = torch.cat([inputs, inputs, inputs])  # of another size
    (found,) = evaluator.run(None, {evaluator.input_names[0]: batch.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model.eval()(batch).detach(), rtol=1e-4, atol=1e-5)
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(tmp_path / "x.onnx").graph.initializer}
    zeros = sum(int((value == 0).sum()) for value in stored.values())
    assert zeros >= sum(int((~mask).sum()) for mask in masks.values())
