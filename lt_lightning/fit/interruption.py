"""Signals that ask a run to end: within a fit they are noted, and obeyed as soon as its state has been saved."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, the order to end, and what clusters send some time before it."""

REQUEUE = signal.SIGUSR2
"""What submitit asks Slurm for before a job's time is up; its own handler requeues the job and ends it."""


class Interrupted(SystemExit):
    """The run was asked to end, and its state is saved; `code` is 128 plus the signal, as shells count."""


class Interruption:
    """The wish of a run's user, or of its cluster, that it may end.

    Attributes:
        signal: the signal that came during a fit; None: none did.
    """

    _others_decide = False  # of all runs of this process: handlers stay while fits come and go

    def __init__(self) -> None:
        self.signal: int | None = None
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

        Of several processes each would end at a step of its own, so what comes there is left to Lightning, which lets
        all end at the same.
        """
        Interruption._others_decide = not alone
        if alone:
            free = [n for n in SIGNALS if not _is_ignored(n) and (n != signal.SIGUSR1 or not _is_taken(n))]
            noted = [*free, REQUEUE] if _is_requeued() else free
            self._listen(dict.fromkeys(noted, self._note))
        elif _is_requeued():
            self._listen({signal.SIGTERM: lambda number, frame: None})

    def _listen(self, handlers: dict[int, Any]) -> None:
        self._ours, self._before = handlers, _set_handlers(handlers)

    def stop_noting(self) -> None:
        """Restore the handlers that were there before, where ours are still in place.

        At the end of a fit Lightning has put back its own earlier handlers already. Those that it had during the fit
        belong to its Trainer, and would keep that and its model alive until the process ends.
        """
        still_ours = {n: old for n, old in self._before.items() if signal.getsignal(n) == self._ours[n]}
        _set_handlers(still_ours)
        self._before = self._ours = {}
        Interruption._others_decide = False

    def obey(self) -> None:
        """Raise `Interrupted` if a signal was noted; the handler of submitit requeues its job first.

        In such a job SIGTERM does not ask for the end: Slurm sends it ahead of REQUEUE or of SIGKILL, and a job that
        ends by itself in between is not requeued. All is saved, so it goes on until then.
        """
        number, self.signal = self.signal, None
        if number is None or (number == signal.SIGTERM and _is_requeued()):
            return
        if number == REQUEUE:
            self._before[REQUEUE](number, None)
        raise Interrupted(128 + number)

    def _note(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return  # in a loader's worker, which ends with its parent; dead it would raise an error there
        if self.signal is not None and not _is_requeued():
            self.stop_noting()  # asked twice: at once
            raise KeyboardInterrupt
        self.signal = number

    def _end(self, number: int, frame: Any) -> None:
        if os.getpid() == self._process and not (number == signal.SIGTERM and self._others_decide):
            raise Interrupted(128 + number)


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
