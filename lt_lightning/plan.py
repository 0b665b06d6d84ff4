"""What a lottery was asked for: the arguments of `lottery`, checked, in one immutable value."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral, Real
from typing import Any

from lt_lightning import require
from lt_lightning.controls import Control
from lt_lightning.criteria import Criterion
from lt_lightning.disk.configuration import LAYOUT, fingerprint
from lt_lightning.disk.redact import redacted
from lt_lightning.disk.rundir import NEXT, TICKET, RunDirectory
from lt_lightning.early_bird import EarlyBird
from lt_lightning.gradual import Gradual
from lt_lightning.gradual import check as check_gradual
from lt_lightning.masks import Density, Masks
from lt_lightning.prunable import Prunable
from lt_lightning.rewinds import Rewind, RewindStep
from lt_lightning.schedules import Schedule
from lt_lightning.scopes import Scope, group_by_pattern
from lt_lightning.stopping import StopWhen, needs_dense

AUTO = "auto"
"""Of `every`: at the end of an epoch, if saving is cheap enough then; of `monitor`: the module's validation loss."""

EACH_EPOCH = RewindStep(1, "epochs")

FAMILIES = {
    "schedule": (["round"], "geometric(0.2)"),
    "criterion": (["evidence"], "lt_lightning.magnitude"),
    "scope": (["scores", "masks", "density"], "lt_lightning.globally"),
    "rewind": (["point", "trained"], "lt_lightning.to_point"),
    "gradual": (["progress", "density before", "density after"], "cubically()"),
    "early_bird": (["distances"], "settled(0.1)"),
    "stop_when": (["records"], "worse_than_dense(0.01)"),
}
"""Argument of `lottery` → what its function is called with, and an example."""

_NEEDED = ("schedule", "criterion", "scope", "rewind")


@dataclass(frozen=True)
class Plan:
    """The arguments of `lottery`, as a ticket needs them; see there for what each means."""

    directory: RunDirectory
    rounds: int
    schedule: Schedule
    criterion: Criterion
    scope: Scope
    rewind: Rewind
    rewind_step: RewindStep
    points: tuple[RewindStep, ...]
    controls: tuple[Control, ...]
    prunable: Prunable
    monitor: str | None
    mode: str
    seed: int
    seed_init: int
    seed_data: int
    dense: bool
    keep_last: bool
    every: RewindStep | str | None
    sparse: str | float
    config: Mapping[str, Any]
    gradual: Gradual | None = None
    gradual_every: RewindStep = EACH_EPOCH
    early_bird: EarlyBird | None = None
    stop_when: StopWhen | None = None
    steps_per_batch: int = 1
    may_vary: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A hash of the configuration, less what cannot change a result."""
        return fingerprint(self.config)

    @property
    def arms(self) -> list[tuple[int, str]]:
        """(round, arm) of every fit, in the order in which they are trained."""
        controls = [control_name(control) for control in self.controls]
        return [(0, TICKET), *((n, arm) for n in range(1, self.rounds + 1) for arm in (TICKET, *controls))]

    def checked(self) -> "Plan":
        """The plan with itself described in its configuration, without secrets; a ValueError for what cannot work."""
        self._check()
        rounds, seed = int(self.rounds), int(self.seed)  # numbers of NumPy are stored as Python's
        plan = replace(self, rounds=rounds, seed=seed, seed_init=int(self.seed_init), seed_data=int(self.seed_data))
        return replace(plan, config=redacted({**describe(plan.config), "lottery": plan.describe()}))

    def _check(self) -> None:
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, Integral) or self.rounds < 0:
            raise ValueError(
                f"rounds={self.rounds!r} must be a whole number, 0 or more: 10 is dense and ten pruned rounds."
            )
        for name in ("seed", "seed_init", "seed_data"):
            seed = getattr(self, name)
            if isinstance(seed, bool) or not isinstance(seed, Integral):
                raise ValueError(f"{name}={seed!r} must be a whole number.")
        for name, (takes, example) in FAMILIES.items():
            if getattr(self, name) is not None or name in _NEEDED:
                require.function(name, getattr(self, name), takes, example)
        for name in ("dense", "keep_last"):
            require.flag(name, getattr(self, name), f"prune.{name}")
        if self.monitor is not None and (not isinstance(self.monitor, str) or not self.monitor):
            raise ValueError(
                f'monitor={self.monitor!r} must be the name of a metric: monitor="val/loss"; None goes without an '
                "early stop (prune.monitor=null)."
            )
        if self.mode not in ("min", "max"):
            metric = "val/loss" if self.monitor == AUTO else self.monitor
            raise ValueError(f'mode={self.mode!r} must be "min" or "max": which {metric} is the best?')
        if isinstance(self.every, RewindStep) and self.every.count == 0:
            raise ValueError(f'every="{self.every}" must be at least 1; "auto" and None are possible too.')
        if not all(isinstance(each, str) for each in self.may_vary):
            raise ValueError(
                f'may_vary={list(self.may_vary)} must be names or patterns over names: may_vary=["max_epochs"] '
                "(prune.may_vary=[max_epochs])."
            )
        names = [control_name(control) for control in self.controls]
        if len(set(names)) < len(names) or {TICKET, NEXT} & set(names):
            raise ValueError(f"controls need names of their own, other than '{TICKET}' and '{NEXT}': {names}.")
        densities = [_asked(self.schedule, round) for round in range(self.rounds + 1)]
        if not densities[0] or any(each != 1.0 for each in _by_pattern(densities[0]).values()):
            raise ValueError(f"round 0 is dense, but schedule(0) is {densities[0]}; it must be 1.0.")
        for round in range(1, self.rounds + 1):
            _check_densities(round, densities[round], densities[round - 1])
        self._check_gradual()
        self._check_early_bird()
        self._check_stop_when()

    def _check_early_bird(self) -> None:
        if self.early_bird is None:
            return
        if not self.dense:
            raise ValueError(
                "early_bird says when the dense round ends, which dense=False has not: leave out one of them."
            )
        if self.rounds == 0:
            raise ValueError(
                "early_bird looks at the masks of round 1, and rounds=0 has none: ask for one round or more."
            )

    def _check_stop_when(self) -> None:
        if self.stop_when is None:
            return
        if needs_dense(self.stop_when) and not self.dense:
            raise ValueError(
                "stop_when=worse_than_dense compares with the dense network, which dense=False does not train: leave "
                "one of them out."
            )

    def _check_gradual(self) -> None:
        if self.gradual is None:
            return
        if self.gradual_every.count == 0:
            raise ValueError(f'gradual_every="{self.gradual_every}" must be at least 1: "1 epoch", "100 steps".')
        if self.sparse != "off":
            raise ValueError(
                f"sparse={self.sparse!r} fixes where the kept weights of a fit lie, and gradual moves that while it "
                "trains: leave one of them out (prune.sparse=off)."
            )
        for round in range(1, self.rounds + 1):
            check_gradual(self.gradual, round, self.schedule(round - 1), self.schedule(round))

    def has_ticket(self, round: int) -> bool:
        """Whether the schedule has a density for a round; beyond the last one it need not."""
        if round <= self.rounds:
            return True
        try:
            _check_densities(round, self.schedule(round), self.schedule(round - 1))
        except Exception:  # whatever a function of the user's own raises at the end of its list
            return False
        return True

    def check_patterns(self, masks: Masks) -> None:
        """Raise a ValueError if a pattern of the schedule matches no prunable parameter."""
        for round in range(1, self.rounds + 1):
            density = self.schedule(round)
            if isinstance(density, Mapping):
                group_by_pattern(density, masks)

    def describe(self) -> dict[str, Any]:
        """The plan as plain values, for `config.yaml` and for comparison; seeds that are `seed` are left out."""
        seeds = {"seed": self.seed, "seed_init": self.seed_init, "seed_data": self.seed_data}
        return {
            "layout": LAYOUT,
            "rounds": self.rounds,
            "schedule": describe(self.schedule),
            "criterion": describe(self.criterion),
            "scope": describe(self.scope),
            "rewind": describe(self.rewind),
            "rewind_step": str(self.rewind_step),
            "points": [str(step) for step in self.points],
            "controls": [control_name(control) for control in self.controls],
            "prunable": describe(self.prunable),
            "monitor": self.monitor,
            "mode": self.mode,
            **{name: seed for name, seed in seeds.items() if name == "seed" or seed != self.seed},
            "dense": self.dense,
            **self._describe_gradual(),
            **({} if self.early_bird is None else {"early_bird": describe(self.early_bird)}),
            **({} if self.stop_when is None else {"stop_when": describe(self.stop_when)}),
        }

    def _describe_gradual(self) -> dict[str, Any]:
        every = str(self.gradual_every)
        return {} if self.gradual is None else {"gradual": describe(self.gradual), "gradual_every": every}


def control_name(control: Callable[..., Any]) -> str:
    """A control's arm: the name of its function, and the numbers and texts that it was given.

    >>> from lt_lightning.controls import noise, reinit
    >>> control_name(reinit), control_name(noise(0.5))
    ('reinit', 'noise_0.5')
    """
    function = unwrap(control)
    name = getattr(function, "__name__", type(function).__name__)
    if not isinstance(control, partial):
        return name
    values = [value for value in (*control.args, *control.keywords.values()) if isinstance(value, str | int | float)]
    told = (f"{value:g}" if isinstance(value, float) else str(value) for value in values)
    return re.sub(r"[^\w.+-]", "_", "_".join([name.lstrip("_"), *told]))


def describe(value: Any) -> Any:
    """A function or a partial of one as plain values; everything else as it is.

    >>> from lt_lightning.schedules import geometric
    >>> describe(geometric(0.2))
    {'function': 'lt_lightning.schedules._geometric', 'fraction': 0.2}
    """
    if isinstance(value, partial):
        arguments = {str(n): describe(v) for n, v in enumerate(value.args)} | value.keywords
        return {"function": _qualified(value.func)} | {key: describe(v) for key, v in arguments.items()}
    if callable(value):
        return _qualified(value)
    if isinstance(value, Mapping):
        return {str(key): describe(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else repr(value)


def unwrap(value: Any) -> Callable[..., Any]:
    """The function within a partial, or the function itself."""
    return unwrap(value.func) if isinstance(value, partial) else value


def _qualified(value: Callable[..., Any]) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _asked(schedule: Schedule, round: int) -> Any:
    try:
        return schedule(round)
    except Exception as error:
        raise ValueError(
            f"schedule({round}) raised {type(error).__name__}: {error}; it must answer for every round that there is."
        ) from error


def _check_densities(round: int, density: Density, before: Density) -> None:
    now, then = _by_pattern(density), _by_pattern(before)
    for pattern, value in now.items():
        if not require.is_number(value) or not 0 < value <= 1:
            raise ValueError(f"schedule({round}) is {value}; a density must lie in (0, 1].")
        if value > then.get(pattern, 1.0):
            raise ValueError(
                f"schedule({round}) is {value}, but schedule({round - 1}) is {then[pattern]}: a schedule must not "
                "rise, because a pruned weight never comes back."
            )


def _by_pattern(density: Density) -> Mapping[str, float]:
    return density if isinstance(density, Mapping) else {"*": density}
