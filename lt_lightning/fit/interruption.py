"""Signals that ask a run to end: within a fit they are noted, and obeyed as soon as its state has been saved.

Of several processes each may get a signal at another moment, or only one of them. So each notes what it gets, and all
of them ask each other before every batch and between fits: then they end together, at the same step. Lightning's own
handler talks to the other processes from within the handler, where they may be at any other exchange: that hangs.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L

from lt_lightning.processes import highest, is_several

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, the order to end, and what clusters send some time before it."""

REQUEUE = signal.SIGUSR2
"""What submitit asks Slurm for before a job's time is up; its own handler requeues the job and ends it."""


class Interrupted(SystemExit):
    """The run was asked to end, and its state is saved; `code` is 128 plus the signal, as shells count."""


class Interruption:
    """The wish of a run's user, or of its cluster, that it may end.

    Attributes:
        signal: the signal that came during a fit; None: none did. Of several processes: that all know of.
    """

    _unsaid: int | None = None  # came to this process, and the others do not know; of all runs: fits come and go

    def __init__(self) -> None:
        self.signal: int | None = None
        self._alone = True
        self._process = os.getpid()
        self._before: dict[int, Any] = {}
        self._ours: dict[int, Any] = {}

    @contextmanager
    def ends_the_run(self) -> Iterator[None]:
        """While a block runs, let SIGTERM and SIGUSR1 raise `Interrupted`, unless someone else listens to them.

        All state is on disk between fits, so nothing has to be saved. Lightning would swallow a SIGTERM there.
        """
        free = [number for number in SIGNALS if number != signal.SIGINT and not _is_taken(number)]
        before = _set_handlers(dict.fromkeys(free, self._end))
        try:
            yield
        finally:
            _set_handlers(before)

    def note(self, alone: bool = True) -> None:
        """Note the signals from now on; SIGUSR1 is left to whoever else listens to it.

        Of several processes each tells the others in `agree`. Ctrl-C is left to the first, which ends them.
        """
        self._alone = alone
        wanted = SIGNALS if alone else SIGNALS[1:]
        free = [n for n in wanted if not _is_ignored(n) and (n != signal.SIGUSR1 or not _is_taken(n))]
        noted = [*free, REQUEUE] if alone and _is_requeued() else free
        self._ours = dict.fromkeys(noted, self._note)
        self._before = _set_handlers(self._ours)

    def stop_noting(self) -> None:
        """Restore the handlers that were there before, where ours are still in place.

        At the end of a fit Lightning has put back its own earlier handlers already. Those that it had during the fit
        belong to its Trainer, and would keep that and its model alive until the process ends.
        """
        still_ours = {n: old for n, old in self._before.items() if signal.getsignal(n) == self._ours[n]}
        _set_handlers(still_ours)
        self._before = self._ours = {}

    def agree(self) -> None:
        """Let all processes know of a signal that one of them got; each must come here."""
        self.signal = _agreed()

    def obey(self) -> None:
        """Raise `Interrupted` if a signal was noted; the handler of submitit requeues its job first.

        In such a job SIGTERM does not ask for the end: Slurm sends it ahead of REQUEUE or of SIGKILL, and a job that
        ends by itself in between is not requeued. All is saved, so it goes on until then.
        """
        number, self.signal = self.signal, None
        Interruption._unsaid = None if number is not None else Interruption._unsaid
        if number is None or (number == signal.SIGTERM and _is_requeued()):
            return
        if number == REQUEUE:
            self._before[REQUEUE](number, None)
        raise Interrupted(128 + number)

    def _note(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return  # in a loader's worker, which ends with its parent; dead it would raise an error there
        if not self._alone:
            Interruption._unsaid = number
            return
        if self.signal is not None and not _is_requeued():
            self.stop_noting()  # asked twice: at once
            raise KeyboardInterrupt
        self.signal = number

    def _end(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return
        if is_several():
            Interruption._unsaid = number  # the others would wait for this process
            return
        raise Interrupted(128 + number)


def leave_to_us(trainer: L.Trainer) -> None:
    """Keep Lightning's own handler of SIGTERM from talking to other processes; call in `setup`.

    `tests/test_interruption.py` holds the private names to what they are used for.
    """
    connector: Any = trainer._signal_connector
    connector._sigterm_notifier_fn = _nothing


def agree_before_each_batch(trainer: L.Trainer, agree: Callable[[], None]) -> None:
    """Call `agree` on all processes before each batch, where Lightning asks whether the first got a SIGTERM."""
    loop: Any = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor = agree


def release(trainer: L.Trainer) -> None:
    """Let Lightning ask by itself again."""
    vars(trainer.fit_loop.epoch_loop).pop("_broadcast_sigterm_tensor", None)


def obey_together() -> None:
    """Raise `Interrupted` on all processes if one got a signal between fits; each must come here.

    A job of submitit waits for the signal that requeues it, as in `Interruption.obey`.
    """
    number = _agreed() if is_several() else None
    if number is not None and not (number == signal.SIGTERM and _is_requeued()):
        Interruption._unsaid = None
        raise Interrupted(128 + number)


def _agreed() -> int | None:
    return highest(Interruption._unsaid or 0) or None


def _nothing(number: int, frame: Any) -> None:
    """What a handler does that leaves a signal to the next one."""


def _is_taken(number: int) -> bool:
    """Whether someone other than us listens to a signal."""
    handler = signal.getsignal(number)
    return handler != signal.SIG_DFL and not isinstance(getattr(handler, "__self__", None), Interruption)


def _is_requeued() -> bool:
    """Whether this is a job of submitit on Slurm, with its handlers in place."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and callable(signal.getsignal(REQUEUE))


def _is_ignored(number: int) -> bool:
    """Whether a signal is ignored, as Ctrl-C is by a job in the background, or handled outside Python."""
    return signal.getsignal(number) in (signal.SIG_IGN, None)


def _set_handlers(handlers: dict[int, Any]) -> dict[int, Any]:
    """Set the handlers of signals, and return the former ones; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}
