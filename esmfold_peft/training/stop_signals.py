"""Being asked to stop: the step is finished and saved first."""

import signal
from types import FrameType

from esmfold_peft.console import report

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignals:
    """Inside its block, keeps SIGTERM, SIGUSR1 (which schedulers send before they kill) and Ctrl-C.

    A second Ctrl-C stops at once.

    Attributes:
        received: the signal that has come; None so far.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number, handler in self._before.items():
            # A shell starts what runs in the background with Ctrl-C ignored.
            if handler != signal.SIG_IGN:
                signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def ignore_further(self) -> None:
        """Ignores SIGTERM until the process ends, also after the block.

        Launchers send it to all processes as soon as one has ended, and the exit code would be
        another.
        """
        self._before[signal.SIGTERM] = signal.SIG_IGN

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            report("stopping after this step (Ctrl-C once more stops at once)")
        self.received = signal.Signals(number)
