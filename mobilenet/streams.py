"""Output that outlives its reader: a terminal that is closed, a pipe into `head`."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

# What a write says when nobody can read it any more: a pipe without a reader, a terminal hung up.
_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.ECONNRESET, errno.EBADF)


class Lasting:
    """A text stream that drops what is written once its reader is gone, and raises nothing then.

    Args:
      stream: to write to; None, as `sys.stderr` of a program without a terminal is, drops all.
      always: drop what cannot be written for other reasons too, such as a full disk: for progress,
        which is no result.
    """

    def __init__(self, stream: Any, *, always: bool = False) -> None:
        self._stream: TextIO | None = stream
        self._always = always

    def __getattr__(self, name: str) -> Any:
        if self._stream is None:
            raise AttributeError(name)
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes text, or drops it; its length."""
        with self._dropping():
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hands on what was written, or drops it."""
        with self._dropping():
            if self._stream is not None:
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether somebody watches a terminal."""
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
        """Lets what the stream still buffers be flushed into nothing, at the latest at exit."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nothing, self._stream.fileno())  # pyright: ignore[reportOptionalMemberAccess]
            finally:
                os.close(nothing)


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Makes `sys.stdout` and `sys.stderr` outlive their readers while it is entered."""
    before = sys.stdout, sys.stderr
    streams: Any = tuple(map(Lasting, before))
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            # What else is wrong, such as a full disk, Python says when it ends.
            with contextlib.suppress(OSError):
                stream.flush()
        sys.stdout, sys.stderr = before


def open_standard_files() -> None:
    """Puts nothing in the place of standard files that the program was started without.

    The next file that is opened would be in their place, and receive what libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
