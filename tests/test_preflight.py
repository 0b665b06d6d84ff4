"""What `train.py` refuses before it makes a run directory, and what it lets through."""

import os
import re
import subprocess
import sys

import pytest
import torch
from app import CONF, ROOT, composed, run
from sampling import few

from lt_lightning.cli import preflight

CORES = os.cpu_count() or 1

REFUSED = [
    ("+lr=0.001", "nothing reads lr, so it would change nothing: did you mean model.optimizer.lr?"),
    ("+epochs=5", "nothing reads epochs, so it would change nothing: did you mean trainer.max_epochs?"),
    ("+seeds=3", "nothing reads seeds, so it would change nothing: did you mean seed?"),
    ("+note.text=mine", "nothing reads note, so it would change nothing; the keys at the top are callbacks, data, "),
    ("+prune.foo=1", "lt_lightning.lottery takes no foo (prune.foo); it takes model, directory, rounds, "),
    ("+prune.rewindstep=1", "takes no rewindstep (prune.rewindstep): did you mean prune.rewind_step?"),
    ("+prune.scope.last=1", "scopes.globally takes no last (prune.scope.last): did you mean prune.scope.least?"),
    ("+trainer.max_epoch=1", "takes no max_epoch (trainer.max_epoch): did you mean trainer.max_epochs?"),
    ("+data.batchsize=1", "takes no batchsize (data.batchsize): did you mean data.batch_size?"),
    ("+model.network.width=1", "models.lenet_300_100 takes no width (model.network.width); it takes shape"),
    ("+model.optimizer.weight_decy=1", "did you mean model.optimizer.weight_decay?"),
    ("+logger.project=mine", "takes no project (logger.project)"),
    ("+callbacks.me={_target_: lightning.pytorch.callbacks.EarlyStopping, monitr: a}", "did you mean callbacks.me."),
    ("model._target_=lt_lightning.models.Clasifier", "model._target_=lt_lightning.models.Clasifier cannot be imported"),
    ("threads=-1", f"threads=-1 must be a whole number from 1 to {16 * CORES}, 16 for each core of this machine"),
    ("threads=abc", "threads='abc' must be a whole number"),
    ("threads=100000", "threads=100000 must be a whole number"),
    ("threads=true", "threads=True must be a whole number"),
    ("threads=1.5", "threads=1.5 must be a whole number"),
    ("trainer.max_epochs=0", "trainer.max_epochs=0 must be a whole number, 1 or more, or -1 for no limit"),
    ("trainer.max_epochs=few", "trainer.max_epochs='few' must be a whole number"),
    ("trainer.max_epochs=1.5", "trainer.max_epochs=1.5 must be a whole number"),
    ("trainer.max_epochs=nan", "trainer.max_epochs=nan is no number"),
    ("trainer.max_steps=0", "trainer.max_steps=0 must be a whole number, 1 or more"),
    ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0 must be a whole number, 1 or more"),
    ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1 must be a number, 0 or more"),
    ("trainer.gradient_clip_val=inf", "trainer.gradient_clip_val=inf must be a number, 0 or more"),
    ("trainer.devices=0", "trainer.devices=0 must be 1 or more, a list of devices, or auto: trainer.devices=1."),
    ("trainer.devices=1.5", "trainer.devices=1.5 must be 1 or more"),
    ("trainer.precision=8", "trainer: Precision 8 is invalid. Allowed precision values:"),
    ("trainer.accelerator=abacus", "trainer: "),
    ("model.optimizer.lr=nan", "model.optimizer.lr=nan is no number"),
    ("model.optimizer.lr=-1", "model.optimizer: Invalid learning rate: -1"),
    ("model.optimizer.lr=fast", "model.optimizer: "),
    ("model.optimizer.lr=true", "model.optimizer.lr=True must be a number, 0 or more"),
    ("model.optimizer.lr=inf", "model.optimizer.lr=inf must be a number, 0 or more"),
    ("+model.scheduler_interval=day", "scheduler_interval is 'day', expected 'step' or 'epoch'"),
    ("model.num_classes=3", "model.num_classes=3, and the data has 10 (data.num_classes): leave model.num"),
    ("model.network.num_classes=3", "model.network.num_classes=3, and the data has 10 (data.num_classes)"),
    ("model.network.shape=[1,28,28]", "model.network does not fit the data: "),
    ("data.batch_size=nan", "data.batch_size=nan is no number"),
    ("data.batch_size=2.5", "data.batch_size=2.5, expected at least 1: set data.batch_size=1 or a "),
    ("data.batch_size=true", "data.batch_size=True, expected at least 1: set data.batch_size=1 or a "),
    ("data.batch_size=x", "data.batch_size=x, expected at least 1: set data.batch_size=1 or a "),
    ("data.shape=5", "data.shape=5, expected a list of numbers"),
    ("data.seed=abc", "data.seed='abc' must be a whole number"),
    ("data.val_size=0 prune.monitor=val/loss", "validations, and data.val_size=0 leaves none: give "),
    ("+trainer.limit_val_batches=0 prune.monitor=val/loss", "and trainer.limit_val_batches=0 leaves none"),
    ("prune.dry_run=maybe", "dry_run='maybe' must be True or False (prune.dry_run=false)."),
    ("share_dense=perhaps", "share_dense='perhaps' must be True or False (share_dense=false)."),
    ("name=''", "name='' must be the name of a folder: name=default."),
    ("prune.prunable=5", "prunable=5 must be a list"),
    ("prune.controls=[null]", "controls=None is not a function: pass one such as reinit"),
    ("prune.controls=[reinits]", "there is no control 'reinits'"),
    ("prune.schedule.fraction=2", "a fraction to prune must lie inside (0, 1), got 2"),
    ("prune.dense=no_way", "dense='no_way' must be True or False"),
    ("prune.rounds=-1", "rounds=-1 must be a whole number, 0 or more"),
    ("prune.rewind_step=soon", "rewind_step='soon' is not understood"),
    ("prune.criterion=movement", "criterion is chosen from a group, with a slash: prune/criterion=movement."),
    ("seed=abc", "seed='abc' must be a whole number"),
    ("callbacks=5", "callbacks=5 must be a mapping: +callbacks.NAME._target_=..."),
]  # fmt: skip


@pytest.mark.parametrize(("override", "message"), few(REFUSED, *range(0, len(REFUSED), 6)))
def test_what_cannot_work_or_is_read_by_nobody_is_refused_in_one_line(override, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        preflight.check(composed("logger=csv", *_split(override)))
    assert len(str(error.value).splitlines()) == 1


def _split(overrides):
    """Overrides as a command line has them."""
    return re.split(r" (?=[+\w]+[\w./]*=)", overrides)


ACCEPTED = [
    *("trainer=ddp_cpu2", "trainer=fsdp2_cpu2", "trainer=smoke", "prune=ticket", "prune=gradual", "prune=early_bird"),
    *(
        "prune=none",
        "logger=tensorboard",
        "threads=null",
        f"threads={CORES}",
        "data.val_size=0 prune.monitor=null",
        "data.val_size=0",
    ),
    "prune.controls=reinit",
    "+lr=0.1 model.optimizer.lr=${lr}",
    "+sizes.batch=32 data.batch_size=${sizes.batch}",
    "+tag=mine name=${tag}_runs",
    "+tag=mine hydra.run.dir=runs/${tag}",
    "+logger.entity=me logger=wandb",
    "+callbacks.mine={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss}",
    "model._target_=test_preflight.Other +model.width=3",
    "+prune.controls=[{_target_: lt_lightning.controls.noise, sigma: 0.5}]",
    "model=resnet20 data.shape=[3,32,32] data.mean=[0] data.std=[1]",
]


class Other:
    """A model of somebody's own, which takes anything."""

    def __init__(self, **options):
        raise AssertionError("made too early")


@pytest.mark.parametrize("overrides", few(ACCEPTED, *range(1, len(ACCEPTED), 4)))
def test_what_somebody_reads_is_let_through(overrides):
    before = torch.get_rng_state()
    given = _split(overrides)
    preflight.check(
        composed(*(each.replace("data.mean=0", "data.mean=[0]").replace("std=1", "std=[1]") for each in given))
    )
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_every_experiment_is_let_through(experiment):
    preflight.check(composed(f"experiment={experiment}"))


def test_a_refused_run_leaves_nothing_in_its_directory(tmp_path):
    with pytest.raises(ValueError, match="nothing reads lr"):
        run(tmp_path / "run", "+lr=0.001")
    assert not list(tmp_path.rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+lr=0.001", "error: nothing reads lr, so it would change nothing: did you mean model.optimizer.lr?"),
        ("threads=100000", "error: threads=100000 must be a whole number from 1 to"),
        ("hydra.run.dir=/proc/nowhere/run", "error: hydra.run.dir='/proc/nowhere/run' cannot be made:"),
        ("prune.prunable=5", "error: prunable=5 must be a list"),
        ("trainer.max_epochs=nan", "error: trainer.max_epochs=nan is no number"),
    ],
)
def test_a_command_is_refused_in_one_line_and_makes_no_folder(override, message, tmp_path):
    command = [sys.executable, ROOT / "train.py", "logger=csv", override]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2].startswith(message)
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
