"""Testing states of a run's module: error and loss, with statistics of batch norm that belong to the state.

The running statistics of two networks are not those of a network between them. So they are computed anew from training
batches for every state, as Garipov et al. 2018 (arXiv 1802.10026) do for states on a curve (`update_bn` in their code).
"""

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lt_lightning.analysis.recipe import Recipe
from lt_lightning.fresh import fresh_module
from lt_lightning.seeding import derive, seed_all

BATCHES = 100
"""From how many training batches the statistics of batch norm are computed."""

Evaluate = Callable[[Mapping[str, Tensor]], Mapping[str, float | None]]
"""State of a module → metrics by name, None where not measured."""


def evaluator(recipe: Recipe, directory: Path, seed: int) -> Evaluate:
    """A function that tests states of a run's module: state → error and loss.

    Tested is what the module tests, or validates if it has no `test_step`. The statistics of batch norm are computed
    from training batches first.

    Args:
        recipe: what makes the fits of the run.
        directory: where a Trainer may write.
        seed: of the run.
    """
    module: Any = fresh_module(recipe.make_model, derive(seed, "init"), configure=True)
    seed_all(derive(seed, "body"))
    data = recipe.make_data(seed)
    make = partial(recipe.make_trainer, default_root_dir=str(directory), logger=False)
    trainer = make(callbacks=[])
    test = trainer.test if is_overridden("test_step", module, L.LightningModule) else trainer.validate
    prepare = (
        _statistics(recipe, make, seed) if any(isinstance(each, _BatchNorm) for each in module.modules()) else None
    )

    def evaluate(state: Mapping[str, Tensor]) -> dict[str, float | None]:
        module.load_state_dict(state)
        if prepare is not None:
            prepare(module)
        return _error_and_loss(test(module, data, verbose=False)[0])

    return evaluate


def _statistics(recipe: Recipe, make: Callable[..., L.Trainer], seed: int) -> Callable[[Any], Any]:
    """A function that computes the statistics of a module's batch norm from training batches, always the same ones."""
    trainer = make(callbacks=[_NewStatistics()], limit_val_batches=BATCHES)
    data = recipe.make_data(seed)
    data.prepare_data()
    data.setup("fit")

    def compute(module: Any) -> None:
        seed_all(derive(seed, "statistics"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*sampler has shuffling enabled")  # they are training batches
            trainer.validate(module, dataloaders=data.train_dataloader(), verbose=False)

    return compute


class _NewStatistics(Callback):
    """Lets batch norm, in a validation, compute its statistics anew: as means over all batches."""

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._momenta = {each: each.momentum for each in pl_module.modules() if isinstance(each, _BatchNorm)}
        for each in self._momenta:
            each.reset_running_stats()
            each.momentum = None
            each.train()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for each, momentum in self._momenta.items():
            each.momentum = momentum
            each.eval()


def _error_and_loss(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """What counts of tested metrics: one less the accuracy, if that is a fraction, and the loss.

    >>> _error_and_loss({"test/acc": 0.75, "test/loss": 1.5})
    {'error': 0.25, 'loss': 1.5}
    """
    accuracy = next((value for key, value in metrics.items() if key.endswith(("acc", "accuracy"))), math.nan)
    loss = next((value for key, value in metrics.items() if key.endswith("loss")), None)
    return {"error": 1 - accuracy if 0 <= accuracy <= 1 else None, "loss": loss}
