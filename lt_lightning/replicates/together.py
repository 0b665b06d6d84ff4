"""One fit of several seeds."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import lightning as L
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from lt_lightning.data import Images
from lt_lightning.replicates.checks import check
from lt_lightning.replicates.conductor import Conductor
from lt_lightning.ticket import Ticket

MakeTrainer = Callable[..., L.Trainer]
"""Makes one more Trainer like those of the seeds, from the arguments in which it differs."""


def fit(
    make_trainer: MakeTrainer, trainers: Sequence[L.Trainer], tickets: Sequence[Ticket], data: Sequence[Images]
) -> None:
    """Fit one ticket as ever, or several together: the same fit of several seeds.

    Args:
        make_trainer: makes the leader.
        trainers: of each seed, with its ticket among the callbacks; they can test afterwards.
        tickets: a group of `side_by_side`.
        data: of each seed, of which the first one's is loaded.

    Raises:
        ValueError: for what cannot be trained together, or not to the same results; nothing has been trained then.

    Example:
        ```python
        make_trainer = partial(L.Trainer, max_epochs=20, accelerator="gpu", devices=1)
        for group in side_by_side([lottery(..., directory=f"runs/seed={n}", seed=n) for n in range(5)]):
            tickets = list(group.values())
            trainers = [make_trainer(default_root_dir=each.directory, callbacks=[each]) for each in tickets]
            fit(make_trainer, trainers, tickets, [images.reordered(seed=n) for n in group])
        ```
    """
    if len(tickets) == 1:
        trainers[0].fit(cast(Any, tickets[0].model), data[0], ckpt_path=tickets[0].ckpt_path)
        return
    check(trainers, tickets, data)
    conductor = Conductor(trainers, tickets, data)
    leader = make_trainer(
        default_root_dir=tickets[0].directory,
        callbacks=[conductor],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        gradient_clip_val=None,  # the conductor clips, each seed for itself
    )
    leader.fit(conductor.stacked, Together(data), ckpt_path=tickets[0].ckpt_path)


class Together(L.LightningDataModule):
    """The images of all seeds, which are the same, in the order of each."""

    def __init__(self, data: Sequence[Images]) -> None:
        super().__init__()
        self._data = data

    def prepare_data(self) -> None:
        """Read the images once."""
        self._data[0].prepare_data()

    def setup(self, stage: str) -> None:
        """Put them on the device once."""
        for each in self._data:
            each.trainer = self.trainer
        self._data[0].setup(stage)

    def train_dataloader(self) -> CombinedLoader:
        """Batches of all seeds: a list of one for each."""
        return CombinedLoader([each.train_dataloader() for each in self._data], "min_size")

    def val_dataloader(self) -> Any:
        """The validation images, which all seeds share."""
        return self._data[0].val_dataloader()
