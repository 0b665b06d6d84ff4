"""What a ticket holds in memory while it trains, beyond a plain fit of the same module.

python -m benchmarks memory
"""

import subprocess
import sys
import tempfile
from functools import partial

import lightning as L
import torch
from torch.utils.data import DataLoader

from benchmarks.networks import trainer
from lt_lightning import lottery


def rows(quick):
    """The row of the table: what, bytes to reach, bytes a weight, and bytes of both fits."""
    size = 4_000_000 if quick else 50_000_000
    with tempfile.TemporaryDirectory() as directory:
        (dense, peak), (masked, _), (plain, _) = (held(way, size, directory) for way in ("dense", "masked", "plain"))
    goal = None if quick else 4.5  # of few weights, what a fit takes beside them counts for more
    yield f"memory over a plain fit of {size:,} weights, bytes a weight", goal, (masked - plain) / size, masked, plain
    yield f"the most while the next of {size:,} weights are selected and saved", None, peak / size, peak, dense


class Wide(L.LightningModule):
    """One linear layer of `size` weights."""

    def __init__(self, size):
        super().__init__()
        self.layer = torch.nn.Linear(size // 1000, 1000, bias=False)

    def training_step(self, batch):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


class Memory(L.Callback):
    """Bytes of this process: those that are no files, at the end of the last step, and the most beyond, after it."""

    def on_train_batch_end(self, *_):
        self.bytes = told("RssAnon")

    def on_train_end(self, *_):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # count the peak anew
        self.before = told("VmRSS")

    def peak(self):
        return told("VmHWM") - self.before


def told(name):
    """What the kernel tells of this process, in bytes."""
    with open("/proc/self/status") as status:
        (line,) = [line for line in status if line.startswith(name)]
    return int(line.split()[1]) * 1024


def held(way, size, directory):
    """Bytes that a process holds in its fit, and the most beyond at its end; round 0 comes before round 1, "masked"."""
    command = [sys.executable, "-m", "benchmarks.memory", way, str(size), directory]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(each) for each in done.stdout.splitlines()[-1].split()]


def fit(way, size, directory):
    """Three steps; prints the bytes that are held in the last one, and the most beyond after it."""
    memory, data = Memory(), DataLoader(torch.ones(3, size // 1000), batch_size=1)
    if way == "plain":
        trainer(directory, [memory], max_steps=3).fit(Wide(size), data)
    else:
        rounds = 1 if way == "masked" else 0
        for ticket in lottery(
            partial(Wide, size), rounds=rounds, directory=f"{directory}/run", monitor=None, every=None
        ):
            trainer(ticket.directory, [memory, ticket], max_steps=3).fit(ticket.model, data, ckpt_path=ticket.ckpt_path)
    print(memory.bytes, memory.peak())


if __name__ == "__main__":
    fit(sys.argv[1], int(sys.argv[2]), sys.argv[3])
