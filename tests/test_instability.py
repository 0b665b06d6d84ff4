"""Copies with other orders of the data, and the barrier between them."""

import csv
import json
import math
import shutil

import lightning as L
import pytest
import torch
from app import run as run_train
from tiny import STEPS_PER_EPOCH, Tiny, data, loaders, play

from lt_lightning import keep_weights, load_ticket, redraw
from lt_lightning.__main__ import main
from lt_lightning.analysis import copies, evaluation, instability
from lt_lightning.analysis.recipe import Recipe, of_run
from lt_lightning.controls import Ingredients
from lt_lightning.disk import parts
from lt_lightning.disk.rundir import Checkpoint, RunDirectory, model_state
from lt_lightning.lottery import once
from lt_lightning.records import read_records
from lt_lightning.seeding import derive

EPOCHS = 2


class Data(L.LightningDataModule):
    """Shuffled by the global generator."""

    def train_dataloader(self):
        return loaders()[0]

    def val_dataloader(self):
        return loaders()[1]

    test_dataloader = val_dataloader


def make_trainer(**options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(max_epochs=EPOCHS, accelerator="cpu", devices=1, log_every_n_steps=2, **quiet, **options)


RECIPE = Recipe(Tiny, lambda seed: Data(), make_trainer)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A run with the rewind point in the middle of an epoch, and one pruned round."""
    path = tmp_path_factory.mktemp("instability") / "run"
    play(path, rewind_step=3, test=False, options={"max_epochs": EPOCHS})
    return path


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run", symlinks=True)


# The barrier, on functions that are known


def test_the_barrier_of_two_minima_of_a_double_well():
    well = lambda state: {"loss": float((state["w"] ** 2 - 1) ** 2)}  # noqa: E731
    rows = instability.line({"w": torch.tensor(-1.0)}, {"w": torch.tensor(1.0)}, well, 31)
    assert [row["alpha"] for row in rows] == [n / 30 for n in range(31)]
    assert instability.barrier([row["loss"] for row in rows]) == pytest.approx(1.0)  # at w = 0


def test_the_barrier_of_a_quadratic_is_what_its_higher_end_lies_above_the_mean():
    bowl = lambda state: {"loss": float(((state["w"] - 1) ** 2).sum())}  # noqa: E731
    rows = instability.line({"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([3.0, 1.0])}, bowl)
    assert len(rows) == 30
    losses = [row["loss"] for row in rows]
    assert (losses[0], losses[-1]) == (0.0, 4.0)
    assert instability.barrier(losses) == 4.0 - 2.0
    middle = instability.line({"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([2.0, 1.0])}, bowl)
    assert instability.barrier([row["loss"] for row in middle]) == 0.0


def test_the_ends_of_a_line_are_exact_and_counters_are_not_mixed():
    one = {"w": torch.tensor([0.1, 0.7]), "n": torch.tensor(3)}
    other = {"w": torch.tensor([0.3, -1e-8]), "n": torch.tensor(9)}
    assert torch.equal(instability.interpolate(one, other, 0.0)["w"], one["w"])
    assert torch.equal(instability.interpolate(one, other, 1.0)["w"], other["w"])
    assert instability.interpolate(one, other, 0.5)["n"] == 3


def test_a_line_has_more_than_its_ends():
    with pytest.raises(ValueError, match=r"^2 places on the line are too few: take 3 or more"):
        instability.line({}, {}, lambda state: {}, 2)


def rows_of(errors, losses=None, **about):
    about = {"round": 0, "step": 0, "density": 1.0, "order_a": 1, "order_b": 2} | about
    losses = losses or [None] * len(errors)
    return [
        about | {"alpha": n / 2, "error": e, "loss": x} for n, (e, x) in enumerate(zip(errors, losses, strict=True))
    ]


def test_barriers_are_told_by_pair_and_judged_over_all():
    rows = rows_of([0.02, 0.04, 0.03]) + rows_of([0.02, 0.05, 0.02], order_b=3)
    first, second = instability.summarize(rows)
    assert (first["order_b"], first["error_barrier"], first["stable"]) == (2, pytest.approx(0.015), True)
    assert (second["order_b"], second["error_barrier"], second["stable"]) == (3, pytest.approx(0.03), False)
    assert (first["error_of_ends"], first["loss_barrier"]) == (pytest.approx(0.025), None)
    assert "2.25 (1.5 to 3)" in instability.text(rows)
    assert instability.text(rows).endswith("unstable")
    assert instability.text(rows_of([0.02, 0.039, 0.02])).endswith("stable (< 2)")


def test_without_an_accuracy_there_is_the_barrier_of_the_loss_and_no_verdict(tmp_path):
    rows = rows_of([None] * 3, [1.0, 1.5, 1.0])
    assert instability.summarize(rows)[0]["loss_barrier"] == 0.5
    assert instability.summarize(rows)[0]["stable"] is None
    assert instability.text(rows).endswith("no accuracy was tested")
    assert instability.draw(tmp_path / "loss.png", rows).exists()
    with pytest.raises(ValueError, match="neither an accuracy nor a loss"):
        instability.draw(tmp_path / "none.png", rows_of([None] * 3))


# Copies


def test_a_copy_with_the_order_of_the_run_repeats_it(tmp_path):
    """What differs between copies is what the seed decides, and nothing else."""
    again = RunDirectory(tmp_path / "again")
    play(tmp_path / "run", test=False, options={"max_epochs": EPOCHS})
    for round in (0, 1):
        start = copies.find_start(tmp_path / "run", round, None)
        files = again.arm(round, "copy")
        copies._write_start(start.checkpoint, files.start)
        ingredients = Ingredients(round, start.masks, str(files.start), 0, 0)
        for ticket in once(copies._plan(again, start.masks, 0), Tiny, "copy", ingredients):
            trainer = make_trainer(default_root_dir=ticket.directory, callbacks=[ticket], logger=False)
            trainer.fit(ticket.model, Data(), ckpt_path=ticket.ckpt_path)
        ours, theirs = (
            Checkpoint(each.final)["state_dict"] for each in (files, RunDirectory(tmp_path / "run").arm(round))
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [row["steps"] for row in read_records(again.records)] == [EPOCHS * STEPS_PER_EPOCH] * 2


def test_copies_differ_and_are_held_by_the_masks(run):
    rows = instability.measure(run, RECIPE, round=1, places=3)
    folder = run / "analysis" / "instability" / "step-3"
    ends = [model_state(Checkpoint(folder / "round-01" / f"order-{n}" / "final.ckpt")) for n in (1, 2)]
    masks = load_ticket(run / "round-01" / "ticket.safetensors").masks
    for name, mask in masks.items():
        assert not torch.equal(*(end[name] for end in ends))
        assert all(not end[name][~mask].any() and end[name][mask].all() for end in ends)
    assert [(row["round"], row["step"], row["order_a"], row["order_b"], row["alpha"]) for row in rows] == [
        (1, 3, 1, 2, 0.0), (1, 3, 1, 2, 0.5), (1, 3, 1, 2, 1.0),
    ]  # fmt: skip
    assert rows[0]["density"] == pytest.approx(106 / 132)
    assert not (folder / "round-01" / "order-1" / "start.ckpt").exists()


def test_the_rest_of_the_epoch_at_hand_is_random_too(run):
    """A point in the middle of an epoch holds random state, with which all copies would drop out alike."""
    start = copies.find_start(run, 0, 3)
    assert "Ticket" in Checkpoint(start.checkpoint)["callbacks"]
    copies._write_start(start.checkpoint, run / "start.ckpt")
    assert Checkpoint(run / "start.ckpt")["callbacks"] == {}
    assert Checkpoint(run / "start.ckpt")["global_step"] == 3


def test_three_orders_are_three_pairs_and_nothing_is_done_twice(run):
    told = []
    rows = instability.measure(run, RECIPE, step=0, orders=2, places=3, tell=told.append)
    assert told == [
        "round 0 from step 0: training copy 1",
        "round 0 from step 0: training copy 2",
        "round 0 from step 0: evaluating 3 weights between copies 1 and 2",
    ]
    told.clear()
    more = instability.measure(run, RECIPE, step=0, orders=3, places=3, tell=told.append)
    assert told == [
        "round 0 from step 0: training copy 3",
        "round 0 from step 0: evaluating 3 weights between copies 1 and 3",
        "round 0 from step 0: evaluating 3 weights between copies 2 and 3",
    ]
    assert more[:3] == rows
    assert {(row["order_a"], row["order_b"]) for row in more} == {(1, 2), (1, 3), (2, 3)}


class Stop(Exception):
    pass


class StopAt(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Stop


def test_an_interrupted_copy_goes_on_to_the_same_bits(run, tmp_path, monkeypatch):
    monkeypatch.setattr(copies, "AUTO", copies.parse_step("2 steps"))
    whole = instability.measure(run, RECIPE, round=1, places=3, output=tmp_path / "whole")
    broken = Recipe(Tiny, RECIPE.make_data, make_trainer, lambda: [StopAt(7)])
    with pytest.raises(Stop):
        instability.measure(run, broken, round=1, places=3, output=tmp_path / "broken")
    assert (tmp_path / "broken" / "step-3" / "round-01" / "order-1" / "last.ckpt").exists()
    again = instability.measure(run, RECIPE, round=1, places=3, output=tmp_path / "broken")
    assert again == whole


def test_another_run_is_not_taken_for_this_one(run, tmp_path):
    instability.measure(run, RECIPE, places=3, output=tmp_path / "out")
    play(tmp_path / "other", rewind_step=3, seed=1, test=False, options={"max_epochs": EPOCHS})
    with pytest.raises(
        ValueError, match="holds copies of another ticket of round 0 from step 3: choose another --output"
    ):
        instability.measure(tmp_path / "other", RECIPE, places=3, output=tmp_path / "out")


def test_where_copies_start(run, tmp_path):
    assert [copies.find_start(run, *each).name for each in ((0, None), (1, None), (0, 0), (1, 0))] == [
        "step-3", "step-3", "step-0", "step-0",
    ]  # fmt: skip
    play(tmp_path / "kept", rewind=keep_weights, test=False, options={"max_epochs": 1})
    start = copies.find_start(tmp_path / "kept", 1, None)
    assert (start.name, start.checkpoint) == ("step-0-trained-before", tmp_path / "kept" / "round-01" / "start.ckpt")


def test_what_a_run_does_not_have_is_said_so(run, tmp_path):
    with pytest.raises(ValueError, match=r"has no point at step 5, only at 0, 3: .* prune\.rewind_step=5\.$"):
        copies.find_start(run, 0, 5)
    with pytest.raises(ValueError, match=r"has no ticket of round 4 yet; it has those of rounds 0, 1\.$"):
        copies.find_start(run, 4, None)
    with pytest.raises(ValueError, match=r"^orders=1 must be 2 or more"):
        instability.measure(run, RECIPE, orders=1)
    play(tmp_path / "fresh", rewind=redraw, test=False, options={"max_epochs": 1})
    with pytest.raises(ValueError, match=r"round 1 of .* began with fresh weights"):
        copies.find_start(tmp_path / "fresh", 1, None)


# Evaluation


def test_the_statistics_of_batch_norm_are_those_of_the_training_data(tmp_path):
    module = Tiny()
    seen = []

    class Watched(Tiny):
        def on_test_start(self):
            seen.append((self.norm.running_mean.clone(), self.norm.running_var.clone(), self.norm.momentum))

    evaluate = evaluation.evaluator(Recipe(Watched, RECIPE.make_data, make_trainer), tmp_path, 0)
    state = module.state_dict() | {"norm.running_mean": torch.full((12,), 7.0)}
    found = evaluate(state)
    inputs = data().tensors[0]
    with torch.no_grad():
        hidden = module.hidden(inputs)
    mean, variance, momentum = seen[0]
    torch.testing.assert_close(mean, hidden.mean(0), rtol=0, atol=1e-5)  # five batches of 20
    torch.testing.assert_close(variance, hidden.var(0), rtol=0.25, atol=0.0)  # as the mean over batches
    assert momentum == 0.1
    assert evaluate(state) == found  # always the same batches
    with torch.no_grad():
        normed = (hidden - mean) / torch.sqrt(variance + 1e-5)
        right = module.output(torch.relu(normed)).argmax(1) == data().tensors[1]
    assert found == {"error": pytest.approx(1 - float(right.float().mean()), abs=1e-6), "loss": None}


def test_a_module_that_tests_nothing_is_validated(tmp_path):
    class Untested(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.output = torch.nn.Linear(8, 3)

        def validation_step(self, batch, index):
            self.log("val/loss", torch.nn.functional.cross_entropy(self.output(batch[0]), batch[1]))

    evaluate = evaluation.evaluator(Recipe(Untested, RECIPE.make_data, make_trainer), tmp_path, 0)
    zero = {name: torch.zeros_like(value) for name, value in Untested().state_dict().items()}
    assert evaluate(zero) == {"error": None, "loss": pytest.approx(math.log(3))}


# From train.py's config.yaml


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "run"
    run_train(path, "prune.rounds=1", "prune.controls=[]", "trainer.max_epochs=1")
    return path


def test_one_command(digits, tmp_path, capsys):
    command = ["analyse", "instability", str(digits), "--round", "0", "1", "--places", "5", "--output", str(tmp_path)]
    assert main(command) == 0
    said = capsys.readouterr()
    assert [line.split(":")[1] for line in said.err.splitlines()[:2]] == [" round 0 from step 0"] * 2
    assert "stable (< 2)" in said.out
    for name in ("instability.csv", "barriers.csv", "instability.png"):
        assert f"written     {tmp_path / name}" in said.out
    with open(tmp_path / "barriers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["round"], row["step"], row["order_a"], row["order_b"]) for row in rows] == [
        ("0", "0", "1", "2"), ("1", "0", "1", "2"),
    ]  # fmt: skip
    assert main([*command, "--json"]) == 0
    again = capsys.readouterr()
    assert again.err == ""
    assert [row["error_barrier"] for row in json.loads(again.out)["instability"]] == [
        float(row["error_barrier"]) for row in rows
    ]


def test_the_order_of_our_data_modules_is_the_copys(digits):
    recipe = of_run(digits)
    first = [next(iter(_ready(recipe.make_data(seed)).train_dataloader()))[1] for seed in (1, 1, 2)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert derive(0, "order", 1) != derive(0, "order", 2)


def _ready(module):
    module.setup("fit")
    return module


@pytest.mark.parametrize("change", ["trainer.max_epochs=1", "seed=3", "data.path", "model.optimizer.lr=1"])
def test_only_what_changes_no_result_can_be_set(digits, change, capsys):
    assert main(["analyse", "instability", str(digits), "--set", change]) == 2
    assert f"--set {change}: only what changes no result can be set" in capsys.readouterr().err


def test_a_project_of_its_own_is_told_what_to_call(run, capsys):
    assert main(["analyse", "instability", str(run)]) == 2
    said = capsys.readouterr().err
    assert "config.yaml does not tell how to make the model, since train.py has not made this run" in said
    assert "call lt_lightning.analysis.instability.measure(run, Recipe(make_model, make_data, make_trainer))" in said


def test_all_steps_are_looked_for_before_anything_is_trained(digits, tmp_path, capsys):
    assert main(["analyse", "instability", str(digits), "--step", "0", "9", "--output", str(tmp_path)]) == 2
    assert "has no point at step 9, only at 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_in_parts_give_the_same(run, tmp_path):
    """As a sharded run leaves them: directories."""
    whole = instability.measure(run, RECIPE, step=0, places=3, output=tmp_path / "whole")
    point = run / "points" / "step-0.ckpt"
    content = dict(Checkpoint(point))
    names = [name for name, _ in Tiny().named_parameters()]
    (optimizer,) = content["optimizer_states"]
    groups = [{**group, "params": [names[n] for n in group["params"]]} for group in optimizer["param_groups"]]
    content["optimizer_states"] = [optimizer | {"param_groups": groups}]
    point.unlink()
    parts.write(content, point)
    assert point.is_dir()
    assert instability.measure(run, RECIPE, step=0, places=3, output=tmp_path / "parts") == whole
