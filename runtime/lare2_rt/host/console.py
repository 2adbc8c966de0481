"""Standard streams, signals and exit codes: streams may be closed or full, their reader gone, Ctrl-C at any moment."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, NoReturn

from ..errors import OutputError

# 0: everything scored. 1: some files failed, or the results could not all be written (the disk is full, the reader of
# standard output left). 2: nothing could start. 3: what --fail-on looks for was found. 130: interrupted by Ctrl-C.
# 143: ended by SIGTERM.
EXIT_FILES, EXIT_USAGE, EXIT_FOUND, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 3, 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, which is answered wherever Ctrl-C is."""


class Interrupted(Exception):  # noqa: N818 - not an error
    """Ctrl-C or SIGTERM on its way through typer, which would turn KeyboardInterrupt into an exit without our sentence.

    Its text is one word; ``code`` is the exit code, which is the one of a shell for a process that a signal ended.
    """

    def __init__(self, cause: KeyboardInterrupt | None = None) -> None:
        terminated = isinstance(cause, Terminated)
        super().__init__("terminated" if terminated else "interrupted")
        self.code = 128 + (signal.SIGTERM if terminated else signal.SIGINT)


class ReaderGone(Exception):  # noqa: N818
    """The reader of standard output, such as ``head``, has what it wanted."""


def say(sentence: str) -> None:
    """Print one line on standard error; a standard error that takes nothing stops no work."""
    from .text import printable

    try:
        sys.stderr.write(f"lare2-rt: {printable(sentence)}\n")
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)


def clocked() -> Callable[[str], None]:
    """Return what prints a line on standard error after the seconds since now."""
    begin = time.monotonic()

    def report(line: str) -> None:
        from .text import printable

        sys.stderr.write(f"[{time.monotonic() - begin:6.1f} s] {printable(line)}\n")
        sys.stderr.flush()

    return report


def fail(sentence: str, *, code: int = EXIT_USAGE) -> NoReturn:
    """Print one sentence on standard error and leave with ``code``."""
    say(sentence)
    sys.exit(code)


def silence(stream: IO[str]) -> None:
    """Send the rest of a broken stream nowhere, or Python complains about it once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@contextlib.contextmanager
def output_errors() -> Iterator[None]:
    """Turn what standard output and signals can raise into exceptions of ours, which typer does not answer itself."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(error) from None
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as error:
        from .atomic import reason  # here, as the help needs none of it

        silence(sys.stdout)
        place = error.filename if isinstance(error.filename, str) else "standard output"
        raise OutputError(
            f"cannot use {place}: {reason(error)}",
            remedy="free some space, check the access rights, or name another place",
        ) from error


def answer_sigterm() -> None:
    """From now on SIGTERM raises ``Terminated``, unless this process ignores it or answers it otherwise."""
    if _in_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def answering_sigterm(main: Callable[[], None]) -> Callable[[], None]:
    """Let an entry point answer SIGTERM; afterwards signals mean again what they meant to its caller."""

    @functools.wraps(main)
    def wrapped() -> None:
        before = {number: signal.getsignal(number) for number in _OURS}
        answer_sigterm()
        try:
            main()
        finally:
            for number, handler in before.items():
                if _in_main_thread() and handler is not None:  # None: not set from Python
                    signal.signal(number, handler)

    return wrapped


def ignore_interrupts() -> None:
    """From now on neither Ctrl-C nor SIGTERM does anything: a second one would lose what is being put away."""
    if _in_main_thread():
        for number in _OURS:
            handler = signal.signal(number, signal.SIG_IGN)
            if handler is not signal.SIG_IGN and handler is not None:
                _ignored[number] = handler


def heed_interrupts() -> None:
    """Undo ``ignore_interrupts``: what was to be put away is, and something long begins."""
    while _in_main_thread() and _ignored:
        signal.signal(*_ignored.popitem())


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block ends, so that no record is half written."""
    struck: list[int] = []

    def remember(number: int, frame: object) -> None:
        struck.append(number)

    with contextlib.ExitStack() as handlers:
        for number, handler in _OURS.items():
            # Else someone else decides what the signal means, or it is ignored.
            if _in_main_thread() and signal.getsignal(number) is handler:
                handlers.callback(signal.signal, number, signal.signal(number, remember))
        yield
    if struck:
        raise Terminated if signal.SIGTERM in struck else KeyboardInterrupt


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


_ignored: dict[signal.Signals, Any] = {}
_OURS: dict[signal.Signals, Callable[..., object]] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: _terminate,
}
