"""Refusals on the command line: what was wrong with the input, in a line, without the way that the error took."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from lt_lightning.disk.lock import InUseError

_KINDS = (ValueError, FileNotFoundError, InUseError)


@contextmanager
def in_one_line(wanted: bool = True) -> Iterator[None]:
    """End the program with exit code 1 and one line, if a block raises an error of this package about its input.

    Other errors pass, and all do with `HYDRA_FULL_ERROR=1`, as Hydra's own.

    Args:
        wanted: False lets all pass; a sweep's jobs hand their errors to the launcher.
    """
    try:
        yield
    except Exception as error:
        told = refusal(error)
        if told is None or not wanted or os.environ.get("HYDRA_FULL_ERROR", "0") != "0":
            raise
        print(f"\nerror: {told}\n(HYDRA_FULL_ERROR=1 tells where it was raised)", file=sys.stderr)
        sys.exit(1)


def refusal(error: BaseException) -> str | None:
    """What an error says, if it was raised in this package about its input, itself or below one of Hydra's.

    >>> from lt_lightning import lottery
    >>> try:
    ...     lottery(None, rounds=-1, directory="/nowhere")
    ... except ValueError as error:
    ...     refusal(error)
    'rounds=-1 must be a whole number, 0 or more: 10 is dense and ten pruned rounds.'
    >>> refusal(ValueError("of somebody else"))
    """
    each: BaseException | None = error
    while each is not None and not (isinstance(each, _KINDS) and _is_ours(each.__traceback__)):
        each = each.__cause__
    return None if each is None else str(each)


def _is_ours(trace: TracebackType | None) -> bool:
    """Whether an error was raised in a module of this package."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].partition(".")[0] == "lt_lightning"
