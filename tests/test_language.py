"""The GPT, the module that trains it, its optimizer and its schedule."""

import math
import re
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from app import run
from hydra.utils import instantiate
from lightning import seed_everything
from omegaconf import OmegaConf
from torch import nn
from torch.nn.functional import cross_entropy, gelu, layer_norm
from torch.utils.data import DataLoader

from lt_lightning.exchange.ticketfile import read
from lt_lightning.models import LanguageModel, decay_matrices, gpt, warmup_cosine
from lt_lightning.models.language_model import NO_TARGET
from lt_lightning.records import read_records

CONF = Path(__file__).parents[1] / "conf" / "model"
BLOCK = ("attention.qkv.weight", "attention.projection.weight", "mlp.hidden.weight", "mlp.projection.weight")


def tokens(*shape, vocabulary=11) -> torch.Tensor:
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(0))


def small(**changes) -> nn.Module:
    seed_everything(0)
    return gpt(11, **{"context": 8, "layers": 2, "heads": 2, "width": 12} | changes)


# ---- the network


def test_the_number_of_weights():
    with torch.device("meta"):
        counts = {name: weight.numel() for name, weight in gpt(65).named_parameters()}
    matrices = sum(count for name, count in counts.items() if name.endswith(BLOCK))
    assert matrices == 4 * 12 * 128**2 == 786_432
    assert sum(counts.values()) == matrices + 2 * 65 * 128 + 64 * 128 + 9 * 128


def test_the_names_that_patterns_are_written_against():
    block = ["attention_norm.weight", *BLOCK[:2], "mlp_norm.weight", *BLOCK[2:]]
    names = [f"blocks.{n}.{name}" for n in range(2) for name in block]
    expected = ["tokens.weight", "positions.weight", *names, "norm.weight", "output.weight"]
    assert [name for name, _ in small().named_parameters()] == expected


def test_weights_are_drawn_as_published():
    seed_everything(0)
    for name, weight in gpt(65, layers=3).named_parameters():
        if weight.dim() == 1:
            assert (weight == 1).all()
            continue
        std = 0.02 / math.sqrt(6) if "projection" in name else 0.02
        assert weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * weight.numel())), name
        assert weight.mean().item() == pytest.approx(0, abs=5 * std / math.sqrt(weight.numel())), name


def test_it_computes_what_is_written_of_it():
    network = small()
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    value = dict(network.named_parameters())
    text = tokens(3, 5)

    def normalized(stream, name):
        return layer_norm(stream, (12,)) * value[f"{name}.weight"]

    stream = value["tokens.weight"][text] + value["positions.weight"][:5]
    for n in range(2):
        at, inner = f"blocks.{n}", normalized(stream, f"blocks.{n}.attention_norm")
        read = torch.zeros_like(stream)
        for head in range(2):
            rows = value[f"{at}.attention.qkv.weight"][18 * head : 18 * (head + 1)]
            query, key, given = (inner @ part.T for part in rows.split(6))
            for time in range(5):
                scores = (query[:, time, None] * key[:, : time + 1]).sum(-1) / math.sqrt(6)
                read[:, time, 6 * head : 6 * head + 6] = (scores.softmax(-1)[..., None] * given[:, : time + 1]).sum(1)
        stream = stream + read @ value[f"{at}.attention.projection.weight"].T
        inner = gelu(normalized(stream, f"{at}.mlp_norm") @ value[f"{at}.mlp.hidden.weight"].T)
        stream = stream + inner @ value[f"{at}.mlp.projection.weight"].T
    expected = normalized(stream, "norm") @ value["output.weight"].T
    torch.testing.assert_close(network(text), expected, rtol=1e-3, atol=1e-3)


def test_no_position_sees_a_later_one():
    network, text = small(), tokens(2, 8)
    changed = text.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    assert torch.equal(network(text)[:, :5], network(changed)[:, :5])
    assert not torch.equal(network(text)[:, 5:], network(changed)[:, 5:])


def test_dropout_acts_in_training_alone():
    network, text = small(dropout=0.5), tokens(2, 8)
    assert not torch.equal(network(text), network(text))
    network.eval()
    assert torch.equal(network(text), small().eval()(text))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gpt(11, heads=3, width=128), "width 128 does not divide by 3 heads, expected a multiple: set model"),
        (lambda: gpt(11, layers=0), "layers is 0, expected at least 1: set model.network.layers=1"),
        (lambda: gpt(11, heads=0), "heads is 0, expected at least 1"),
        (lambda: gpt(11, dropout=1.0), "dropout is 1.0, expected 0 <= dropout < 1"),
        (lambda: small()(tokens(1, 9)), "9 tokens in a row, expected at most context=8: set data.context and model"),
    ],
)  # fmt: skip
def test_impossible_sizes_are_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


# ---- optimizer and schedule


def test_matrices_decay_and_norms_do_not():
    network = small()
    optimizer = decay_matrices(network.parameters(), partial(torch.optim.AdamW, fused=True), 0.1, lr=1e-3)
    decay = {id(each): group["weight_decay"] for group in optimizer.param_groups for each in group["params"]}
    assert {name: decay[id(each)] for name, each in network.named_parameters()} == {
        name: 0.0 if "norm" in name else 0.1 for name, _ in network.named_parameters()
    }


def test_a_group_without_parameters_is_left_out():
    layer = nn.Linear(2, 2, bias=False)
    [group] = decay_matrices(layer.parameters(), torch.optim.SGD, 0.1, lr=1.0).param_groups
    assert group["weight_decay"] == 0.1


def rates(length: int, **schedule) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    scheduler = warmup_cosine(optimizer, **schedule)
    seen = []
    for _ in range(length):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_the_rate_rises_then_falls_along_a_cosine_and_stays():
    cosine = [0.2 * (0.1 + 0.9 * (1 + math.cos(math.pi * n / 4)) / 2) for n in range(5)]
    assert rates(10, warmup_steps=3, steps=7) == pytest.approx([0.05, 0.1, 0.15, *cosine, 0.02, 0.02])
    assert rates(3, warmup_steps=0, steps=2, lowest=0) == pytest.approx([0.2, 0.1, 0.0], abs=1e-9)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"warmup_steps": 100, "steps": 50}, "warmup_steps is 100 and steps 50, expected 0 <= warmup_steps < steps"),
        ({"warmup_steps": -1, "steps": 50}, "warmup_steps is -1 and steps 50"),
        ({"warmup_steps": 1, "steps": 5, "lowest": 2}, "lowest is 2, expected a fraction of the rate in [0, 1]"),
    ],
)  # fmt: skip
def test_impossible_schedules_are_refused(schedule, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        rates(1, **schedule)


# ---- the module


def batches(*lengths) -> DataLoader:
    """Batches of one row of eight tokens; so many count."""
    made = [(tokens(1, 8), (tokens(1, 8) + 1) % 11) for _ in lengths]
    for (_, targets), length in zip(made, lengths, strict=True):
        targets[:, length:] = NO_TARGET
    return DataLoader(made, batch_size=None)


def trainer(tmp_path, **options) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "logger": False}
    return L.Trainer(**quiet, enable_checkpointing=False, default_root_dir=tmp_path, **options)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*The number of training batches")
class TestLanguageModel:
    def test_each_token_weighs_the_same_and_filled_up_batches_nothing(self, tmp_path):
        model, given = LanguageModel(small(), partial(torch.optim.SGD, lr=0)), batches(8, 3, 0)
        start = batches(8)
        fit = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0)
        fit.fit(model, start, given)
        [tested] = fit.test(model, given, verbose=False)
        text = torch.cat([tokens for tokens, _ in given]), torch.cat([targets for _, targets in given])
        expected = cross_entropy(model(text[0]).flatten(0, 1), text[1].flatten()).item()
        assert fit.callback_metrics["test/loss"].item() == tested["test/loss"] == pytest.approx(expected)
        [(shown, follows)] = start
        first = cross_entropy(model(shown).flatten(0, 1), follows.flatten()).item()
        fit = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0)
        fit.fit(model, start, given)
        assert {name: value.item() for name, value in fit.callback_metrics.items()} == {
            "train/loss": pytest.approx(first), "val/loss": pytest.approx(expected),
        }  # fmt: skip

    def test_the_state_is_the_network_alone(self):
        model = LanguageModel(small(), torch.optim.SGD)
        assert list(model.state_dict()) == [f"network.{name}" for name in small().state_dict()]

    def test_another_interval_is_refused(self):
        with pytest.raises(ValueError, match="scheduler_interval is 'batch', expected 'step' or 'epoch'"):
            LanguageModel(small(), torch.optim.SGD, scheduler_interval="batch")

    def test_its_configuration_makes_it(self):
        assert (CONF / "gpt.yaml").read_text().startswith("# python train.py model=gpt data=shakespeare")
        data = {"vocabulary": 65, "context": 64}
        model = instantiate(OmegaConf.create({"data": data, "model": OmegaConf.load(CONF / "gpt.yaml")}).model)
        made = model.configure_optimizers()
        assert type(made["optimizer"]) is torch.optim.AdamW
        groups = [(g["lr"], list(g["betas"]), g["weight_decay"], g["fused"]) for g in made["optimizer"].param_groups]
        warm = 1e-3 / 101
        assert groups == [(pytest.approx(warm), [0.9, 0.99], decay, True) for decay in (0.1, 0.0)]
        assert made["lr_scheduler"]["interval"] == "step"


# ---- the experiment


def test_a_ticket_of_the_gpt_starts_from_the_step_it_rewinds_to(plays, tmp_path):
    options = [f"data.path={plays}", f"data.vocabulary={len(set(plays.read_text()))}", "data.context=16", "threads=1"]
    options += ["model.network.width=16", "model.network.layers=1", "trainer.max_steps=30", "prune.rounds=1"]
    options += ["model.scheduler.warmup_steps=5", "prune.rewind_step=5 steps", "trainer.val_check_interval=10"]
    run(tmp_path / "whole", "experiment=lth_gpt_shakespeare", *options)
    dense, ticket = read_records(tmp_path / "whole" / "records.csv")
    assert (dense["steps"], ticket["steps"], ticket["density"]) == (30, 30, pytest.approx(0.8, abs=1e-3))
    masks = read(tmp_path / "whole" / "round-01" / "ticket.safetensors").masks
    assert set(masks) == {f"network.blocks.0.{name}" for name in BLOCK}
