"""Log each round to W&B, TensorBoard or MLflow, beside the CSV files that are always written.

A new logger per round, because `trainer/global_step` starts again in each, and one run called `summary` whose
x-axis is the round. These curves are a copy of the run directory's CSV files, so where a logger fails, a warning
says so and the training goes on.
"""

from lt_lightning.loggers.base import Nothing, RoundLoggers, log_curves
from lt_lightning.loggers.mlflow import MLflow
from lt_lightning.loggers.tensorboard import TensorBoard
from lt_lightning.loggers.wandb import Wandb

__all__ = ["MLflow", "Nothing", "RoundLoggers", "TensorBoard", "Wandb", "log_curves"]
