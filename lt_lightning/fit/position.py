"""Where in the data a fit stands, and how to come back there.

The order of the data and every random draw of an epoch are a function of (seed, epoch, process), so any epoch can be
started again. In the middle of an epoch, the epoch is started again and its first batches are skipped: at once where
the loaders can (they have `state_dict` and `load_state_dict`), else by reading them.

Lightning creates the iterator of an epoch at different moments (issues 18780 and 21938 of its tracker), hence the
private names below; `tests/test_position.py` holds them to what they are used for.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from torch.utils.data import DistributedSampler

from lt_lightning.seeding import RandomState, derive, seed_all, set_random_state
from lt_lightning.twins import twins


def start_epoch(trainer: L.Trainer, seed: int) -> None:
    """Make the coming epoch's randomness a function of (seed, epoch, process). Call in `on_train_epoch_start`."""
    loop: Any = trainer.fit_loop
    _seed_epoch(trainer, seed)
    _end_workers(trainer)
    renewed_later = trainer.current_epoch > 0 and not loop.is_resuming and not loop.epoch_loop.restarting
    if not renewed_later and not _resumable(trainer):
        _renew_iterator(trainer)


def return_to_start(trainer: L.Trainer, seed: int) -> None:
    """Let the loaders begin epoch 0 once more, wherever a fit or a restart has left them."""
    _seed_epoch(trainer, seed, epoch=0)
    _end_workers(trainer)
    loop: Any = trainer.fit_loop
    for loader in loop._combined_loader.flattened:
        for epoch in (1, 0):  # our own loaders go to a start only if the epoch is another one
            _set_sampler_epoch(loader, epoch)


def return_to_batch(trainer: L.Trainer, seed: int, state: RandomState | None) -> None:
    """Put loaders and random state where they stood in the middle of an epoch.

    Call in `on_train_start` of a restarted fit. The random state is set when the first batch is asked for: until then
    Lightning may still prepare a validation, which draws.
    """
    loop: Any = trainer.fit_loop
    fetcher = loop._data_fetcher
    _start_callbacks(trainer)
    if not _resumable(trainer):
        _seed_epoch(trainer, seed)
        _end_workers(trainer)
        _renew_iterator(trainer)
        # With a known length Lightning counts the skipped batches itself; without one the fetcher reads ahead.
        source = fetcher if fetcher.length is None else fetcher.iterator
        for _ in range(loop.epoch_loop.batch_progress.current.ready):
            next(source)
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch")
    if state is not None:
        fetcher.iterator = _from_state(state, fetcher.iterator)


def _start_callbacks(trainer: L.Trainer) -> None:
    """Call those of Lightning's own that set themselves up when an epoch starts; a restart within one leaves it out."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, twins(GradientAccumulationScheduler, StochasticWeightAveraging)):
            callback.on_train_epoch_start(trainer, trainer.lightning_module)


def _from_state(state: RandomState, iterator: Iterator[Any]) -> Iterator[Any]:
    set_random_state(state)
    with suppress(StopIteration):
        while True:  # not `yield from`, which would ask the loader for a new iterator
            yield next(iterator)


def in_middle_of_epoch(trainer: L.Trainer) -> bool:
    """Whether the fit that is starting continues in the middle of an epoch."""
    return trainer.fit_loop.restarted_mid_epoch


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether this training batch is followed by a validation, which may draw random numbers."""
    loop: Any = trainer.fit_loop
    return not _is_between_validations(trainer) and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def _is_between_validations(trainer: L.Trainer) -> bool:
    """Whether the count of batches alone says that none follows: Lightning takes longer to find out, at every step."""
    loop, every = trainer.fit_loop.epoch_loop, trainer.val_check_batch
    if type(every) is not int or trainer.is_last_batch or trainer.should_stop:
        return False
    if trainer._val_check_time_interval is not None:  # type: ignore[attr-defined]
        return False
    done = loop.total_batch_idx if trainer.check_val_every_n_epoch is None else loop.batch_idx
    return (done + 1) % every != 0


def validation_in(trainer: L.Trainer) -> int:
    """In how many batches there is the next validation; after the epoch's last one there may be one before."""
    loop: Any = trainer.fit_loop.epoch_loop
    every: Any = trainer.val_check_batch
    if trainer._val_check_time_interval is not None:  # type: ignore[attr-defined]
        return 1  # the clock decides
    if every == float("inf") or not loop._should_check_val_epoch():
        return sys.maxsize
    done = loop.total_batch_idx if trainer.check_val_every_n_epoch is None else loop.batch_idx
    return every - (done + 1) % every


def finish_epoch(trainer: L.Trainer) -> None:
    """Let a fit that restarts at the end of an epoch begin the next one. Call first in `on_train_start`.

    Lightning does so itself, but not when `max_steps` is set: then it ends the epoch a second time, after a batch that
    does not exist where no validation stood at its end.
    """
    loop: Any = trainer.fit_loop
    if loop.restarted_on_epoch_end:
        loop.epoch_progress.increment_completed()
        for each in (loop, loop.epoch_loop):
            each.reset_restart_stage()
            each._restarting = False
    loop._restarting = False  # else ReduceLROnPlateau would not step at the end of this epoch


def counters(trainer: L.Trainer, in_epoch: bool) -> dict[str, Any]:
    """Where the loops stand, for a checkpoint that is saved a little later; see `put_counters`.

    Batches that a module skipped (`on_train_batch_start` returned -1) are counted as begun, which Lightning forgets:
    then it does not know a restart within an epoch for one.
    """
    state = trainer.fit_loop.state_dict()
    batches = state["epoch_loop.batch_progress"]["total"]
    batches["started"], batches["completed"] = batches["ready"], batches["ready"] - int(in_epoch)
    return {"epoch": trainer.current_epoch, "fit_loop": state}


def put_counters(checkpoint: dict[str, Any], counters: dict[str, Any]) -> None:
    """Let a checkpoint say that it was saved in the hook where these counters were taken.

    Lightning restarts rightly from what it saves in `on_train_batch_end` and `on_train_epoch_end` (it takes what
    follows there for done), and from no later moment.
    """
    checkpoint["epoch"] = counters["epoch"]
    checkpoint["loops"]["fit_loop"] = counters["fit_loop"]


def epochs_run(trainer: L.Trainer) -> int:
    """How many epochs the fit has run; the one that is ending counts from `on_train_epoch_end` on."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    return progress.processed


def has_end(trainer: L.Trainer) -> bool:
    """Whether it is known when the fit ends."""
    return trainer.max_steps > 0 or (trainer.max_epochs or -1) > 0


def progress(trainer: L.Trainer, ahead: int = 0) -> float:
    """How much of the fit is done at the end of a batch, in [0, 1]: of its steps or of its epochs, whichever is more.

    With `ahead`, after so many more batches of the same epoch, of a step each.

    It counts from step 0, also in a fit that starts from a later rewind point. Within epochs of unknown length only
    whole ones count.
    """
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current.ready + ahead
    epoch = 1.0 if trainer.is_last_batch and not ahead else batches / trainer.num_training_batches
    epochs = trainer.max_epochs or -1
    shares = [
        (trainer.global_step + ahead) / trainer.max_steps if trainer.max_steps > 0 else 0.0,
        (trainer.current_epoch + epoch) / epochs if epochs > 0 else 0.0,
    ]
    return min(max(shares), 1.0)


def is_over(trainer: L.Trainer) -> bool:
    """Whether the epoch that is ending is the fit's last. Lightning's own answer logs and changes counters."""
    steps_done = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    epochs = trainer.max_epochs if trainer.max_epochs is not None else -1
    epochs_done = epochs != -1 and epochs_run(trainer) >= epochs
    return steps_done or epochs_done or (trainer.should_stop and trainer.fit_loop._can_stop_early)


def _seed_epoch(trainer: L.Trainer, seed: int, epoch: int | None = None) -> None:
    """Seed what this process draws, and the loaders' own generators and samplers, which all processes share."""
    epoch = epochs_run(trainer) if epoch is None else epoch
    loop: Any = trainer.fit_loop
    for index, loader in enumerate(loop._combined_loader.flattened):
        sampler = getattr(loader, "sampler", None)
        batched = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
        for part in (loader, sampler, batched):
            own = getattr(part, "generator", None)
            if isinstance(own, torch.Generator):
                own.manual_seed(derive(seed, "loader", index, epoch))
            if isinstance(part, DistributedSampler):
                part.seed = derive(seed, "sampler", index) % 2**31
    seed_all(derive(seed, "epoch", epoch, trainer.global_rank))


def _end_workers(trainer: L.Trainer) -> None:
    """Let workers that would live on be started again: they are seeded when they start, and never after."""
    loop: Any = trainer.fit_loop
    for loader in loop._combined_loader.flattened:
        if getattr(loader, "persistent_workers", False):
            loader._iterator = None


def _renew_iterator(trainer: L.Trainer) -> None:
    loop: Any = trainer.fit_loop
    for loader in loop._combined_loader.flattened:
        _set_sampler_epoch(loader, epochs_run(trainer))
    iter(loop._data_fetcher)


def _resumable(trainer: L.Trainer) -> bool:
    """Whether every loader keeps its own position, which Lightning then saves and restores."""
    loop: Any = trainer.fit_loop
    loaders = loop._combined_loader.flattened
    return all(hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict") for loader in loaders)
