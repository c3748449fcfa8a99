"""Signals that end a training after its state is saved."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

# SIGHUP is sent when the terminal is closed. Slurm is asked to send SIGUSR2 before it preempts a
# job or the job's time ends.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


class Interrupted(RuntimeError):
    """One of SIGNALS, `signum`, arrived. The state was saved."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


@contextlib.contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Installs a handler for SIGNALS within the context.

    An ignored SIGHUP stays ignored, because `nohup` asks for that. Threads other than the main one
    cannot have handlers: a loop in a notebook's worker thread runs without them.
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
    """Records the first of SIGNALS within the context; a second SIGINT raises KeyboardInterrupt."""

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
