"""Lightning's finders of a learning rate or a batch size: they search once, and all fits of a lottery train with that.

A finder among the callbacks searches at the start of round 0, on the dense network, before the point at step 0 is
saved. What it found is an attribute of the module or of the data module; it is stored in that point, and every other
fit takes it from there instead of searching: another learning rate would be another experiment.

The search is a fit within the fit, which leaves its traces in the loops, the optimizers and the random state; hence the
private names below. `Tuner` is a fit of its own, by a Trainer that is then used again.
"""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.parsing import lightning_getattr, lightning_hasattr, lightning_setattr

from lt_lightning.disk.rundir import Checkpoint, model_state
from lt_lightning.seeding import derive, random_state, seed_all, set_random_state
from lt_lightning.twins import twins


class Tuning:
    """What the finders of a fit found.

    Attributes:
        found: attribute of the module or the data module → its value.
    """

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self._tuned: list[str] = []
        self._before: tuple[Any, Any] | None = None

    def prepare(self, trainer: L.Trainer, module: L.LightningModule, point: Path, key: str) -> bool:
        """Let the finders search if the point at step 0 is still to come, else take what it says. Call in `setup`.

        Args:
            trainer: its finders are taken away if there is nothing to search.
            module: is given the values.
            point: the checkpoint at step 0.
            key: of the ticket's state in it.

        Returns:
            Whether there will be a search, that of a `Tuner` included.

        Raises:
            ValueError: if a finder searches at other times, or was not there when round 0 began.
        """
        forget_search(trainer)
        self._before = None
        finders = [each for each in _finders(trainer) if not each._early_exit]
        for each in finders:
            _require_search_at_start(each)
        if finders and point.exists():
            stored = Checkpoint(point)["callbacks"][key].get("found", {})
            self.found = {name: _stored(stored, name, each) for each in finders for name in _names(each, module)}
            for name, value in self.found.items():
                lightning_setattr(module, name, value)
            _take_away(trainer, finders)
            rank_zero_info(f"not searching again, as in round 0: {self.found}")
        if self._tuned and not _finders(trainer):
            self._take_tuned(module, point, key)
        return bool(_finders(trainer))

    def _take_tuned(self, module: L.LightningModule, point: Path, key: str) -> None:
        """What a `Tuner` found counts in round 0; later ones train with that, whatever they found."""
        stored = Checkpoint(point)["callbacks"][key].get("found", {}) if point.exists() else {}
        self.found = {name: stored.get(name, lightning_getattr(module, name)) for name in self._tuned}
        for name, value in self.found.items():
            lightning_setattr(module, name, value)

    def begin(self, trainer: L.Trainer, module: L.LightningModule, seed: int) -> None:
        """Remember what a search changes, and make what it draws a function of `seed`. Call before it."""
        tuned = [name for each in _finders(trainer) if each._early_exit for name in _names(each, module)]
        self._tuned = list(dict.fromkeys([*self._tuned, *tuned]))
        self._before = trainer.ckpt_path, random_state()
        seed_all(derive(seed, "search"))

    def conclude(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """After a search, begin as if what was found had been there from the start. Call in `on_fit_start`."""
        if self._before is None:
            return
        finders = _finders(trainer)
        self.found = {name: lightning_getattr(module, name) for each in finders for name in _names(each, module)}
        _take_away(trainer, finders)
        forget_search(trainer)
        trainer.strategy.setup_optimizers(trainer)  # a schedule would go on from the learning rate that stood there
        (trainer._checkpoint_connector._ckpt_path, state), self._before = self._before, None
        set_random_state(state)


def searched_by_tuner(trainer: L.Trainer) -> bool:
    """Whether this fit is the search of a `Tuner`, and ends with it."""
    return any(finder._early_exit for finder in _finders(trainer))


def load_weights(module: L.LightningModule, path: Path | str | None) -> None:
    """Go to where the round starts, if that is known: an instance of a model has the weights of an earlier fit."""
    if path and Path(path).exists():
        module.load_state_dict(model_state(Checkpoint(Path(path))))


def forget_search(trainer: L.Trainer) -> None:
    """Let the loops begin anew: a search restores a checkpoint, which they would take for that of a restarted fit."""
    fit: Any = trainer.fit_loop
    loops = [fit, fit.epoch_loop, fit.epoch_loop.val_loop]
    for loop in (*loops, fit.epoch_loop.automatic_optimization, fit.epoch_loop.manual_optimization):
        loop._restarting = loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
        loop.reset_restart_stage()
    fit._combined_loader_states_to_load = []


def _finders(trainer: L.Trainer) -> list[Any]:
    kinds = twins(LearningRateFinder, BatchSizeFinder)
    return [each for each in trainer.callbacks if isinstance(each, kinds)]  # type: ignore[attr-defined]


def _take_away(trainer: L.Trainer, finders: list[Callback]) -> None:
    trainer.callbacks = [each for each in trainer.callbacks if each not in finders]  # type: ignore[attr-defined]


def _names(finder: Any, module: L.LightningModule) -> list[str]:
    """The attributes that a finder sets."""
    if isinstance(finder, twins(BatchSizeFinder)):
        return [finder._batch_arg_name]
    if not finder._update_attr:
        return []
    options = [finder._attr_name] if finder._attr_name else ["lr", "learning_rate"]
    return [name for name in options if lightning_hasattr(module, name)][:1]


def _stored(stored: dict[str, Any], name: str, finder: Callback) -> Any:
    if name not in stored:
        raise ValueError(
            f"{type(finder).__name__} was not there when round 0 began, so no {name} was found that all rounds could "
            "train with: remove it from the callbacks, or pass lottery(..., directory=another one)."
        )
    return stored[name]


def _require_search_at_start(finder: Any) -> None:
    if type(finder).on_fit_start not in [each.on_fit_start for each in twins(LearningRateFinder, BatchSizeFinder)]:
        kind = LearningRateFinder if isinstance(finder, twins(LearningRateFinder)) else BatchSizeFinder
        raise ValueError(
            f"{type(finder).__name__} has an on_fit_start of its own; a lottery searches once, at the start of round "
            f"0, so that all rounds train alike: pass callbacks=[{kind.__name__}(...), ticket]."
        )
