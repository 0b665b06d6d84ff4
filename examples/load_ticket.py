"""Use a ticket with PyTorch, NumPy and safetensors alone: neither lt_lightning nor Lightning is imported here.

    python train.py prune=iterative hydra.run.dir=runs/first
    python examples/load_ticket.py runs/first/round-03 lt_lightning/data/digits.npz

It prints the test accuracy of that round's trained network, which is the recorded one, and then trains the ticket.
"""

import json
import sys
from collections import OrderedDict
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import nn
from torch.nn.functional import cross_entropy


def load_ticket(path):
    """The masks (parameter name → bool tensor, True is kept) and the starting weights and buffers of a ticket file."""
    with safe_open(path, framework="pt") as file:
        shapes = json.loads(file.metadata()["shapes"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    masks = {}
    for name, shape in shapes.items():
        bits = tensors[f"mask/{name}"][:, None] >> torch.arange(7, -1, -1) & 1  # the first weight is the highest bit
        masks[name] = bits.flatten()[: prod(shape)].view(shape).bool()
    state = {name.removeprefix("state/"): value for name, value in tensors.items() if name.startswith("state/")}
    return masks, state


class Digits(nn.Module):
    """LeNet-300-100 for images of 8x8 pixels, under the names that it has in the ticket."""

    def __init__(self):
        super().__init__()
        layers = OrderedDict(flatten=nn.Flatten(), hidden1=nn.Linear(64, 300), relu1=nn.ReLU())
        layers |= OrderedDict(hidden2=nn.Linear(300, 100), relu2=nn.ReLU(), output=nn.Linear(100, 10))
        self.network = nn.Sequential(layers)

    def forward(self, images):
        """Images (batch, 1, 8, 8) to logits (batch, 10)."""
        return self.network(images)


def read_digits(path, test=360):
    """Images as the run saw them, and labels: of the training, then of the test."""
    with np.load(path) as file:
        images, labels = torch.from_numpy(file["images"])[:, None], torch.from_numpy(file["labels"]).long()
    images = (images / 255 - 0.0192) / 0.0236
    return (images[:-test], labels[:-test]), (images[-test:], labels[-test:])


def mask_weights(model, masks):
    """Set what is pruned to zero."""
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).masked_fill_(~mask, 0)


@torch.no_grad()
def accuracy(model, images, labels):
    """The share of images that are recognised."""
    return (model(images).argmax(1) == labels).float().mean().item()


def train(model, masks, images, labels, epochs=5):
    """Train under the masks: after every step what is pruned is zero again."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1.2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(32):
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            mask_weights(model, masks)


def main(folder, digits):
    """Look at a round of a run on digits."""
    training, test = read_digits(digits)
    masks, state = load_ticket(Path(folder, "ticket.safetensors"))
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    print(f"density {int(kept.sum()) / len(kept)}")

    model = Digits()
    model.load_state_dict(torch.load(Path(folder, "final.ckpt"), weights_only=True)["state_dict"])
    mask_weights(model, masks)  # which changes nothing: they were zero all along
    print(f"test accuracy of the trained network {accuracy(model, *test)}")
    recorded = json.loads(Path(folder, "done").read_text())["record"]
    print(f"test accuracy in the record {recorded['test/acc']}")

    torch.manual_seed(0)
    model.load_state_dict(state)
    mask_weights(model, masks)
    print(f"test accuracy of the ticket before training {accuracy(model, *test)}")
    train(model, masks, *training)
    print(f"test accuracy of the ticket after 5 epochs {accuracy(model, *test)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
