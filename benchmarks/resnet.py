"""A network whose step is arithmetic: ResNet-20 in a ticket's fit, against a bare loop with the same kernels and masks.

python -m benchmarks resnet                    # on one thread of the CPU
python -m benchmarks.resnet --device cuda      # on a GPU: bf16, channels last, in seconds of the clock
"""

import argparse
import tempfile
import time
from functools import partial

import lightning as L
import torch
from torch.nn.functional import cross_entropy

from benchmarks.networks import SGD, trainer
from benchmarks.side_by_side import alternated
from lt_lightning import lottery
from lt_lightning.data import Images, Splits
from lt_lightning.fit.enforcement import Enforcement
from lt_lightning.models import Classifier, resnet20

BATCH, WARM = 128, 2
"""Images of a batch, and steps that are not timed."""


def rows(quick):
    """The row of the table: what, the ratio to reach, the ratio, seconds of both."""
    steps = 3 if quick else 8
    ratio, fit, bare = steps_of_a_fit(steps, repeats=3 if quick else 5)
    speed = f"{steps * BATCH / fit:.0f} images a second"
    yield f"step of resnet-20, batch {BATCH}: ticket's fit / bare loop ({speed})", 1.1, ratio, fit, bare


def steps_of_a_fit(steps, repeats, device="cpu"):
    """Seconds of the steps of a pruned round, and of the same in a bare loop."""
    on_gpu = device == "cuda"
    data = images(steps + WARM)
    data.setup("fit")
    options = {"accelerator": "gpu", "precision": "bf16-mixed"} if on_gpu else {}
    with tempfile.TemporaryDirectory() as directory:
        make = partial(make_model, on_gpu)
        run = lottery(make, rounds=repeats + 1, directory=directory, monitor=None, every=None)

        def fitted():
            ticket, clock = next(run), Clock(on_gpu)
            fit = trainer(ticket.directory, [clock, ticket], max_steps=steps + WARM, max_epochs=-1, **options)
            fit.fit(ticket.model, data, ckpt_path=ticket.ckpt_path)
            return clock.seconds

        def bare():
            model = make().to(device)
            weights = {name: each for name, each in model.named_parameters() if each.dim() > 1}
            enforcement = Enforcement({name: torch.rand(each.shape) < 0.5 for name, each in weights.items()}, weights)
            optimizer, precision = SGD(model.parameters()), torch.autocast(device, torch.bfloat16, enabled=on_gpu)
            for number, (inputs, labels) in enumerate(data.train_dataloader()):
                if number == WARM:
                    start = now(on_gpu)
                with precision:
                    loss = cross_entropy(model(inputs.to(device)), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                enforcement.mask_weights()
            return now(on_gpu) - start

        fitted()  # round 0, which is dense
        return alternated(fitted, bare, repeats)


def make_model(channels_last):
    return Classifier(resnet20(), SGD, channels_last=channels_last)


def images(batches):
    """Random images of the size of CIFAR-10, as many batches as are trained."""

    def source():
        draws = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (batches * BATCH, 3, 32, 32), dtype=torch.uint8, generator=draws)
        labels = torch.randint(0, 10, (batches * BATCH,), generator=draws)
        return Splits(pixels, labels, pixels[:10], labels[:10])

    sizes = {"shape": [3, 32, 32], "num_classes": 10, "batch_size": BATCH, "val_size": 0, "seed": 0}
    return Images(source, **sizes, mean=[0.5] * 3, std=[0.25] * 3)


def now(on_gpu):
    """Seconds of the processor, or of the clock once the GPU has done what it was given."""
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() if on_gpu else time.process_time()


class Clock(L.Callback):
    """Seconds of the steps of a fit but the first ones."""

    def __init__(self, on_gpu):
        self.now = partial(now, on_gpu)

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == WARM:
            self.start = self.now()

    def on_train_epoch_end(self, *_):
        self.seconds = self.now() - self.start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resnet")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    asked = parser.parse_args()
    steps = 200 if asked.device == "cuda" else 8
    ratio, fit, bare = steps_of_a_fit(steps, 5, asked.device)
    print(f"resnet-20, batch {BATCH}: {ratio:.3f}, {steps * BATCH / fit:.0f} and {steps * BATCH / bare:.0f} images/s")
