"""Standard error and standard output as they really are: closed, full, or with a reader that has left."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import IO

from ..errors import OutputError


class Interrupted(Exception):  # noqa: N818 - not an error
    """Ctrl-C on its way through typer, which would turn KeyboardInterrupt into an exit without our sentence."""


class ReaderGone(Exception):  # noqa: N818
    """The reader of standard output, such as ``head``, has what it wanted."""


def say(sentence: str) -> None:
    """Print one line on standard error; a standard error that takes nothing stops no work."""
    from ..output import printable

    try:
        sys.stderr.write(f"lare2-rt: {printable(sentence)}\n")
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)


def silence(stream: IO[str]) -> None:
    """Send the rest of a broken stream nowhere, or Python complains about it once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@contextlib.contextmanager
def output_errors() -> Iterator[None]:
    """Turn what standard output and Ctrl-C can raise into exceptions of ours, which typer does not answer itself."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted from None
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as error:
        from ..atomic import reason  # here, as the help needs none of it

        silence(sys.stdout)
        place = error.filename if isinstance(error.filename, str) else "standard output"
        raise OutputError(
            f"cannot use {place}: {reason(error)}; free some space, check the access rights, or name another place"
        ) from error


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends, so that no record is half written."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # someone else decides what the signal means, or it is ignored
        return
    struck = False

    def remember(number: int, frame: object) -> None:
        nonlocal struck
        struck = True

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if struck:
        raise KeyboardInterrupt
