"""Output that continues without a reader: after a terminal is closed, or a pipe into `head`."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

# Errors of a write that nobody can read: a pipe without a reader, a closed terminal.
_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.ECONNRESET, errno.EBADF)


class Lasting:
    """A text stream that discards text when its reader is gone, instead of raising.

    Args:
      stream: to write to; None, such as `sys.stderr` in a program without a terminal, discards all.
      always: also discard text that cannot be written for other reasons, such as a full disk. Use
        this for progress, which is not a result.
    """

    def __init__(self, stream: Any, *, always: bool = False) -> None:
        self._stream: TextIO | None = stream
        self._always = always

    def __getattr__(self, name: str) -> Any:
        if self._stream is None:
            raise AttributeError(name)
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes text, or discards it; returns its length."""
        with self._dropping():
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream, or discards its text."""
        with self._dropping():
            if self._stream is not None:
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except UnicodeError:
            raise
        except ValueError:
            self._stream = None  # it was closed
        except OSError as error:
            if error.errno in _GONE:
                self._drain()
            elif not self._always:
                raise
            self._stream = None

    def _drain(self) -> None:
        """Redirects the stream's buffered text to the null device, so that flushing succeeds."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nothing, self._stream.fileno())  # pyright: ignore[reportOptionalMemberAccess]
            finally:
                os.close(nothing)


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Lets `sys.stdout` and `sys.stderr` continue without readers within the context."""
    before = sys.stdout, sys.stderr
    streams: Any = tuple(map(Lasting, before))
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            # Python itself reports other errors, such as a full disk, when it ends.
            with contextlib.suppress(OSError):
                stream.flush()
        sys.stdout, sys.stderr = before


def open_standard_files() -> None:
    """Opens the null device for standard files that the program was started without.

    Otherwise the next file that is opened would take their place and receive what libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
