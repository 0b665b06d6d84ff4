"""What one fit measured: its curves, its early stop, its end, the tests after it, and the time it took."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from lt_lightning.fit.early_stop import EarlyStop
from lt_lightning.records import Curves, Record, early_stop_name, numbers


class Measurements:
    """The measurements of one fit, over all its restarts.

    Args:
        monitor: the validation metric that decides the early stop; None: off.
        mode: "min" or "max".
    """

    def __init__(self, monitor: str | None, mode: str) -> None:
        self._early_stop = EarlyStop(monitor, mode)
        self._curves = Curves(None)
        self._rows = 0
        self._logged: dict[str, float] = {}
        self._tests: dict[str, float] = {}
        self._weights: str | None = None
        self._steps = 0
        self._seconds = 0.0
        self._started: float | None = None
        self.beside: dict[str, float] = {}
        """What stands in each row of the curves beside the metrics."""

    def start_clock(self) -> None:
        """Count the seconds from now on."""
        self._started = time.monotonic()

    def start_curves(self, path: Path | None) -> None:
        """Write curves to `path`, if this process writes, from where an interrupted fit continues."""
        self._curves = Curves(path, self._rows)

    def log(self, trainer: L.Trainer) -> None:
        """Add what was just logged to the curves; Lightning's public `logged_metrics` holds earlier values too."""
        logged = trainer._logger_connector.metrics["log"]
        self._curves.add(trainer.global_step, trainer.current_epoch, logged and {**logged, **self.beside})

    def write_curves(self) -> None:
        """Bring the file up to date."""
        self._curves.write()

    def check_monitor(self, trainer: L.Trainer) -> None:
        """Raise a ValueError unless the sanity check logs the monitor, or gives all metrics names of its own."""
        logged = trainer.callback_metrics
        if not any("sanity" in name for name in logged):
            self._early_stop.require(logged)

    def validate(self, trainer: L.Trainer, *, counts: bool = True) -> bool:
        """Take note of a validation; whether it is the best so far, of those that count."""
        self.end_epoch(trainer)
        if not counts:
            return False
        validated = numbers(trainer._logger_connector.metrics["callback"])  # no metrics of training: they are older
        monitor = self._early_stop.monitor
        return self._early_stop.improve(
            trainer.global_step, {k: v for k, v in self._logged.items() if k == monitor} | validated
        )

    def end_epoch(self, trainer: L.Trainer) -> None:
        """Take note of the metrics so far; after a restart Lightning knows those since the restart alone."""
        self.log(trainer)
        self._logged |= numbers(trainer.callback_metrics)

    def end(self, trainer: L.Trainer) -> None:
        """Take note of the metrics at the end of training."""
        self._logged |= numbers(trainer.callback_metrics)
        self._curves.write()

    def stop_clock(self, trainer: L.Trainer) -> None:
        """Take note of the fit's steps and seconds."""
        self._steps = trainer.global_step
        self._seconds, self._started = self._seconds_so_far(), None

    def load_weights(self, trainer: L.Trainer) -> None:
        """Take note of the checkpoint that the model's weights come from; None: they are those of the end."""
        self._weights = str(trainer.ckpt_path) if trainer.ckpt_path else self._weights

    def test(self, trainer: L.Trainer, end: str, early_stop: str | None) -> None:
        """Let the tested metrics join the record, if the weights at the end or at the early stop were tested."""
        measured = numbers(trainer.callback_metrics)
        if self._weights in (None, end):
            self._tests |= measured
        elif self._weights == early_stop:
            self._tests |= {early_stop_name(name): value for name, value in measured.items()}

    def record(self) -> Record:
        """Steps, seconds and metrics, those of the early stop last."""
        metrics = self._logged | {early_stop_name(name): value for name, value in self._early_stop.metrics.items()}
        metrics |= self._tests
        return {
            "steps": self._steps,
            "seconds": round(self._seconds, 3),
            "early_stop_step": self._early_stop.step,
            **dict(sorted(metrics.items(), key=lambda item: item[0].startswith("early_stop_"))),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "seconds": self._seconds_so_far(),
            "logged": self._logged,
            "early_stop": self._early_stop.state_dict(),
            "curves": list(self._curves.written),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what a checkpoint kept."""
        self._seconds, self._logged = state["seconds"], dict(state["logged"])
        self._early_stop.load_state_dict(state["early_stop"])
        self._rows = state["curves"][0]

    def _seconds_so_far(self) -> float:
        return self._seconds + (time.monotonic() - self._started if self._started is not None else 0.0)
