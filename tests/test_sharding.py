"""A network that several processes share trains as one process alone."""

import os
import socket
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from lt_lightning.data import Images, Text, digits
from lt_lightning.models import Classifier, LanguageModel, decay_matrices, gpt, lenet_300_100, resnet20, warmup_cosine
from lt_lightning.models.sharding import blocks, is_sharded, shard

STEPS = 12
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


class Losses(L.Callback):
    """The losses of each training step and validation, averaged over processes."""

    def __init__(self):
        self.seen, self.validated, self.sharded = [], [], None

    def on_train_start(self, trainer, module):
        self.sharded = is_sharded(module)

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.seen.append(float(trainer.strategy.reduce(outputs["loss"].detach().clone(), reduce_op="mean")))

    def on_validation_end(self, trainer, module):
        if trainer.sanity_checking:  # two batches, which hold more on two processes
            return
        self.validated.append(float(trainer.callback_metrics["val/loss"]))


def lenet():
    data = Images(digits, shape=[1, 8, 8], num_classes=10, batch_size=32, val_size=200, seed=0, mean=[0.02], std=[0.02])
    return Classifier(lenet_300_100((1, 8, 8)), partial(torch.optim.Adam, lr=1.2e-3)), data


def language(folder: Path):
    (folder / "input.txt").write_text("".join(chr(97 + (n * n) % 23) for n in range(1500)))
    optimizer = partial(
        decay_matrices, optimizer=partial(torch.optim.AdamW, fused=True), weight_decay=0.1, lr=1e-2, betas=(0.9, 0.99)
    )
    data = Text(str(folder), vocabulary=12, context=16, batch_size=8, seed=0, eval_batch_size=3, val_fraction=0.2)
    schedule = partial(warmup_cosine, warmup_steps=3, steps=STEPS)
    return LanguageModel(gpt(12, context=16, layers=2, heads=2, width=32), optimizer, schedule), data


def fit(kind: str, folder: Path, **options) -> Losses:
    torch.set_num_threads(1)
    L.seed_everything(0)
    model, data = lenet() if kind == "lenet" else language(folder)
    losses = Losses()
    steps = {"max_steps": STEPS, "max_epochs": -1, "val_check_interval": 6, "check_val_every_n_epoch": None}
    clipped = {"gradient_clip_val": 0.5} if kind == "gpt" else {}
    trainer = L.Trainer(accelerator="cpu", callbacks=[losses], **QUIET, **steps, **clipped, **options)
    trainer.fit(model, data)
    [tested] = trainer.test(model, data, verbose=False)
    losses.validated.append(tested["test/loss"])
    return losses


def fit_on_rank(rank: int, folder: Path, port: int, kind: str, sizes: tuple[int, int] | None) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "GROUP_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"TORCHELASTIC_RUN_ID": "test"}
    own = folder / str(rank)
    own.mkdir()
    strategy = ModelParallelStrategy(*sizes) if sizes else "ddp"
    losses = fit(kind, own, strategy=strategy, devices=2)
    assert losses.sharded is bool(sizes)
    torch.save((losses.seen, losses.validated), folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()  # a process that leaves first would break the other's connections


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [  # processes that share the parameters, and processes that share layers; None: neither, as under ddp
        pytest.param("lenet", (2, 1), marks=slow),
        pytest.param("gpt", (2, 1), marks=slow),
        pytest.param("lenet", (1, 2), marks=slow),
        pytest.param("gpt", (1, 2), marks=slow),
        pytest.param("gpt", None, marks=slow),
    ],
)
def test_two_processes_have_the_losses_of_one(kind, sizes, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(fit_on_rank, (tmp_path, port, kind, sizes), nprocs=2)
    single = fit(kind, tmp_path, devices=1)
    assert not single.sharded
    for rank in range(2):
        seen, validated = torch.load(tmp_path / f"{rank}.pt")
        assert len(seen) == STEPS
        assert seen == pytest.approx(single.seen, abs=1e-5)
        assert validated == pytest.approx(single.validated, abs=1e-5)
    assert single.seen[-1] < single.seen[0] - 0.1  # it learns: equal losses are not those of a network at rest


@pytest.fixture
def mesh():
    """The mesh of one process, in which sharding is real and nothing has to be sent."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    torch.distributed.destroy_process_group()


def test_every_parameter_is_sharded_and_no_buffer_before_and_after_a_forward_of_any_kind(mesh):
    network = resnet20(width=4)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    shard(network, mesh)
    images = torch.randn(8, 3, 8, 8)
    for step in range(3):
        assert all(isinstance(each, DTensor) for each in network.parameters())
        assert not any(isinstance(each, DTensor) for each in network.buffers())
        if step == 0:
            assert set(network.state_dict()) == set(expected)
            for name, value in network.state_dict().items():
                assert torch.equal(value.full_tensor() if isinstance(value, DTensor) else value, expected[name]), name
            network(images).sum().backward()
        else:
            network.eval()
            with torch.no_grad():
                network(images)


def test_sharding_twice_is_sharding_once(mesh):
    model = Classifier(lenet_300_100(), partial(torch.optim.SGD, lr=0.1))
    model._device_mesh = mesh
    for _ in range(3):
        model.configure_model()
        model(torch.zeros(2, 1, 28, 28))
    assert is_sharded(model)


def test_without_a_mesh_nothing_is_sharded():
    for model in (Classifier(lenet_300_100(), torch.optim.SGD), LanguageModel(gpt(5), torch.optim.SGD)):
        model.configure_model()
        assert not is_sharded(model)


def test_blocks_are_those_of_the_network_or_its_large_children():
    network = gpt(5, layers=3)
    assert list(blocks(network)) == list(network.blocks)
    lenet = lenet_300_100()
    assert list(blocks(lenet)) == [lenet.hidden1]
    with torch.device("meta"):
        resnet = resnet20()
    assert list(blocks(resnet)) == [resnet.stage3]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"heads": 3, "width": 6},
            "3 heads do not divide by 2 tensor-parallel processes, expected a multiple: set model",
        ),
        ({"dropout": 0.1}, "dropout is 0.1 with 2 tensor-parallel processes, which would draw differently"),
    ],
)
def test_what_tensor_parallelism_cannot_do_right_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        gpt(5, **sizes).tensor_parallel_plan(2)
