"""Signals that ask a fit to end: noted when they come, obeyed as soon as its state has been saved."""

import os
import signal
import threading
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, the order to end, and what clusters send some time before it."""


class Interrupted(SystemExit):
    """The fit was asked to end, and its state is saved; `code` is 128 plus the signal, as shells count."""


class Interruption:
    """The wish of this process's user, or of its cluster, that the fit may end.

    Attributes:
        signal: the number of the signal that came; None: none did.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Note signals from now on. SIGUSR1 is left to whoever listens to it already."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number != signal.SIGUSR1 or signal.getsignal(number) == signal.SIG_DFL:
                    self._before[number] = signal.signal(number, self._note)

    def stop_listening(self) -> None:
        """Leave signals to whoever listened before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def obey(self) -> None:
        """Raise `Interrupted` if a signal came."""
        if self.signal is not None:
            raise Interrupted(128 + self.signal)

    def _note(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return  # in a loader's worker, which ends with its parent; dead it would raise an error there
        if self.signal is not None:
            self.stop_listening()  # asked twice: at once
            raise KeyboardInterrupt
        self.signal = number
