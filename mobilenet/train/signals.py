"""Signals that end a training after it was saved."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

# SIGHUP comes when the terminal is closed. SIGUSR2 is what Slurm is asked to send before it
# preempts a job or its time is over.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


class Interrupted(RuntimeError):
    """One of SIGNALS arrived; `signum` says which. The state was saved."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


@contextlib.contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Has a handler called for SIGNALS while it is entered.

    Left alone are a SIGHUP that is ignored, which is what `nohup` asks for, and threads other than
    the main one, to which handlers belong: a loop in a notebook's worker thread goes without.
    """
    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class Signals:
    """Notes the first of SIGNALS while it is entered; a second SIGINT raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "Signals":
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(handled(self._note))
        return self

    def _note(self, number: int, frame: Any) -> None:
        del frame
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def __exit__(self, *exc: object) -> None:
        self._stack.close()
