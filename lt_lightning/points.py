"""When a rewind point is due: always at step 0, and at the steps or epochs that the plan asks for."""

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging

from lt_lightning.plan import Plan
from lt_lightning.rewinds import RewindStep
from lt_lightning.twins import twins


def check(trainer: L.Trainer, plan: Plan) -> None:
    """Raise a ValueError if the fit is known to end at or before the rewind point."""
    count, unit = plan.rewind_step.count, plan.rewind_step.unit
    steps = trainer.estimated_stepping_batches
    known = 0 <= steps < float("inf") and trainer.num_training_batches < float("inf")
    countable = trainer.lightning_module.automatic_optimization and known
    if count == 0 or not countable or _is_trial(trainer):
        return
    steps_per_epoch = -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
    length = steps if unit == "steps" else steps / steps_per_epoch
    if count >= length:
        raise ValueError(
            f"rewind_step={plan.rewind_step} lies at or beyond the end of the fit, which has {length:g} {unit}: "
            "choose a smaller rewind_step, or train longer (max_epochs, max_steps)."
        )


def reached(trainer: L.Trainer, plan: Plan, epochs: int) -> bool:
    """Whether the fit has come to the plan's rewind point, after `epochs` finished epochs.

    A trial of one batch never comes to a later step, so for it every step counts.
    """
    wanted = plan.rewind_step
    return _is_trial(trainer) or (trainer.global_step if wanted.unit == "steps" else epochs) >= wanted.count


def due(trainer: L.Trainer, plan: Plan, epochs: int, awaited: bool) -> Path | None:
    """Where the point of this moment belongs; None if none is due. `awaited`: there is no rewind point yet."""
    wanted = (
        trainer.global_step == 0 or bool(named(trainer, plan, epochs)) or (awaited and reached(trainer, plan, epochs))
    )
    return plan.directory.point(trainer.global_step) if wanted else None


def named(trainer: L.Trainer, plan: Plan, epochs: int) -> list[RewindStep]:
    """The further points of the plan that this moment is, after `epochs` finished epochs."""
    here = {"steps": trainer.global_step, "epochs": epochs}
    return [each for each in plan.points if each.count == here[each.unit] and each.count > 0]


def averaging_keys(trainer: L.Trainer) -> list[str]:
    """The callbacks whose states are rewound: those that average weights, since their averages are weights too."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    averaging = twins(WeightAveraging, StochasticWeightAveraging)
    return [c.state_key for c in callbacks if isinstance(c, averaging)]


def _is_trial(trainer: L.Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
