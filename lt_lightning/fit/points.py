"""When a rewind point is due: always at step 0, and at the steps or epochs that the plan asks for."""

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import BaseFinetuning, StochasticWeightAveraging, WeightAveraging

from lt_lightning.disk.rundir import RunDirectory
from lt_lightning.plan import Plan
from lt_lightning.rewinds import RewindStep
from lt_lightning.twins import twins


def check(trainer: L.Trainer, plan: Plan) -> None:
    """Raise a ValueError if the fit is known to end at or before the rewind point, or before a further point."""
    steps = trainer.estimated_stepping_batches
    known = 0 <= steps < float("inf") and trainer.num_training_batches < float("inf")
    if not (known and trainer.lightning_module.automatic_optimization) or _is_trial(trainer):
        return
    steps_per_epoch = -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
    lengths = {"steps": steps, "epochs": steps / steps_per_epoch}
    asked = [(f"rewind_step={plan.rewind_step}", "rewind_step", plan.rewind_step)]
    asked += [(f"the point after {step} (points or rewind_step)", "one", step) for step in plan.points]
    for told, smaller, step in asked:
        if step.count > 0 and step.count >= lengths[step.unit]:
            raise ValueError(
                f"{told} lies at or beyond the end of the fit, which has {lengths[step.unit]:g} {step.unit}: "
                f"choose a smaller {smaller}, or train longer (max_epochs, max_steps)."
            )


def reached(trainer: L.Trainer, plan: Plan, epochs: int) -> bool:
    """Whether the fit has come to the plan's rewind point, after `epochs` finished epochs.

    A trial of one batch never comes to a later step, so for it every step counts.
    """
    wanted = plan.rewind_step
    return _is_trial(trainer) or (trainer.global_step if wanted.unit == "steps" else epochs) >= wanted.count


def further(trainer: L.Trainer, plan: Plan, epochs: int, before: int) -> list[RewindStep]:
    """The further points of the plan that this moment is, `epochs` finished epochs and `before` steps behind it.

    A batch may take several steps, of which the last one counts; a point that was passed before it was asked for is
    not due any more.
    """
    spans = {"steps": range(before + 1, trainer.global_step + 1), "epochs": range(epochs, epochs + 1)}
    return [each for each in plan.points if each.count > 0 and each.count in spans[each.unit]]


def path_of(directory: RunDirectory, step: RewindStep) -> Path:
    """Where the point after so many steps or epochs is found: a link, where it has the name of another step."""
    name = f"{step.unit.removesuffix('s')}-{step.count}.ckpt"
    return directory.point(0).with_name(name)


def rewound_keys(trainer: L.Trainer) -> list[str]:
    """The callbacks whose states are rewound: averages are weights too, and thawed layers are in the optimizer."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    rewound = twins(WeightAveraging, StochasticWeightAveraging, BaseFinetuning)
    return [c.state_key for c in callbacks if isinstance(c, rewound)]


def _is_trial(trainer: L.Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
