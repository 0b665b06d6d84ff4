"""The runs of several seeds: what each was asked for, and which of their fits begin at the same place."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lt_lightning.disk.rundir import Checkpoint
from lt_lightning.fit.interruption import Interruption
from lt_lightning.replicates.checks import check_data, refusal
from lt_lightning.ticket import Ticket


@dataclass(frozen=True)
class Replicate:
    """One seed's run.

    Args:
        cfg: its configuration: that of an ordinary run of this seed.
        directory: its run directory.
    """

    cfg: DictConfig
    directory: str

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as plain values."""
        return cast(dict[str, Any], OmegaConf.to_container(self.cfg, resolve=True))


def configured(cfg: DictConfig, directory: str) -> list[Replicate]:
    """The runs that a configuration asks for: `replicates` of them, with `seed`, `seed + 1`, ...

    Args:
        cfg: of `train.py`.
        directory: the first one's run directory; the others' lie beside it.

    Raises:
        ValueError: if `replicates` is no such number, or the directory does not tell seeds apart.

    Example:
        >>> cfg = OmegaConf.create({"seed": 3, "seed_data": "${seed}", "replicates": 2})
        >>> [(run.directory, run.config["seed_data"]) for run in configured(cfg, "runs/mine/seed=3")]
        [('runs/mine/seed=3', 3), ('runs/mine/seed=4', 4)]
    """
    count, last = cfg.replicates, f"seed={cfg.seed}"
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"replicates={count!r} must be a whole number, 1 or more: 5 trains five seeds together.")
    if count == 1:
        return [Replicate(cfg, directory)]
    path = Path(directory)
    if path.name != last:
        raise ValueError(
            f"replicates={count} want a run directory each, and {directory} does not end in {last}: leave out "
            "hydra.run.dir, or let it end in '/seed=${seed}'."
        )
    runs = []
    for seed in range(cfg.seed, cfg.seed + count):
        each = cfg.copy()
        each.seed, each.replicates = seed, 1
        runs.append(Replicate(each, str(path.with_name(f"seed={seed}"))))
    return runs


def same_data(runs: Sequence[Replicate]) -> list[Any]:
    """The data module of each run: that of the first, in the order of each seed.

    Raises:
        ValueError: for other modules than `Images`, or settings other than `seed` that differ from run to run.
    """
    first = instantiate(runs[0].cfg.data)
    if len(runs) == 1:
        return [first]
    check_data(first)
    settings = [run.config["data"] for run in runs]
    differing = {key for each in settings for key in each if key != "seed" and each[key] != settings[0].get(key)}
    if differing:
        names = ", ".join(f"data.{key}" for key in sorted(differing))
        raise refusal(f"{names} that differ from seed to seed", "let the seed decide data.seed alone")
    return [first, *(first.reordered(each["seed"]) for each in settings[1:])]


def side_by_side(lotteries: Sequence[Iterator[Ticket]]) -> Iterator[dict[int, Ticket]]:
    """Iterate over several lotteries at once: the tickets of those whose next fits begin at the same place.

    A lottery that is ahead, as it was begun earlier, waits for the others; one that was interrupted elsewhere than
    they catches up alone. All are asked for their first ticket, and hold their directories, before any is trained.

    Args:
        lotteries: what `lottery` returned, one for a seed.

    Yields:
        Number of the lottery → its ticket; fit them before the next turn, with `fit` or each by its own Trainer.

    Example:
        >>> from types import SimpleNamespace
        >>> plan = SimpleNamespace(arms=[(0, "ticket"), (1, "ticket")])
        >>> def tickets(rounds):
        ...     for n in rounds:
        ...         yield SimpleNamespace(round=n, arm="ticket", shared=False, ckpt_path=None, plan=plan)
        >>> [sorted(group) for group in side_by_side([tickets([0, 1]), tickets([1]), tickets([0, 1])])]
        [[0, 2], [0, 1, 2]]
    """
    with Interruption().ends_the_run(), ExitStack() as stack:  # also while only some of them are still at work
        for each in lotteries:
            stack.callback(cast(Any, each).close)  # before signals are left to others
        waiting = dict(_advanced(lotteries, range(len(lotteries))))
        while waiting:
            places = {number: _place(ticket) if len(waiting) > 1 else () for number, ticket in waiting.items()}
            group = [number for number, place in places.items() if place == min(places.values())]
            yield {number: waiting.pop(number) for number in group}
            waiting = dict(sorted([*waiting.items(), *_advanced(lotteries, group)]))


def _advanced(lotteries: Sequence[Iterator[Ticket]], numbers: Iterable[int]) -> Iterator[tuple[int, Ticket]]:
    """The next tickets of these lotteries, unless they are done."""
    for number in numbers:
        if (ticket := next(lotteries[number], None)) is not None:
            yield number, ticket


def _place(ticket: Ticket) -> tuple[Any, ...]:
    """Where a fit begins: which it is in the run's order, and where its loops stand."""
    fit = (not ticket.shared, list(ticket.plan.arms).index((ticket.round, ticket.arm)))
    if ticket.ckpt_path is None:
        return (*fit, -1, "")
    start = Checkpoint(Path(ticket.ckpt_path), mapped=True)
    return (*fit, start["global_step"], repr(start.get("loops")))
