"""Your own criterion in one function: LAMP, magnitudes that are comparable between layers.

    python examples/own_criterion.py

It prunes a network to a tenth in one shot, by magnitude and by this criterion, and prints what each layer keeps and how
accurate the ticket is. From the command line it is a name, with this folder on PYTHONPATH:

    python train.py prune=one_shot prune.density=0.1 prune.criterion._target_=own_criterion.lamp
"""

import sys
from pathlib import Path

import lightning as L
import torch
from smallest import Net, loaders  # the project beside this file

from lt_lightning import load_ticket, lottery, magnitude


def lamp(evidence):
    """Score each weight by its square over the sum of the squares of all that are at least as large in its layer.

    Source: Lee et al. 2021 (arXiv 2010.07611), section 3.

    >>> from types import SimpleNamespace
    >>> evidence = SimpleNamespace(trained={"w": torch.tensor([1.0, -2.0, 0.0])}, masks={"w": torch.ones(3).bool()})
    >>> [round(score, 2) for score in lamp(evidence)["w"].tolist()]
    [0.2, 1.0, 0.0]
    """
    scores = {}
    for name, weight in evidence.trained.items():
        squares, order = weight.square().flatten().double().sort(descending=True)
        score = torch.empty_like(squares)
        score[order] = squares / squares.cumsum(0).clamp(min=torch.finfo(squares.dtype).tiny)
        scores[name] = score.view(weight.shape)
    return scores


def main(directory="runs/own_criterion", epochs=10):
    """Train a dense network and a ticket by each criterion, and print the tickets."""
    training, test = loaders()
    for criterion in (magnitude, lamp):
        run = Path(directory, criterion.__name__)
        for ticket in lottery(Net, rounds=1, density=0.1, directory=run, criterion=criterion):
            trainer = L.Trainer(
                max_epochs=int(epochs),
                default_root_dir=ticket.directory,
                callbacks=[ticket],
                accelerator="cpu",
                logger=False,
            )
            trainer.fit(ticket.model, training, test, ckpt_path=ticket.ckpt_path)
            trainer.test(ticket.model, test)
        found = load_ticket(run / "round-01")
        layers = ", ".join(f"{mask.float().mean():.3f}" for mask in found.masks.values())
        print(f"{criterion.__name__}: layers keep {layers}; test accuracy {found.metrics['test/acc']:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
