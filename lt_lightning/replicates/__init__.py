"""Several seeds of one experiment in one process, their weights stacked: a GPU that one small network cannot fill.

Each seed keeps its ordinary lottery, ticket, Trainer, module and run directory. A further Trainer, the leader, runs the
loops for all: its module holds the weights of all seeds in tensors with one more dimension, which one forward pass
(`torch.func.vmap`), one backward pass and one optimizer step train together. The parameters of each seed's own module
are views of them, and each seed's Trainer shares the leader's loops; so what a seed logs, selects and saves is done by
the same code as in a run of its own, and its files are the same up to the order in which floats are added.
"""

from lt_lightning.replicates.seeds import Replicate, configured, same_data, side_by_side
from lt_lightning.replicates.together import fit

__all__ = ["Replicate", "configured", "fit", "same_data", "side_by_side"]
