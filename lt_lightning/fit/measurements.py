"""What one fit measured: its curves, its early stop, its end, the tests after it, and the time it took."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.rank_zero import WarningCache
from lightning.pytorch.utilities import rank_zero_info

from lt_lightning.fit import epoch_metrics
from lt_lightning.fit.early_stop import EarlyStop
from lt_lightning.fit.monitor import AUTO
from lt_lightning.fit.tested import END
from lt_lightning.records import (
    BEST_CHECKPOINT,
    EARLY_STOP,
    Curves,
    Record,
    beside,
    column,
    columns_at,
    numbers,
)

_once = WarningCache()


class Measurements:
    """The measurements of one fit, over all its restarts.

    Args:
        monitor: the validation metric that decides the early stop; "auto": the validation loss; None: off.
        mode: "min" or "max".
        run: the run directory, as warnings name it.
    """

    def __init__(self, monitor: str | None, mode: str, run: str = "") -> None:
        self._early_stop = EarlyStop(monitor, mode)
        self._run = run
        self._validated: set[str] | None = None
        self._curves = Curves(None)
        self._rows = 0
        self._logged: dict[str, float] = {}
        self._tests: dict[str, dict[str, float]] = {}
        self._weights: str | None = None
        self._steps = 0
        self._seconds = 0.0
        self._started: float | None = None
        self.beside: dict[str, float] = {}
        """What stands in each row of the curves beside the metrics."""

    def start_clock(self) -> None:
        """Count the seconds from now on."""
        self._started = time.monotonic()

    @property
    def monitor_found(self) -> str | None:
        """The metric that monitor="auto" stands for; None: it was not found, or a name was given."""
        return self._early_stop.found

    def keep_monitor(self, found: str | None) -> None:
        """Watch what an earlier fit of the run has found for monitor="auto", so that all fits watch the same."""
        if found is not None and self._early_stop.monitor == AUTO:
            self._early_stop.found = found

    def start_curves(self, path: Path | None) -> None:
        """Write curves to `path`, if this process writes, from where an interrupted fit continues."""
        self._curves = Curves(path, self._rows)

    def log(self, trainer: L.Trainer) -> None:
        """Add what was just logged to the curves; Lightning's public `logged_metrics` holds earlier values too."""
        logged = epoch_metrics.logged(trainer)
        self._tell_of_names(logged)
        self._curves.add(trainer.global_step, trainer.current_epoch, logged, self.beside)

    def write_curves(self) -> None:
        """Bring the file up to date."""
        self._curves.write()

    def check_monitor(self, trainer: L.Trainer) -> None:
        """Raise a ValueError unless the sanity check logs the monitor, or nothing, or names of its own."""
        logged = epoch_metrics.validated_names(trainer) | set(trainer.callback_metrics)
        if logged and not any("sanity" in name for name in logged):
            self._early_stop.require(logged)

    def validate(self, trainer: L.Trainer, *, counts: bool = True) -> bool:
        """Take note of a validation; whether it is the best so far, of those that count."""
        self.end_epoch(trainer)
        if not counts:
            return False
        validated = numbers(epoch_metrics.logged(trainer, "callback"))  # no metrics of training: they are older
        monitor, found = self._early_stop.monitor, self._early_stop.found
        older = {} if monitor == AUTO else {k: v for k, v in self._logged.items() if k == monitor}
        better = self._early_stop.improve(trainer.global_step, older | validated)
        self._validated = (self._validated or set()) | set(validated)
        if self._early_stop.found != found:
            rank_zero_info(f'monitor="auto": {self._early_stop.found!r} decides the early stop (prune.monitor)')
        return better

    def end_epoch(self, trainer: L.Trainer) -> None:
        """Take note of the metrics so far; after a restart Lightning knows those since the restart alone."""
        self.log(trainer)
        self._logged |= numbers(trainer.callback_metrics)

    def end(self, trainer: L.Trainer) -> None:
        """Take note of the metrics at the end of training."""
        self._logged |= numbers(trainer.callback_metrics)
        self._curves.write()
        if self._early_stop.monitor == AUTO and self._early_stop.found is None:
            found = "nothing is validated"
            if self._validated is not None:
                found = f"no validation loss is among {sorted(self._validated)}"
            rank_zero_info(
                f'monitor="auto": no early stop, as {found}; name a metric to have one: lottery(..., monitor=...), '
                "prune.monitor=..."
            )

    def stop_clock(self, trainer: L.Trainer) -> None:
        """Take note of the fit's steps and seconds."""
        self._steps = trainer.global_step
        self._seconds, self._started = self._seconds_so_far(), None

    def load_weights(self, trainer: L.Trainer) -> None:
        """Take note of the checkpoint that the model's weights come from; None: they are those of the end."""
        self._weights = str(trainer.ckpt_path) if trainer.ckpt_path else self._weights

    @property
    def loaded(self) -> str | None:
        """The checkpoint that the model's weights come from; None: they are those of the end."""
        return self._weights

    def test(self, trainer: L.Trainer, moments: Iterable[str]) -> None:
        """Let the tested metrics join the record, at the moments of the fit whose weights were tested."""
        for moment in moments:
            self._tests.setdefault(moment, {}).update(numbers(trainer.callback_metrics))
            self._tell_of_names(trainer.callback_metrics)

    def record(self) -> Record:
        """Steps, seconds and metrics, those of the early stop last."""
        stop = self._early_stop.metrics
        tests = {moment: beside(found, self._logged | stop) for moment, found in self._tests.items()}
        end = self._logged | tests.get(END, {})
        elsewhere = [(BEST_CHECKPOINT, tests.get(BEST_CHECKPOINT, {})), (EARLY_STOP, stop | tests.get(EARLY_STOP, {}))]
        metrics = {column(name): value for name, value in end.items()}
        for moment, found in elsewhere:
            names = columns_at(moment, found)
            metrics |= {names[name]: value for name, value in found.items()}
        return {
            "steps": self._steps,
            "seconds": round(self._seconds, 3),
            "early_stop_step": self._early_stop.step,
            **metrics,
        }

    def _tell_of_names(self, logged: Iterable[str]) -> None:
        """Warn, once in a run, of metrics that have the names of other columns."""
        for name in logged:
            if column(name) != name:
                _once.warn(
                    f"{self._run}: the module logs {name!r}, which is the name of another column of the records: its "
                    f"values are recorded as {column(name)!r}. Log it under another name to choose one yourself."
                )

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
