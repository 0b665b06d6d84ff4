"""The early stop, found after the fact: training runs its full length, and the best validation is remembered.

Source: Frankle & Carbin 2019 (arXiv 1803.03635), section 2: the step of minimum validation loss.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lt_lightning.fit.monitor import AUTO, validation_loss
from lt_lightning.records import numbers


@dataclass
class EarlyStop:
    """The best validation so far.

    Args:
        monitor: name of the metric; "auto": the validation loss that the first validation with one logs; None: off.
        mode: "min" or "max".
        value: its best value.
        step: optimizer steps done when it was measured.
        metrics: what that validation logged.
        found: the metric that "auto" stands for, once it is known.

    Raises:
        ValueError: for "auto" with "max": a loss is best where it is least.
    """

    monitor: str | None
    mode: str = "min"
    value: float | None = None
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    found: str | None = None

    def __post_init__(self) -> None:
        if self.monitor == AUTO and self.mode == "max":
            raise ValueError(
                'mode="max" needs the name of a metric of which more is better, and monitor="auto" stands for the '
                'validation loss: pass lottery(..., monitor="val/acc", mode="max"); prune.monitor=val/acc.'
            )

    def require(self, logged: Iterable[str]) -> None:
        """Raise a ValueError unless the monitored metric was logged; "auto" goes without."""
        if self.monitor not in (None, AUTO) and self.monitor not in logged:
            raise ValueError(
                f"validation did not log the monitor {self.monitor!r}; it logged {sorted(logged)}. "
                "Pass lottery(..., monitor=one of them), or monitor=None to go without an early stop; "
                "prune.monitor=... on the command line."
            )

    def improve(self, step: int, logged: Mapping[str, Any]) -> bool:
        """Take note of a validation; whether it is the best so far. The first of equals counts, NaN never does.

        >>> best = EarlyStop("val/loss")
        >>> [best.improve(step, {"val/loss": loss}) for step, loss in [(1, 0.9), (2, 0.5), (3, 0.5)]], best.step
        ([True, True, False], 2)
        """
        self.require(logged)
        if self.monitor == AUTO and self.found is None:
            self.found = validation_loss(logged)
        watched = self.found if self.monitor == AUTO else self.monitor
        if watched is None or watched not in logged:
            return False
        value = float(logged[watched])
        better = self.value is None or (value < self.value if self.mode == "min" else value > self.value)
        if value != value or not better:
            return False
        self.value, self.step, self.metrics = value, step, numbers(logged)
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what a checkpoint kept."""
        self.value, self.step, self.metrics = state["value"], state["step"], dict(state["metrics"])
        self.found = state["found"]
