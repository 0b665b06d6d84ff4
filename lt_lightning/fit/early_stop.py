"""The early stop, found after the fact: training runs its full length, and the best validation is remembered.

Source: Frankle & Carbin 2019 (arXiv 1803.03635), section 2: the step of minimum validation loss.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lt_lightning.records import numbers


@dataclass
class EarlyStop:
    """The best validation so far.

    Args:
        monitor: name of the metric; None: off.
        mode: "min" or "max".
        value: its best value.
        step: optimizer steps done when it was measured.
        metrics: what that validation logged.
    """

    monitor: str | None
    mode: str = "min"
    value: float | None = None
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    def require(self, logged: Mapping[str, Any]) -> None:
        """Raise a ValueError unless the monitored metric was logged."""
        if self.monitor is not None and self.monitor not in logged:
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
        if self.monitor is None:
            return False
        self.require(logged)
        value = float(logged[self.monitor])
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
