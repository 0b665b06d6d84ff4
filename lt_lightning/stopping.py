"""When the rounds of a lottery end before their number: a function of the records of the rounds that are done.

>>> def until_four_fifths_are_gone(records):
...     return records[-1]["density"] < 0.2
"""

from collections.abc import Callable, Sequence
from functools import partial

from lt_lightning import require
from lt_lightning.records import Record

StopWhen = Callable[[Sequence[Record]], bool]
"""Records of all rounds so far, by round, each ticket before its controls → whether no further round is trained."""


def worse_than_dense(threshold: float, metric: str = "test/acc", mode: str = "max", rounds: int = 1) -> StopWhen:
    """End when tickets stay worse than the dense network by more than a threshold.

    Args:
        threshold: in units of the metric, 0 or more; 0.01 is a point of accuracy.
        metric: a column of `records.csv`, such as "val/acc" or "early_stop_test_acc".
        mode: "max" if more is better, "min" if less is.
        rounds: patience: of how many rounds in a row the ticket must be worse, 1 or more.

    Raises:
        ValueError: for values that cannot work; after round 0, if its record does not have the metric.

    Source: the matching tickets of Frankle et al. 2020 (arXiv 1912.05671), section 2: those as good as dense.

    Example:
        >>> records = [{"round": n, "arm": "ticket", "test/acc": acc} for n, acc in enumerate([0.98, 0.99, 0.96])]
        >>> [worse_than_dense(0.01)(records[:n]) for n in (1, 2, 3)]
        [False, False, True]
    """
    if not require.is_number(threshold) or not 0 <= threshold < float("inf"):
        raise ValueError(
            f"threshold={threshold!r} must be 0 or more, in units of {metric}: 0.01 is a point of accuracy."
        )
    if mode not in ("min", "max"):
        raise ValueError(f'mode={mode!r} must be "min" or "max": which {metric} is the best?')
    if not isinstance(metric, str) or not metric:
        raise ValueError(
            f'metric={metric!r} must be a column of records.csv: metric="test/acc" (prune.stop_when.metric).'
        )
    require.whole("rounds", rounds, 1, "how many in a row must be worse")
    return partial(_worse_than_dense, threshold=float(threshold), metric=metric, mode=mode, rounds=rounds)


def _worse_than_dense(records: Sequence[Record], *, threshold: float, metric: str, mode: str, rounds: int) -> bool:
    tickets = [row for row in records if row["arm"] == "ticket"]
    for row in tickets:
        if row.get(metric) is None:
            raise ValueError(
                f"stop_when compares {metric!r}, which the record of round {row['round']} does not have; it has "
                f"{[name for name, value in row.items() if value is not None]}. Name one of them "
                "(prune.stop_when.metric), or measure it in the loop's body."
            )
    sign = 1 if mode == "max" else -1
    dense, later = sign * tickets[0][metric], [sign * row[metric] for row in tickets[1:]]
    return len(later) >= rounds and not any(value >= dense - threshold for value in later[-rounds:])


def ends(stop_when: StopWhen, records: Sequence[Record]) -> bool:
    """What a rule says; a ValueError if that is neither True nor False."""
    answer = stop_when(records)
    if type(answer).__name__ not in ("bool", "bool_"):  # NumPy's too
        raise ValueError(
            f"stop_when={require.called_name(stop_when)} answered {answer!r} after round {records[-1]['round']}: it "
            "must return True, which ends the rounds, or False."
        )
    return bool(answer)


def needs_dense(stop_when: StopWhen) -> bool:
    """Whether a rule compares with a dense network that was trained."""
    return isinstance(stop_when, partial) and stop_when.func is _worse_than_dense
