"""The networks, data and Trainers of the benchmarks. Inputs are random, of the size of MNIST: they change no time."""

from functools import partial

import lightning as L
import torch
from torch import nn

from lt_lightning import layerwise, lottery
from lt_lightning.data import Images, Splits
from lt_lightning.models import Classifier, lenet_300_100

SGD = partial(torch.optim.SGD, lr=0.1)
ADAM = partial(torch.optim.Adam, lr=1.2e-3, fused=True)


def lenet():
    return lenet_300_100()


def mlp():
    """Four Linear(1024, 1024) and an output layer."""
    hidden = [layer for _ in range(4) for layer in (nn.Linear(1024, 1024), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(1024, 10))


SHAPES = {lenet: (1, 28, 28), mlp: (1, 32, 32)}
OUTPUTS = ("output.weight", "9.weight")
"""Output layers, which stay dense."""


def images(network, batch_size=128, count=51200, val_size=0):
    """A data module of random images, without a validation if `val_size` is 0."""

    def source():
        draws = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (count + val_size, *SHAPES[network]), dtype=torch.uint8, generator=draws)
        labels = torch.randint(0, 10, (count + val_size,), generator=draws)
        return Splits(pixels, labels, pixels[:1000], labels[:1000])

    shape = {"shape": list(SHAPES[network]), "num_classes": 10}
    sizes = {"batch_size": batch_size, "val_size": val_size, "seed": 0}
    return Images(source, **shape, **sizes, mean=[0.13], std=[0.31])


def trainer(directory, callbacks=(), **options):
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    machine = {"accelerator": "cpu", "devices": 1, "use_distributed_sampler": False}
    place = {"default_root_dir": directory, "callbacks": list(callbacks)}
    return L.Trainer(**(place | quiet | machine | options))


def tickets(network, directory, optimizer=SGD, **arguments):
    """A lottery of the network, whose output layer is left alone."""
    make = partial(make_model, network, optimizer)
    left = {"prunable": [f"!*{name}" for name in OUTPUTS if name in dict(network().named_parameters())]}
    return lottery(make, directory=directory, monitor=None, scope=layerwise, **(left | arguments))


def make_model(network, optimizer):
    return Classifier(network(), optimizer)
