"""A run on several processes: `python several.py DIRECTORY '{"strategy": "fsdp2", "devices": 2}'`.

Every process writes what it saw of each fit into `rank-N.jsonl` beside the run directory.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import lt_lightning
from lt_lightning.data import Images, digits
from lt_lightning.models.sharding import is_sharded
from lt_lightning.sharded import local, whole

DEFAULTS = {
    "strategy": "auto",
    "devices": 1,
    "tensor_parallel": 1,
    "precision": "32-true",
    "norm": False,
    "late": False,
    "averaged": False,
    "dense": True,
    "dense_directory": None,
    "seed": 0,
    "lr": 0.005,
    "rewind": "to_point",
    "criterion": "magnitude",
    "scope": "globally",
    "gradual": None,
    "early_bird": None,
    "optimizer": "AdamW",
    "die": None,
    "rounds": 2,
    "epochs": 2,
    "every": "1 epoch",
    "controls": ["reinit"],
}


class Small(L.LightningModule):
    """64 → 26 → 10; each of four processes holds another number of rows."""

    def __init__(self, settings):
        super().__init__()
        self.settings = settings
        if not settings["late"]:
            self.make_layers()

    def make_layers(self):
        settings = self.settings
        norm = nn.BatchNorm1d(26) if settings["norm"] else nn.Identity()
        self.first, self.norm, self.last = nn.Linear(64, 26), norm, nn.Linear(26, 10)

    def configure_model(self):
        if self.settings["late"] and not hasattr(self, "first"):
            self.make_layers()
        if self.device_mesh is None or is_sharded(self):
            return
        if self.device_mesh["tensor_parallel"].size() > 1:
            plan = {"first": ColwiseParallel(), "last": RowwiseParallel()}
            parallelize_module(self, self.device_mesh["tensor_parallel"], plan)
        if self.device_mesh["data_parallel"].size() > 1:
            for layer in (self.first, self.last, self):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])

    def forward(self, images):
        return self.last(torch.relu(self.norm(self.first(images.flatten(1)))))

    def training_step(self, batch):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss, sync_dist=True)
        return loss

    def evaluate(self, name, batch):
        logits = self(batch[0])
        self.log(f"{name}/loss", nn.functional.cross_entropy(logits, batch[1]), sync_dist=True)
        self.log(f"{name}/acc", (logits.argmax(1) == batch[1]).float().mean(), sync_dist=True)

    def validation_step(self, batch):
        self.evaluate("val", batch)

    def test_step(self, batch):
        self.evaluate("test", batch)

    def configure_optimizers(self):
        make = getattr(torch.optim, self.settings["optimizer"])
        optimizer = make(self.parameters(), self.settings["lr"])
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 8, 0.7)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Watch(L.Callback):
    """Knows the step at which a fit began, and kills one process: [rank, name of the fit, step]."""

    def __init__(self, name, die):
        self.name, self.die, self.began = name, die, None

    def on_train_start(self, trainer, *_):
        self.began = trainer.global_step

    def on_train_batch_end(self, trainer, *_):
        if self.die == [trainer.global_rank, self.name, trainer.global_step]:
            os.kill(os.getpid(), signal.SIGKILL)


def strategy(settings):
    if settings["strategy"] != "fsdp2":
        return settings["strategy"]
    tensor = settings["tensor_parallel"]
    return ModelParallelStrategy(data_parallel_size=settings["devices"] // tensor, tensor_parallel_size=tensor)


def main(directory, settings):
    torch.set_num_threads(1)
    functions = {key: getattr(lt_lightning, settings[key]) for key in ("rewind", "criterion", "scope")}
    tickets = lt_lightning.lottery(
        lambda: Small(settings),
        directory=directory,
        rewind_step="6 steps",
        **functions,
        gradual=settings["gradual"] and getattr(lt_lightning, settings["gradual"])(end=0.9),
        gradual_every="3 steps",
        early_bird=settings["early_bird"] and lt_lightning.settled(settings["early_bird"], epochs=1),
        **{key: settings[key] for key in ("rounds", "every", "controls", "dense", "dense_directory", "seed")},
        config={"script": "several"},
    )
    data = Images(digits, shape=[1, 8, 8], num_classes=10, batch_size=32, val_size=200, seed=0, mean=[0.02], std=[0.02])
    for ticket in tickets:
        watch = Watch(ticket.name, settings["die"])
        trainer = L.Trainer(
            max_epochs=settings["epochs"],
            accelerator="cpu",
            devices=settings["devices"],
            strategy=strategy(settings),
            precision=settings["precision"],
            gradient_clip_val=1.0,
            limit_train_batches=10,
            use_distributed_sampler=False,
            default_root_dir=ticket.directory,
            callbacks=[*([EMAWeightAveraging()] if settings["averaged"] else []), ticket, watch],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(ticket.model, data, ckpt_path=ticket.ckpt_path)
        seen = {"name": ticket.name, "began": watch.began, "masks": hashed(ticket), "hidden": hidden(ticket)}
        trainer.test(ticket.model, data, verbose=False)
        trainer.test(ticket.model, data, ckpt_path=ticket.early_stop_path, verbose=False)
        with open(Path(directory).parent / f"rank-{trainer.global_rank}.jsonl", "a") as file:
            file.write(json.dumps(seen) + "\n")


def hashed(ticket):
    """A hash of the masks, whole."""
    return hashlib.sha256(b"".join(whole(mask).numpy().tobytes() for mask in ticket.masks.values())).hexdigest()


def hidden(ticket):
    """How many pruned weights of this process are not zero."""
    weights = dict(ticket.model.named_parameters())
    return sum(int(local(weights[name])[~local(mask)].count_nonzero()) for name, mask in ticket.masks.items())


if __name__ == "__main__":
    main(sys.argv[1], DEFAULTS | json.loads(sys.argv[2]))
