"""Python processes of our own: how they are started, how they fail, and what is told of that.

A child finds this package where its parent has it, installed or not. Its standard error goes to a file: two pipes that
are read one after the other could block it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

_BOOTSTRAP = (
    "import sys; from importlib import import_module; sys.path.append(sys.argv[1]); "
    "import_module(sys.argv[2]).main(*sys.argv[3:])"
)
_ROOT = Path(__file__).parents[2]
_LONGEST = 200  # characters of a foreign sentence
_NOT_WRITTEN = 3  # exit code of a child that cannot write its result; its last line is the number of the error


class NotStartedError(OSError):
    """No process can be started, which is not what an OSError of the child's own means."""


def python_command(module: str, *arguments: str | Path) -> list[str]:
    """Return the command that calls ``main(*arguments)`` of a module in a fresh interpreter.

    Its working folder is not searched for modules: it may hold files with names that others import.
    """
    return [sys.executable, "-P", "-c", _BOOTSTRAP, str(_ROOT), module, *map(str, arguments)]


class Child:
    """A child process. ``stdin`` and ``stdout`` are its pipes, binary unless ``text``.

    Args:
        module: whose ``main(*arguments)`` runs.
        orders: whether it has a standard input to be told things by; else that is empty.
        cwd, env: of the process; default: its parent's.
        own_group: whether Ctrl-C in a terminal spares it.
        log: file for its standard error; default: one without a name.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self,
        module: str,
        *arguments: str | Path,
        text: bool = False,
        orders: bool = False,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        own_group: bool = False,
        log: Path | None = None,
    ) -> None:
        # Closed with the process.
        self._complaints: IO[bytes] = tempfile.TemporaryFile() if log is None else log.open("w+b")  # noqa: SIM115
        try:
            self.process: subprocess.Popen[Any] = subprocess.Popen(
                python_command(module, *arguments),
                stdin=subprocess.PIPE if orders else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                cwd=cwd,
                env=env,
                text=text,
                encoding="utf-8" if text else None,
                errors="replace" if text else None,
                # A group, no session: to the system's scheduler that would be another user's work.
                process_group=0 if own_group else None,
            )
        except BaseException:
            self._complaints.close()
            raise

    @property
    def stdin(self) -> IO[Any]:
        """Takes orders."""
        assert self.process.stdin is not None
        return self.process.stdin

    @property
    def stdout(self) -> IO[Any]:
        """Gives answers."""
        assert self.process.stdout is not None
        return self.process.stdout

    def wait(self) -> int:
        """Wait for the end and return the exit code, negative for a signal."""
        return self.process.wait()

    def last_line(self) -> str:
        """Return the last line that it wrote to standard error, shortened; empty where there is none."""
        self._complaints.seek(0)
        return last_line(self._complaints.read().decode(errors="replace"))

    def ending(self) -> str:
        """Return how it ended, with its last line: 'stopped by SIGSEGV' or 'ended with code 1: no such file'."""
        said = self.last_line()
        return how_it_ended(self.wait()) + (f": {said}" if said else "")

    def close(self, *, patience: float = 0.0, ask: Callable[[], None] | None = None) -> None:
        """Close its pipes, wait ``patience`` seconds for it to leave after ``ask``, then end it; twice is harmless."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if ask is not None:
            ask()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._complaints.close()


def run_child(
    module: str, *arguments: str | Path, cwd: Path | None = None, limit: float | None = None
) -> tuple[int, str, str]:
    """Run a module's ``main`` to its end; returns (exit code, standard output, last line of standard error).

    Raises:
        NotStartedError: it cannot be started.
        OSError: it could not write its result (see ``written_or_said``).
        TimeoutExpired: it did not end within ``limit`` seconds and was stopped.
    """
    try:
        run = subprocess.run(
            python_command(module, *arguments),
            cwd=cwd,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=limit,
        )
    except OSError as error:
        raise NotStartedError(error.errno, error.strerror) from error
    raise_if_not_written(run.returncode, run.stdout)
    return run.returncode, run.stdout, last_line(run.stderr)


def last_line(text: str) -> str:
    """Return the last line that says something, shortened; empty where there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:_LONGEST] if lines else ""


def how_it_ended(code: int) -> str:
    """Return an exit code in words."""
    return f"stopped by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def written_or_said(work: Callable[[], object]) -> None:
    """Do the work of a child: its parent gets an OSError as such, anything else as one line on standard error."""
    try:
        work()
    except OSError as error:
        sys.stdout.write(f"\n{error.errno or errno.EIO}\n")
        sys.stdout.flush()
        sys.exit(_NOT_WRITTEN)
    except Exception as error:  # whatever a library does
        sys.exit((str(error).splitlines() or [type(error).__name__])[-1])


def raise_if_not_written(code: int, output: str) -> None:
    """Raise the OSError of a child that ended in ``written_or_said``, whatever else was printed before."""
    said = last_line(output)
    if code == _NOT_WRITTEN and said.isdecimal():  # a library may end the process with the same code
        raise OSError(int(said), os.strerror(int(said)))
