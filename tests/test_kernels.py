"""Compiled networks, and images with their channels last: other kernels, the same tickets."""

from functools import partial
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn
from torch.optim import SGD

from lt_lightning import load_ticket, lottery
from lt_lightning.data import Images, Splits
from lt_lightning.disk.rundir import Checkpoint
from lt_lightning.fit.enforcement import Enforcement
from lt_lightning.models import Classifier, LanguageModel, gpt
from lt_lightning.models.sharding import shard
from lt_lightning.replicates import fit

LAST = {"memory_format": torch.channels_last}


def network():
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )


def make(**options):
    return Classifier(network(), partial(SGD, lr=0.1, momentum=0.9), **options)


def images():
    def source():
        draws = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (80, 3, 8, 8), dtype=torch.uint8, generator=draws)
        labels = torch.randint(0, 10, (80,), generator=draws)
        return Splits(pixels, labels, pixels[:20], labels[:20])

    sizes = {"shape": [3, 8, 8], "num_classes": 10, "batch_size": 20, "val_size": 20, "seed": 0}
    return Images(source, **sizes, mean=[0.5], std=[0.25])


def trainer(directory, callbacks=(), **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    machine = {"accelerator": "cpu", "devices": 1, "use_distributed_sampler": False, "enable_checkpointing": False}
    place = {"default_root_dir": directory, "callbacks": list(callbacks), "max_epochs": 2}
    return L.Trainer(**(place | quiet | machine | options))


def play(directory, make, rounds=2, **options):
    """Fit every round; the models at their ends."""
    models = []
    for ticket in lottery(make, rounds=rounds, directory=directory, **options):
        trainer(ticket.directory, [ticket]).fit(ticket.model, images(), ckpt_path=ticket.ckpt_path)
        models.append(ticket.model)
    return models


def end(directory, round):
    return Checkpoint(directory / f"round-{round:02}" / "final.ckpt")["state_dict"]


def test_channels_last_gives_the_same_tickets_up_to_rounding(tmp_path):
    models = play(tmp_path / "last", partial(make, channels_last=True))
    play(tmp_path / "first", make)
    for round in range(3):
        last, first = (end(tmp_path / order, round) for order in ("last", "first"))
        assert list(last) == list(first)
        for name, value in first.items():
            torch.testing.assert_close(last[name], value, rtol=1e-4, atol=1e-5)
        masks = [
            load_ticket(tmp_path / order / f"round-{round:02}/ticket.safetensors").masks for order in ("last", "first")
        ]
        assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[1])
        assert models[round].network[2].weight.is_contiguous(**LAST)  # also where it was rewound
    pruned = ~masks[0]["network.2.weight"]
    assert pruned.any()
    assert not end(tmp_path / "last", 2)["network.2.weight"][pruned].any()


def test_channels_last_changes_no_output_and_takes_the_weights_of_others():
    torch.manual_seed(0)
    first, last = make(), make(channels_last=True)
    last.load_state_dict(first.state_dict())
    inputs = torch.rand(2, 3, 8, 8)
    seen = []
    last.network[0].register_forward_pre_hook(lambda layer, inputs: seen.extend(inputs))
    torch.testing.assert_close(last(inputs), first(inputs), rtol=1e-5, atol=1e-6)
    assert seen[0].is_contiguous(**LAST)
    assert not seen[0].is_contiguous()


def test_a_mask_lies_in_memory_as_its_weight_does():
    weight = nn.Parameter(torch.ones(4, 3, 2, 2).contiguous(**LAST))
    mask = torch.rand(4, 3, 2, 2) < 0.5
    (held,) = Enforcement({"weight": mask}, {"weight": weight})._held.values()
    assert held.bits.stride() == weight.stride() != mask.stride()
    assert torch.equal(held.bits, torch.where(mask, -1, 0))


def test_a_compiled_network_is_compiled_once_and_gives_the_same_bits(tmp_path):
    torch._dynamo.reset()
    graphs, counts = [], []

    def backend(graph, inputs):  # runs what was traced, operation by operation
        graphs.append(graph)
        return graph.forward

    for ticket in lottery(partial(make, compile={"backend": backend}), rounds=3, directory=tmp_path / "compiled"):
        trainer(ticket.directory, [ticket]).fit(ticket.model, images(), ckpt_path=ticket.ckpt_path)
        counts.append(len(graphs))
    assert counts == [counts[0]] * 4
    assert 1 <= counts[0] <= 2  # one for training, one for evaluation
    play(tmp_path / "plain", make, rounds=3)
    for round in range(4):
        compiled, plain = (end(tmp_path / way, round) for way in ("compiled", "plain"))
        assert list(compiled) == list(plain)
        assert all(torch.equal(compiled[name], plain[name]) for name in plain)


@pytest.mark.slow
def test_torch_s_own_compiler_gives_the_same_tickets_up_to_rounding(tmp_path):
    torch._dynamo.reset()
    play(tmp_path / "compiled", partial(make, compile={}), rounds=2)
    play(tmp_path / "plain", make, rounds=2)
    for round in range(3):
        compiled, plain = (end(tmp_path / way, round) for way in ("compiled", "plain"))
        for name in plain:
            torch.testing.assert_close(compiled[name], plain[name], rtol=1e-4, atol=1e-5)


def test_a_language_model_is_compiled_too():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.manual_seed(0)
    net = gpt(vocabulary=5, context=4, layers=1, heads=1, width=8)
    tokens = torch.tensor([[0, 1, 2, 3]])
    expected = net(tokens)
    model = LanguageModel(net, partial(SGD, lr=0.1), compile={"backend": backend})
    torch.testing.assert_close(model(tokens), expected)
    assert graphs
    assert not any("_orig_mod" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"compile": {"backend": "eager"}}, "a compiled network, as vmap runs it otherwise: set model.compile=null"),
        ({"channels_last": True}, "channels last, .*: set model.channels_last=false"),
    ],
)
def test_networks_with_other_kernels_are_not_stacked(tmp_path, options, told):
    tickets = [next(lottery(partial(make, **options), rounds=1, directory=tmp_path / f"{n}")) for n in range(2)]
    trainers = [trainer(tmp_path, [ticket]) for ticket in tickets]
    with pytest.raises(ValueError, match=f"replicates cannot be trained together with {told}"):
        fit(partial(trainer, tmp_path), trainers, tickets, [images()] * 2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"compile": {"backend": "eager"}}, "a compiled network: set model.compile=null"),
        ({"channels_last": True}, "weights with channels last: set model.channels_last=false"),
    ],
)
def test_networks_with_other_kernels_are_not_shared_by_processes(options, told):
    with pytest.raises(ValueError, match=f"processes cannot share {told}"):
        shard(make(**options).network, SimpleNamespace())


def test_compiled_layers_are_not_made_sparse(tmp_path):
    with pytest.raises(ValueError, match=r"torch.compile: compiled layers do not call what they are replaced with"):
        play(tmp_path, partial(make, compile={"backend": "eager"}), rounds=1, sparse="auto")
