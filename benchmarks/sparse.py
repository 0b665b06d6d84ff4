"""What sparse execution saves: a step, and a run of many rounds.

python -m benchmarks sparse
"""

import tempfile
from functools import partial

import torch
from torch.nn.functional import cross_entropy

from benchmarks.networks import OUTPUTS, SGD, SHAPES, images, lenet, mlp, tickets, trainer
from benchmarks.side_by_side import alternated, ratio, seconds
from lt_lightning import geometric
from lt_lightning.fit.enforcement import Enforcement
from lt_lightning.fit.replaced import Replaced

STEPS = {(lenet, 0.05): 0.6, (lenet, 0.012): 0.4, (mlp, 0.05): 0.25, (mlp, 0.012): 0.12}
RUNS = {lenet: (0.8, 1000), mlp: (0.65, 200)}
"""Network → ratio to reach, and steps of a round."""


def rows(quick):
    """Rows of the table: what, the ratio to reach, the ratio, seconds of both."""
    for (network, density), goal in STEPS.items():
        measured = step(network, density, repeats=5 if quick else 15)
        yield f"step of {network.__name__}, batch 128 SGD, at density {density}: sparse / masked dense", goal, *measured
    for network, (goal, steps) in RUNS.items():
        measured = run(network, steps // 10 if quick else steps, rounds=20, repeats=1 if quick else 5)
        yield f"20 rounds of {network.__name__} to density 0.012, in total: sparse / off", goal, *measured


def step(network, density, repeats):
    """Forward, backward, masks and update, in a bare loop with the plugin's own pieces."""
    return ratio(stepping(network, density, True), stepping(network, density, False), repeats)


def stepping(network, density, sparse, steps=20):
    torch.manual_seed(0)
    model = network()
    optimizer = SGD(model.parameters())
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1 and n not in OUTPUTS}
    masks = {name: torch.rand(each.shape) < density for name, each in weights.items()}
    enforcement = Enforcement(masks, weights)
    enforcement.mask_weights()
    if sparse:
        enforcement.leave(weights.values())
        for name in weights:
            Replaced(model.get_submodule(name.removesuffix(".weight")), masks[name], [optimizer])
    inputs, labels = torch.randn(128, *SHAPES[network]), torch.randint(0, 10, (128,))

    def take():
        for _ in range(steps):
            optimizer.zero_grad()
            cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            enforcement.mask_weights()

    return take


def run(network, steps, rounds, repeats):
    """A whole lottery, all that is between rounds included."""
    one, other = (partial(seconds, partial(play, network, steps, rounds, asked)) for asked in ("auto", "off"))
    return alternated(one, other, repeats)


def play(network, steps, rounds, sparse):
    data = images(network)
    with tempfile.TemporaryDirectory() as directory:
        schedule = geometric(1 - 0.012 ** (1 / rounds))
        for ticket in tickets(network, directory, rounds=rounds, schedule=schedule, sparse=sparse):
            fit = trainer(ticket.directory, [ticket], max_steps=steps, max_epochs=-1)
            fit.fit(ticket.model, data, ckpt_path=ticket.ckpt_path)
