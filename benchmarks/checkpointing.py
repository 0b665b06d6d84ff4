"""What saving costs: a fit, relative to the same fit that saves nothing but its rewind point.

    python benchmarks/checkpointing.py

Each pair runs side by side in one process, in alternating order, on one thread; the ratio is that of the medians.
Images are random, of the size of digits and MNIST: their content changes no time.
"""

import logging
import statistics
import tempfile
import time
import warnings
from functools import partial

import lightning as L
import torch

from lt_lightning import lottery
from lt_lightning.data import Images, Splits
from lt_lightning.disk import checkpoints
from lt_lightning.models import Classifier, lenet_300_100

FITS = {
    "digits: 10 epochs of 39 steps": (21, (1, 8, 8), 1437, 32, {"max_epochs": 10}),
    "MNIST: 2 epochs of 917 steps, a validation every 100 steps": (
        *(9, (1, 28, 28), 60000, 60),
        {"max_epochs": 2, "val_check_interval": 100, "check_val_every_n_epoch": None},
    ),
}


def random_images(shape, count):
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8)
    labels = torch.arange(count) % 10
    return Splits(images, labels, images[:1000], labels[:1000])


def make_model(shape):
    network = lenet_300_100(shape=shape, num_classes=10)
    return Classifier(network=network, num_classes=10, optimizer=partial(torch.optim.Adam, lr=1.2e-3))


def seconds(shape, data, options, keep):
    """The duration of a dense round; `keep` tells which files it saves."""
    save, checkpoints.save = (
        checkpoints.save,
        lambda trainer, path, trim: save(trainer, path, trim) if keep(path) else None,
    )
    try:
        with tempfile.TemporaryDirectory() as directory:
            for ticket in lottery(partial(make_model, shape), rounds=0, directory=directory):
                trainer = L.Trainer(
                    accelerator="cpu",
                    logger=False,
                    callbacks=[ticket],
                    default_root_dir=ticket.directory,
                    enable_checkpointing=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                    use_distributed_sampler=False,
                    **options,
                )
                start = time.perf_counter()
                trainer.fit(ticket.model, data, ckpt_path=ticket.ckpt_path)
                return time.perf_counter() - start
    finally:
        checkpoints.save = save


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for name, (repeats, shape, count, batch_size, options) in FITS.items():
        sizes = {"batch_size": batch_size, "val_size": 200 if count < 5000 else 5000}
        source = partial(random_images, shape, count)
        data = Images(source, shape=shape, num_classes=10, seed=0, mean=[0.5], std=[0.5], **sizes)
        ways = {"saving": lambda path: True, "not saving": lambda path: path.parent.name == "points"}
        times = {way: [] for way in ways}
        for repeat in range(repeats + 1):
            for way in list(ways)[:: 1 if repeat % 2 else -1]:
                taken = seconds(shape, data, options, ways[way])
                if repeat:  # the first warms up
                    times[way].append(taken)
        saved, plain = (statistics.median(times[way]) for way in ways)
        pairs = sorted(a / b for a, b in zip(*times.values(), strict=True))
        middle = f"{pairs[repeats // 4]:.3f} to {pairs[-1 - repeats // 4]:.3f}"
        print(f"{name}: {saved:.3f} s / {plain:.3f} s = {saved / plain:.3f}; half of {repeats} pairs {middle}")


if __name__ == "__main__":
    main()
