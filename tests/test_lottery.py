"""The whole loop, end to end, on a tiny network."""

import json
from itertools import pairwise

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from sampling import few
from tiny import STEPS_PER_EPOCH, Tiny, loaders, play, trainer

from lt_lightning import explicit, fine_tune, keep_weights, layerwise, lottery, movement, one_shot, redraw, to_point
from lt_lightning.disk.rundir import Checkpoint, RunDirectory
from lt_lightning.exchange.ticketfile import read
from lt_lightning.records import read_records

slow = pytest.mark.slow


def final(directory, name):
    return Checkpoint(directory / name / "final.ckpt")["state_dict"]


def assert_same_state(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def always_dense(round):
    return 1.0


def records_without_time(directory):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_records(directory / "records.csv")]


# Rewinding: under masks that keep everything, a rewound round repeats the rest of round 0 bit for bit.


@pytest.mark.parametrize(
    "rewind_step",
    few([0, 3, STEPS_PER_EPOCH, 7, "2 epochs", "11 steps"], 1, 4),
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_steps": 13, "max_epochs": -1},
        {"val_check_interval": 1},
        {"max_epochs": 5, "accumulate_grad_batches": 2, "gradient_clip_val": 0.5},
        {"val_check_interval": 3, "check_val_every_n_epoch": None},
        {"max_steps": 13, "max_epochs": -1, "val_check_interval": 2},
        {"max_steps": 13, "max_epochs": -1, "limit_val_batches": 0},
    ],
    ids=["epochs", "steps", "validate-often", "accumulate-clip", "validate-across", "steps-validate", "no-validation"],
)
def test_a_dense_ticket_repeats_round_0_from_the_rewind_point(tmp_path, rewind_step, options):
    models = play(tmp_path, schedule=always_dense, rewind_step=rewind_step, options=options, test=False)
    assert_same_state(final(tmp_path, "round-00"), final(tmp_path, "round-01"))
    first, second = models["round-00"].seen, models["round-01"].seen
    assert second == first[len(first) - len(second) :]
    rows = records_without_time(tmp_path)
    assert rows[0]["steps"] == rows[1]["steps"]
    if rows[1].get("val/loss") is not None:  # the last validation may lie before the rewind point
        assert rows[0]["val/loss"] == rows[1]["val/loss"]


def test_validation_may_draw_random_numbers(tmp_path):
    class Drawing(Tiny):
        def validation_step(self, batch, index):
            super().validation_step(batch, index)
            torch.rand(3)

    options = {"val_check_interval": 1}
    play(tmp_path, model=Drawing, schedule=always_dense, rewind_step=7, options=options, test=False)
    assert_same_state(final(tmp_path, "round-00"), final(tmp_path, "round-01"))


@pytest.mark.parametrize("rewind_step", few([0, 7, "1 epoch"], 1))
def test_workers_make_no_difference(tmp_path, rewind_step):
    play(tmp_path, schedule=always_dense, rewind_step=rewind_step, workers=2, test=False)
    assert_same_state(final(tmp_path, "round-00"), final(tmp_path, "round-01"))


@pytest.mark.parametrize("rewind_step", [0, 7])
def test_weight_averaging_is_rewound_too(tmp_path, rewind_step):
    averaging = {"make_callbacks": lambda: [EMAWeightAveraging(decay=0.8)]}
    play(tmp_path, schedule=always_dense, rewind_step=rewind_step, test=False, **averaging)
    assert_same_state(final(tmp_path, "round-00"), final(tmp_path, "round-01"))


def test_other_callbacks_start_anew(tmp_path):
    def callbacks():
        return [EarlyStopping("val/loss", patience=1), ModelCheckpoint(monitor="val/loss")]

    options = {"enable_checkpointing": True, "max_epochs": 4}
    models = play(tmp_path, rewind_step=3, make_callbacks=callbacks, options=options, model=lambda: Tiny(lr=0.03))
    kept = Checkpoint(tmp_path / "rewind.ckpt")["callbacks"]
    assert list(kept) == ["Ticket"]
    assert len(models["round-01"].seen) > 0


def test_the_rewind_point_is_a_lightning_checkpoint_of_that_step(tmp_path):
    play(tmp_path, rewind_step=7, rounds=1)
    point = Checkpoint(tmp_path / "rewind.ckpt")
    assert (tmp_path / "rewind.ckpt").resolve() == (tmp_path / "points" / "step-7.ckpt").resolve()
    assert (point["global_step"], point["epoch"]) == (7, 1)
    assert point["optimizer_states"][0]["state"][0]["step"] == 7
    assert point["lr_schedulers"][0]["last_epoch"] == 7
    assert "hyper_parameters" not in point
    assert (tmp_path / "points" / "step-0.ckpt").exists()


class Spy(L.Callback):
    """What a fit looks like at its first training step."""

    def on_train_batch_start(self, trainer, module, batch, index):
        if not hasattr(self, "step"):
            self.step, self.epoch, self.index = trainer.global_step, trainer.current_epoch, index
            optimizer = trainer.optimizers[0]
            self.lr = optimizer.param_groups[0]["lr"]
            self.moments = {p: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
            self.weights = {n: p.detach().clone() for n, p in module.named_parameters()}


def first_steps(directory, **arguments):
    spies = []

    def callbacks():
        spies.append(Spy())
        return [spies[-1]]

    models = play(directory, make_callbacks=callbacks, test=False, **arguments)
    return dict(zip(models, spies, strict=True)), models


def test_round_1_starts_with_the_state_of_the_rewind_point_under_the_masks(tmp_path):
    spies, models = first_steps(tmp_path, rewind_step=7)
    spy, point = spies["round-01"], Checkpoint(tmp_path / "rewind.ckpt")
    masks = read(tmp_path / "round-01" / "ticket.safetensors").masks
    assert (spy.step, spy.epoch, spy.index) == (7, 1, 2)
    assert spy.lr == pytest.approx(0.01 * 0.7)
    for index, (name, weight) in enumerate(spy.weights.items()):
        mask = masks.get(name, torch.ones(weight.shape))
        assert torch.equal(weight, point["state_dict"][name] * mask)
        moments = spy.moments[dict(models["round-01"].named_parameters())[name]]
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(moments[key], point["optimizer_states"][0]["state"][index][key] * mask)


def test_a_fresh_optimizer_starts_on_the_advanced_schedule(tmp_path):
    from functools import partial

    spies, _ = first_steps(tmp_path, rewind_step=7, rewind=partial(to_point, rewind_optimizer=False))
    assert spies["round-01"].moments == {}
    assert spies["round-01"].lr == pytest.approx(0.01 * 0.7)


def test_learning_rate_rewinding_keeps_weights_and_rewinds_the_rest(tmp_path):
    spies, _ = first_steps(tmp_path, rewind_step=7, rewind=keep_weights)
    spy, trained = spies["round-01"], final(tmp_path, "round-00")
    masks = read(tmp_path / "round-01" / "ticket.safetensors").masks
    assert (spy.step, spy.lr) == (7, pytest.approx(0.01 * 0.7))
    assert torch.equal(spy.weights["hidden.weight"], trained["hidden.weight"] * masks["hidden.weight"])
    assert torch.equal(spy.weights["norm.weight"], trained["norm.weight"])


def test_fine_tuning_holds_the_learning_rate_where_it_ended(tmp_path):
    rates = []

    class Rates(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    models = play(tmp_path, rewind=fine_tune, make_callbacks=lambda: [Rates()], test=False, rounds=2)
    ended = 0.01 * 0.7**3
    assert rates[:15] != [rates[0]] * 15
    assert rates[15:] == [pytest.approx(ended)] * 30
    assert len(models["round-02"].seen) == 15


def test_redrawing_starts_from_fresh_weights_of_another_seed(tmp_path):
    spies, _ = first_steps(tmp_path, rewind=redraw, rewind_step=7, rounds=2)
    weights = [spies[name].weights["hidden.bias"] for name in ("round-00", "round-01", "round-02")]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert spies["round-01"].step == 0


# Masks


def test_pruned_weights_are_zero_at_every_step_validation_and_checkpoint(tmp_path):
    class Watch(L.Callback):
        looks = 0

        def look(self, trainer, module):
            ticket = next(c for c in trainer.callbacks if type(c).__name__ == "Ticket")
            for name, mask in ticket.masks.items():
                weight = module.get_parameter(name)
                assert not weight[~mask].any(), name
                state = trainer.optimizers[0].state.get(weight, {})
                assert all(not v[~mask].any() for v in state.values() if v.shape == mask.shape)
            Watch.looks += 1

        def on_train_batch_end(self, trainer, module, *_):
            self.look(trainer, module)

        def on_validation_start(self, trainer, module):
            self.look(trainer, module)

    options = {"gradient_clip_val": 0.1, "val_check_interval": 2}
    play(tmp_path, make_callbacks=lambda: [Watch()], options=options, rounds=3, rewind_step=4, keep_last=True)
    assert Watch.looks > 60
    for path in [*tmp_path.glob("round-0[123]/final.ckpt"), *tmp_path.glob("round-0[123]/last.ckpt")]:
        masks = read(path.parent / "ticket.safetensors").masks
        for name, mask in masks.items():
            assert not Checkpoint(path)["state_dict"][name][~mask].any()


def test_a_ticket_trains_as_the_masked_network_by_hand(tmp_path):
    models = play(tmp_path, schedule=one_shot(0.3), options={"gradient_clip_val": 0.05}, test=False)
    masks = read(tmp_path / "round-01" / "ticket.safetensors").masks
    module = Tiny()
    module.load_state_dict(Checkpoint(tmp_path / "points" / "step-0.ckpt")["state_dict"])
    for name, mask in masks.items():
        module.get_parameter(name).data.mul_(mask)
    optimizer = module.configure_optimizers()["optimizer"]
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.7)
    batches = {round(float(x.sum()), 4): (x, y) for x, y in every_batch(models["round-01"].seen)}
    torch.manual_seed(0)
    replay(module, optimizer, schedule, masks, models["round-01"].seen, batches)
    for name, value in final(tmp_path, "round-01").items():
        assert torch.allclose(value, module.state_dict()[name], atol=1e-6), name


def every_batch(seen):
    """The batches of the three epochs, drawn as the ticket seeds them."""
    from lt_lightning.seeding import derive, seed_all

    for epoch in range(3):
        seed_all(derive(0, "epoch", epoch, 0))
        yield from loaders()[0]


def replay(module, optimizer, schedule, masks, seen, batches):
    from lt_lightning.seeding import derive, seed_all

    module.train()
    epoch = None
    for at, _, fingerprint in seen:
        if at != epoch:
            epoch = at
            seed_all(derive(0, "epoch", epoch, 0))
            iterator = iter(loaders()[0])
        x, y = next(iterator)
        assert round(float(x.sum()), 4) == fingerprint
        optimizer.zero_grad()
        nn_loss = torch.nn.functional.cross_entropy(module(x), y)
        nn_loss.backward()
        for name, mask in masks.items():
            module.get_parameter(name).grad.mul_(mask)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 0.05)
        optimizer.step()
        schedule.step()
        for name, mask in masks.items():
            module.get_parameter(name).data.mul_(mask)


@pytest.mark.parametrize("scope", [None, layerwise])
def test_densities_are_exact_and_masks_nested(tmp_path, scope):
    arguments = {"scope": scope} if scope else {}
    play(tmp_path, rounds=4, **arguments)
    rows = records_without_time(tmp_path)
    sizes = [96, 36] if scope else [132]
    assert [row["density"] for row in rows] == [sum(round(s * 0.8**n) for s in sizes) / 132 for n in range(5)]
    masks = [read(tmp_path / f"round-{n:02d}" / "ticket.safetensors").masks for n in range(5)]
    for before, after in pairwise(masks):
        assert all(not (after[name] & ~before[name]).any() for name in before)


def test_magnitude_keeps_the_largest_trained_weights(tmp_path):
    play(tmp_path, schedule=explicit([0.25]))
    trained, masks = final(tmp_path, "round-00"), read(tmp_path / "round-01" / "ticket.safetensors").masks
    flat = torch.cat([trained[name].abs().flatten() for name in masks])
    chosen = torch.cat([mask.flatten() for mask in masks.values()])
    assert chosen.nonzero().flatten().tolist() == flat.topk(33).indices.sort().values.tolist()


def test_movement_looks_at_step_0_even_when_rewinding_late(tmp_path):
    play(tmp_path, schedule=explicit([0.25]), criterion=movement, rewind_step=7)
    trained, start = final(tmp_path, "round-00"), Checkpoint(tmp_path / "points" / "step-0.ckpt")["state_dict"]
    masks = read(tmp_path / "round-01" / "ticket.safetensors").masks
    flat = torch.cat([(trained[name] - start[name]).abs().flatten() for name in masks])
    chosen = torch.cat([mask.flatten() for mask in masks.values()])
    assert chosen.nonzero().flatten().tolist() == flat.topk(33).indices.sort().values.tolist()


# The run directory


def test_the_run_directory_holds_what_the_contract_says(tmp_path):
    play(tmp_path, rounds=1, controls=["reinit", "random_mask"], rewind_step=3, rewind=keep_weights)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    fit = {"done", "early_stop.ckpt", "final.ckpt", "metrics.csv", "ticket.safetensors"}
    expected = {"config.yaml", "environment.json", "fit.json", "records.csv", "rewind.ckpt"}
    expected |= {"points/step-0.ckpt", "points/step-3.ckpt"}
    for name in ("round-00", "round-01", "round-01/reinit", "round-01/random_mask"):
        expected |= {f"{name}/{file}" for file in fit}
    expected |= {"round-01/start.ckpt", "round-01/next/ticket.safetensors", "round-01/next/start.ckpt"}
    assert found == expected


def test_records_have_a_row_for_every_fit_with_its_metrics(tmp_path):
    play(tmp_path, rounds=2, controls=["reinit"], seed=5)
    rows = read_records(tmp_path / "records.csv")
    assert [(r["round"], r["arm"]) for r in rows] == [
        (0, "ticket"), (1, "ticket"), (1, "reinit"), (2, "ticket"), (2, "reinit"),
    ]  # fmt: skip
    head = ["round", "arm", "seed", "density", "steps", "seconds", "early_stop_step"]
    head += ["train/loss", "val/loss", "train/acc", "test/acc"]
    assert list(rows[0])[:11] == head
    assert {"early_stop_val_loss", "early_stop_test_acc"} <= set(rows[0])
    assert all(row["seed"] == 5 and row["steps"] == 15 for row in rows)
    curves = read_records(tmp_path / "round-02" / "metrics.csv")
    validated = {row["step"]: row["val/loss"] for row in curves if row["val/loss"] is not None}
    best = min(validated, key=validated.get)
    assert (rows[3]["early_stop_step"], rows[3]["early_stop_val_loss"]) == (best, validated[best])


def test_tests_are_recorded_for_the_weights_that_were_tested(tmp_path):
    play(tmp_path, rounds=0, options={"max_epochs": 8}, model=lambda: Tiny(lr=0.3))
    row = read_records(tmp_path / "records.csv")[0]
    module, batches = Tiny(), loaders()[1]
    for file, column in (("final.ckpt", "test/acc"), ("early_stop.ckpt", "early_stop_test_acc")):
        module.load_state_dict(Checkpoint(tmp_path / "round-00" / file)["state_dict"])
        module.eval()
        right = sum(int((module(x).argmax(1) == y).sum()) for x, y in batches)
        assert row[column] == pytest.approx(right / 100)
    assert row["early_stop_step"] < row["steps"]


def test_the_same_run_again_trains_nothing_and_changes_no_file(tmp_path):
    play(tmp_path, rounds=2, controls=["reinit"])
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
    assert play(tmp_path, rounds=2, controls=["reinit"]) == {}
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
    assert before == after


def test_fewer_rounds_than_are_done_change_nothing_and_say_so(tmp_path):
    play(tmp_path, rounds=2)
    before = records_without_time(tmp_path)
    with pytest.warns(UserWarning, match=r"has 2 rounds, more than rounds=1 asks for: all stay"):
        assert play(tmp_path, rounds=1) == {}
    assert records_without_time(tmp_path) == before


def test_rounds_and_controls_may_grow_and_only_what_is_missing_is_trained(tmp_path):
    play(tmp_path / "grown", rounds=1)
    models = play(tmp_path / "grown", rounds=2, controls=["reinit"])
    assert list(models) == ["round-01/reinit", "round-02", "round-02/reinit"]
    play(tmp_path / "whole", rounds=2, controls=["reinit"])
    assert records_without_time(tmp_path / "grown") == records_without_time(tmp_path / "whole")


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    play(tmp_path, rounds=0, config={"model": {"width": 12}, "data": {"path": "/here"}})
    play(tmp_path, rounds=0, config={"model": {"width": 12}, "data": {"path": "/there"}})
    with pytest.raises(ValueError, match="results of another configuration") as error:
        lottery(Tiny, rounds=0, directory=tmp_path, config={"model": {"width": 13}}, schedule=one_shot(0.1))
    assert "model.width: 12 there, 13 now" in str(error.value)
    assert "lottery.schedule.function: lt_lightning.schedules._geometric there" in str(error.value)
    stored = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert stored["model"] == {"width": 12}
    assert stored["lottery"]["criterion"] == "lt_lightning.criteria.magnitude"


# Controls


def test_reinit_changes_the_weights_alone(tmp_path):
    spies, models = first_steps(tmp_path, controls=["reinit"], rewind_step=7)
    ticket, control = (read(tmp_path / d / "ticket.safetensors", state=True) for d in ("round-01", "round-01/reinit"))
    assert all(torch.equal(ticket.masks[name], control.masks[name]) for name in ticket.masks)
    assert spies["round-01/reinit"].step == 0
    assert models["round-01/reinit"].seen == models["round-00"].seen
    drawn = control.state["hidden.weight"]
    assert not torch.equal(drawn, Checkpoint(tmp_path / "points/step-0.ckpt")["state_dict"]["hidden.weight"])
    start = spies["round-01/reinit"].weights["hidden.weight"]
    assert torch.equal(start, drawn * control.masks["hidden.weight"])


def test_random_mask_changes_the_masks_alone(tmp_path):
    spies, _ = first_steps(tmp_path, controls=["random_mask"], rewind_step=7)
    ticket, control = (read(tmp_path / d / "ticket.safetensors").masks for d in ("round-01", "round-01/random_mask"))
    assert {n: int(m.sum()) for n, m in ticket.items()} == {n: int(m.sum()) for n, m in control.items()}
    assert not torch.equal(ticket["hidden.weight"], control["hidden.weight"])
    assert spies["round-01/random_mask"].step == 7
    assert torch.equal(spies["round-01"].weights["hidden.bias"], spies["round-01/random_mask"].weights["hidden.bias"])


# Going on after an interruption


class Stop(Exception):
    pass


class StopAt(L.Callback):
    def __init__(self, hook, count):
        self.left = count
        setattr(self, hook, self.count)

    def count(self, *_, **__):
        self.left -= 1
        if self.left == 0:
            raise Stop


@pytest.mark.parametrize(
    ("hook", "count"),
    few(
        [
            ("on_train_batch_end", 1),
            ("on_train_batch_end", 8),
            ("on_train_batch_end", 13),
            ("on_train_batch_end", 25),
            ("on_validation_end", 4),
            ("on_train_epoch_end", 2),
            ("on_train_end", 2),
            ("on_fit_end", 1),
            ("on_test_end", 1),
            ("on_test_end", 3),
        ],
        *(2, 7, 9),
    ),
)
@pytest.mark.parametrize(
    ("rewind_step", "options"),
    [
        (0, {"val_check_interval": 2}),
        pytest.param(7, {"val_check_interval": 2}, marks=slow),
        pytest.param("1 epoch", {"val_check_interval": 2, "max_steps": 13, "max_epochs": -1}, marks=slow),
        pytest.param(3, {"check_val_every_n_epoch": 2}, marks=slow),
    ],
    ids=["epochs", "late", "steps", "validate-rarely"],
)
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, hook, count, rewind_step, options):
    arguments = {"rounds": 2, "controls": ["reinit"], "rewind_step": rewind_step, "options": options}
    stop = StopAt(hook, count)
    with pytest.raises(Stop):
        play(tmp_path / "stopped", make_callbacks=lambda: [stop], **arguments)
    play(tmp_path / "stopped", **arguments)
    play(tmp_path / "whole", **arguments)
    assert records_without_time(tmp_path / "stopped") == records_without_time(tmp_path / "whole")
    for name in ("round-00", "round-01", "round-01/reinit", "round-02", "round-02/reinit"):
        assert_same_state(final(tmp_path / "stopped", name), final(tmp_path / "whole", name))
        curves = [read_records(tmp_path / d / name / "metrics.csv") for d in ("stopped", "whole")]
        assert curves[0] == curves[1]


def test_an_interrupted_fit_continues_from_its_last_epoch(tmp_path):
    stop = StopAt("on_train_batch_end", 13)
    with pytest.raises(Stop):
        play(tmp_path, rounds=0, make_callbacks=lambda: [stop])
    models = play(tmp_path, rounds=0)
    assert [at[0] for at in models["round-00"].seen] == [2] * STEPS_PER_EPOCH


@pytest.mark.parametrize(
    ("every", "share", "left"),
    [("auto", 1e9, 5), ("auto", 0, 10), ("1 epoch", 0, 5), ("2 epochs", 0, 5), ("3 steps", 0, 3), (None, 0, 15)],
)
def test_how_often_a_fit_is_saved_is_an_option(tmp_path, monkeypatch, every, share, left):
    monkeypatch.setattr("lt_lightning.fit.saving.SHARE", share)  # of the time; with 0 the first save is also the last
    with pytest.raises(Stop):
        play(tmp_path, rounds=0, make_callbacks=lambda: [StopAt("on_train_batch_end", 13)], every=every)
    models = play(tmp_path, rounds=0, every=every)
    assert len(models["round-00"].seen) == left


def test_a_module_instance_is_enough_where_nothing_is_redrawn(tmp_path):
    torch.manual_seed(3)
    module = Tiny()
    start = module.hidden.weight.detach().clone()
    play(tmp_path, model=module, rounds=2)
    rounds = [read(tmp_path / f"round-0{n}" / "ticket.safetensors", state=True) for n in range(3)]
    assert all(torch.equal(ticket.state["hidden.weight"], start) for ticket in rounds)


def test_a_run_that_needs_no_dense_training_ends_round_0_at_the_rewind_point(tmp_path):
    for step in (0, 3):
        models = play(tmp_path / str(step), dense=False, rewind_step=step, test=False)
        rows = read_records(tmp_path / str(step) / "records.csv")
        assert [row["steps"] for row in rows] == [step, 15]
        assert len(models["round-00"].seen) == step


def test_a_trial_run_counts_as_nothing(tmp_path):
    play(tmp_path, rounds=1, options={"fast_dev_run": True}, rewind_step=7)
    assert not list(tmp_path.glob("round-*"))
    assert (tmp_path / "fast_dev_run" / "round-01" / "final.ckpt").exists()
    models = play(tmp_path, rounds=1, rewind_step=7)
    assert list(models) == ["round-00", "round-01"]
    trial = {"options": {"fast_dev_run": True}, "rewind_step": 7}
    tried = play(tmp_path, rounds=2, controls=["reinit"], **trial)
    assert list(tried) == ["round-01/reinit", "round-02", "round-02/reinit"]
    assert len(read_records(tmp_path / "records.csv")) == 2


def test_the_done_marker_is_the_record(tmp_path):
    play(tmp_path, rounds=0)
    row = json.loads((tmp_path / "round-00" / "done").read_text())["record"]
    assert row["steps"] == 15
    assert row == read_records(tmp_path / "records.csv")[0]


# Hyperparameters and seeds


def test_hyperparameters_that_cannot_be_read_back_do_not_break_round_1(tmp_path):
    from omegaconf import OmegaConf

    class WithParameters(Tiny):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"config": OmegaConf.create({"a": 1})})

    play(tmp_path, model=WithParameters)
    assert len(read_records(tmp_path / "records.csv")) == 2


def test_replicates_differ_by_their_seed_alone(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(hash(name) % 1000)
        play(tmp_path / name, rounds=0, seed=seed)
    assert records_without_time(tmp_path / "a") == records_without_time(tmp_path / "b")
    assert_same_state(final(tmp_path / "a", "round-00"), final(tmp_path / "b", "round-00"))
    assert not torch.equal(
        final(tmp_path / "a", "round-00")["hidden.weight"], final(tmp_path / "c", "round-00")["hidden.weight"]
    )


def test_the_data_comes_in_the_same_order_in_every_round(tmp_path):
    models = play(tmp_path, rounds=1)
    assert models["round-00"].seen == models["round-01"].seen
    epochs = [[at[2] for at in models["round-00"].seen if at[0] == epoch] for epoch in range(3)]
    assert epochs[0] != epochs[1]


def test_a_criterion_may_use_the_functional_model_and_batches(tmp_path):
    def sensitivity(evidence):
        """SNIP: |gradient * weight| of the loss on one batch, at step 0."""
        weights = {name: w.clone().requires_grad_() for name, w in evidence.initial.items()}
        x, y = next(iter(evidence.batches()))
        loss = torch.nn.functional.cross_entropy(evidence.model(weights, x), y)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        return {name: (g * w).abs().detach() for (name, w), g in zip(weights.items(), gradients, strict=True)}

    play(tmp_path, criterion=sensitivity, schedule=one_shot(0.5), dense=False)
    assert [row["density"] for row in read_records(tmp_path / "records.csv")] == [1.0, 0.5]


def test_a_trainer_needs_nothing_but_the_ticket(tmp_path):
    train, _ = loaders()
    for ticket in lottery(Tiny, rounds=1, directory=tmp_path, monitor=None):
        fit = L.Trainer(max_epochs=1, default_root_dir=ticket.directory, callbacks=[ticket], enable_progress_bar=False)
        fit.fit(ticket.model, train, ckpt_path=ticket.ckpt_path)
    rows = read_records(tmp_path / "records.csv")
    assert [row["early_stop_step"] for row in rows] == [None, None]


def test_lightning_announces_nothing_alarming(tmp_path, caplog):
    import logging

    with caplog.at_level(logging.INFO):
        play(tmp_path, rounds=1)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "override existing callbacks" not in said
    assert "weights_only" not in said
    assert f"round-01: density 0.803, 15 steps; {tmp_path / 'records.csv'}" in said


def test_a_ticket_says_what_it_is(tmp_path):
    ticket = next(lottery(Tiny, rounds=1, directory=tmp_path))
    assert repr(ticket) == "Ticket(round-00, density=1)"


def test_a_compiled_model_may_be_given(tmp_path):
    class Silent(Tiny):  # torch 2.13 cannot compile Lightning's self.log
        def training_step(self, batch, index):
            return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    quiet = {"options": {"limit_val_batches": 0}, "monitor": None, "test": False}
    play(tmp_path / "compiled", model=lambda: torch.compile(Silent(), backend="eager"), **quiet)
    play(tmp_path / "plain", model=Silent, **quiet)
    assert_same_state(final(tmp_path / "compiled", "round-01"), final(tmp_path / "plain", "round-01"))
    assert records_without_time(tmp_path / "compiled") == records_without_time(tmp_path / "plain")


def test_a_model_may_be_fitted_by_any_trainer_once_its_round_is_done(tmp_path):
    module = play(tmp_path, rounds=0)["round-00"]
    free = L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    free.fit(module, *loaders())
    assert free.global_step == STEPS_PER_EPOCH


def test_a_checkpoint_that_a_validation_loaded_is_not_taken_for_the_end(tmp_path):
    for ticket in lottery(lambda: Tiny(lr=0.3), rounds=0, directory=tmp_path):
        train, validation = loaders()
        fit = trainer(ticket, max_epochs=8)
        fit.fit(ticket.model, train, validation, ckpt_path=ticket.ckpt_path)
        fit.validate(ticket.model, validation, ckpt_path=ticket.early_stop_path, verbose=False)
        fit.test(ticket.model, validation, verbose=False)
    row = read_records(tmp_path / "records.csv")[0]
    assert row["early_stop_test_acc"] > 0.5
    assert "test/acc" not in row


def test_a_kill_after_the_done_marker_leaves_no_checkpoint_behind(tmp_path):
    play(tmp_path, rounds=0)
    (tmp_path / "round-00" / "last.ckpt").write_bytes(b"left over")
    assert play(tmp_path, rounds=0) == {}
    assert not (tmp_path / "round-00" / "last.ckpt").exists()


def test_a_validation_of_ones_own_does_not_disturb(tmp_path):
    for ticket in lottery(Tiny, rounds=1, directory=tmp_path):
        train, validation = loaders()
        fit = trainer(ticket)
        fit.validate(ticket.model, validation, verbose=False)
        fit.fit(ticket.model, train, validation, ckpt_path=ticket.ckpt_path)
        fit.validate(ticket.model, validation, verbose=False)
    play(tmp_path / "plain", test=False)
    assert records_without_time(tmp_path) == records_without_time(tmp_path / "plain")


@pytest.mark.parametrize(("rewind_step", "steps"), [(0, 0), ("7 steps", 7), ("2 epochs", 10)])
def test_a_round_0_that_ends_at_its_point_ends_there_when_it_is_trained_again(rewind_step, steps, tmp_path):
    play(tmp_path, dense=False, rewind_step=rewind_step, density=0.5)
    files = RunDirectory(tmp_path).arm(0)
    files.done.unlink()
    assert set(play(tmp_path, dense=False, rewind_step=rewind_step, density=0.5)) == {"round-00"}
    assert files.read_done()["record"]["steps"] == steps


def test_a_schedule_of_the_same_name_that_was_edited_is_refused(tmp_path):
    play(tmp_path, rounds=1, schedule=lambda round: 0.8**round, test=False)
    with pytest.raises(ValueError, match=r"^round 1 in .* holds 0\.80\d+ of the.*, and schedule\(1\) is 0\.5 now"):
        play(tmp_path, rounds=2, schedule=lambda round: 0.5**round, test=False)


def test_a_function_that_returns_a_trained_module_is_refused(tmp_path):
    module = Tiny()
    play(tmp_path / "first", model=lambda: module, rounds=1, test=False)
    with pytest.raises(ValueError, match="returned a module that was fitted before, so round 0 would begin"):
        play(tmp_path / "second", model=lambda: module, rounds=1, test=False)


def test_numbers_of_numpy_are_numbers(tmp_path):
    play(tmp_path, rounds=np.int64(1), seed=np.int64(3), test=False)
    assert [row["seed"] for row in read_records(tmp_path / "records.csv")] == [3, 3]
