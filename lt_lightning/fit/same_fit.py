"""Whether a fit trains as the first one of its run did: what that was lies in `fit.json`, see `facts.py`."""

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.core import optimizer as lightning_optimizer

from lt_lightning.disk.atomic import write_text
from lt_lightning.disk.checksum import from_json, to_json
from lt_lightning.disk.configuration import has_results
from lt_lightning.fit import facts, moments
from lt_lightning.fit.facts import Facts
from lt_lightning.plan import Plan
from lt_lightning.processes import broadcast, is_writer

MODEL, TRAINING, DATA = "model", "training", "data"

_SHOWN = 5
"""How many differences an error names."""


class SameFit:
    """Compares one fit with the first of its run, in three steps: as soon as each part is known, before any training.

    Args:
        module: as its function has made it.
    """

    def __init__(self, module: L.LightningModule) -> None:
        self._facts: dict[str, Facts] = {MODEL: facts.of_model(module)}
        self._trainer: Facts = {}
        self._made: Facts = {}

    def check_model(self, trainer: L.Trainer, plan: Plan) -> None:
        """Compare the parameters, for which masks and checkpoints are made. Call in `setup`.

        The Trainer is looked at too, since its callbacks change later.

        Raises:
            ValueError: if the first fit had others, with the differences.
        """
        self._trainer = facts.of_trainer(trainer, plan.monitor is not None)
        moments.after_optimizers(trainer, partial(self._note_optimizers, trainer))
        self._check(trainer, plan, self._facts, "parameters.")

    def check_training(self, trainer: L.Trainer, plan: Plan, found: Facts) -> None:
        """Compare module, Trainer, optimizers and schedules. Call in `on_fit_start`, before a checkpoint restores them.

        Args:
            trainer: of the fit.
            plan: of the lottery.
            found: what a search of Lightning's found, by name.
        """
        moments.release_optimizers(trainer)
        if not self._made:  # of seeds that train together, one makes them for all
            self._note_optimizers(trainer)
        searched = {f"found.{name}": value for name, value in found.items()}
        self._facts[TRAINING] = {**self._trainer, **self._made, **searched}
        self._check(trainer, plan, self._facts)

    def _note_optimizers(self, trainer: L.Trainer) -> None:
        """Note them as they were made: a finetuning callback restores the groups of its checkpoint soon after."""
        self._made = facts.of_optimizers(trainer.optimizers, trainer.lr_scheduler_configs)

    def check_data(self, trainer: L.Trainer, plan: Plan, name: str) -> None:
        """Compare the batches, and note all if this is the first fit. Call in `on_train_start`, before any save."""
        self._facts[DATA] = facts.of_data(trainer)
        self._check(trainer, plan, {DATA: self._facts[DATA]})
        if is_writer() and not _is_trial(trainer) and _stored(plan) is None:
            write_text(plan.directory.fit, to_json({"fit": name, **self._facts}))

    def _check(self, trainer: L.Trainer, plan: Plan, given: dict[str, Facts], beginning: str = "") -> None:
        if _is_trial(trainer):
            return
        stored = _stored(plan) if is_writer() else None
        problem = broadcast(stored and _problem(plan, stored, given, beginning))
        if problem:
            raise ValueError(problem)


def _stored(plan: Plan) -> dict[str, Any] | None:
    """What was noted, if results lie beside it: the first fit may have been refused, and then edited, at its start.

    A point that runs share is trained within the directory of the round 0 that they share.
    """
    path = plan.directory.path
    copies = any(path.glob("round-*/*/done"))
    return read(plan.directory.fit) if copies or has_results(path) or has_results(path.parent) else None


def check_again(plan: Plan, make: Callable[[], L.LightningModule]) -> None:
    """Look at what can be seen of a program that finds all rounds done: its module, and the optimizers of that.

    Its Trainers were not used, so what of them has changed cannot be known. A line on the screen says so, unless
    `config` has told what the run was computed with.

    Raises:
        ValueError: if the first fit had another module or other optimizers, with the differences.
    """
    stored = read(plan.directory.fit) if is_writer() else None
    problem = broadcast(stored and _problem(plan, stored, _seen_again(stored, make)))
    if problem:
        raise ValueError(problem)
    if stored and not plan.config.keys() - {"lottery"}:
        print(_told(plan, stored))


def read(path: Path) -> dict[str, Any] | None:
    """Read what was noted of the first fit; None if there was none. A damaged file is set aside, with a warning."""
    if not path.exists():
        return None
    try:
        text = path.read_text("utf-8")
        content = from_json(text)
        if to_json(content) == text:
            return content
        raise ValueError("the same content, written otherwise")
    except ValueError:
        aside = path.with_name(f"{path.name}.damaged")
        os.replace(path, aside)
        warnings.warn(
            f"{path} is damaged: it does not hold what was written, so it cannot be known whether this program trains "
            f"as the rounds before. It is now {aside.name}, and what the next fit trains with is written in its place.",
            stacklevel=2,
        )
        return None


def _problem(plan: Plan, stored: dict[str, Any], given: dict[str, Facts], beginning: str = "") -> str | None:
    """What differs, of the facts whose names begin so, and what to do about it, in one line; None if nothing does."""
    told = [(stored[part], now) for part, now in given.items() if stored[part] and now]
    names = [(name, pair) for pair in told for name in facts.differences(*pair, plan.may_vary)]
    found = {name: pair for name, pair in names if name.startswith(beginning)}
    if not found:
        return None
    lines = [f"{name}: {_said(then, name)}, now {_said(now, name)}" for name, (then, now) in found.items()]
    more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    shown = ", ".join(repr(name) for name in [*found][:_SHOWN])
    return (
        f"{stored['fit']} in {plan.directory.path} was trained with {'; '.join(lines[:_SHOWN])}{more}. All fits of a "
        "run train alike: change that back, or choose another directory (name=... on the command line). If it changes "
        f"from fit to fit on purpose: lottery(..., may_vary=[{shown}]) (prune.may_vary=[...])."
    )


def _said(facts: Facts, name: str) -> str:
    return str(facts[name]) if facts.get(name) is not None else "not set"


def _seen_again(stored: dict[str, Any], make: Callable[[], L.LightningModule]) -> dict[str, Facts]:
    """The facts that a module tells without a Trainer, none where it asks for one.

    After a search for a learning rate its optimizers are others, and the number of their parameters may depend on
    callbacks that freeze some.
    """
    with suppress(Exception):  # of the user's own functions, which may need what is not here, such as a GPU
        module = make()
        seen = {MODEL: facts.of_model(module)}
        with suppress(Exception):
            seen[TRAINING] = stored[TRAINING] | _optimizers_of(module, stored[TRAINING])
        return seen
    return {}


def _optimizers_of(module: L.LightningModule, stored: Facts) -> Facts:
    if any(name.startswith("found.") for name in stored):
        return {}
    optimizers, schedules, monitor = lightning_optimizer._configure_optimizers(module.configure_optimizers())  # type: ignore[arg-type]
    configs = lightning_optimizer._configure_schedulers_automatic_opt(schedules, monitor)
    made = facts.of_optimizers(optimizers, configs)
    gone = {name: None for name in stored if name.startswith(("optimizer", "schedule"))}
    return {name: value for name, value in {**gone, **made}.items() if not name.endswith(".parameters")}


def _told(plan: Plan, stored: dict[str, Any]) -> str:
    known = {**stored[TRAINING], **stored[DATA]}
    told = ", ".join(f"{name}={value}" for name, value in known.items() if name in _TOLD)
    return (
        f"nothing was trained: all rounds in {plan.directory.path} were done before, with {told}. If the program has "
        "been changed since, choose another directory to train it."
    )


_TOLD = ("max_epochs", "max_steps", "optimizer", "optimizer.lr", "precision", "data.batch_size")


def _is_trial(trainer: L.Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
