"""A child process that is told what to do and answers, JSON lines both ways; it sleeps in a read in between.

An order is a list: a verb and its arguments. An answer is an object; ``{"notice": text}`` may come before it, and
``{"error": [problem, remedy]}`` instead of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import Lare2Error
from .atomic import reason
from .child import Child

_END_LIMIT = 10.0  # seconds for a process to leave by itself


class Resident:
    """The parent's side.

    Args:
        module: whose ``main(*arguments)`` runs; it serves with ``Answers``.
        name: of the process, subject of the sentences about its end.
        refused: the error that an answer can be; died: the error of a process without an answer.
        env: variables of the process; default: its parent's.
        log: file for what it prints on standard error; default: one without a name, kept until ``close``.

    Raises:
        Lare2Error: of type ``died``: it cannot be started.
    """

    def __init__(
        self,
        module: str,
        *arguments: str | Path,
        refused: type[Lare2Error],
        died: type[Lare2Error],
        name: str = "its process",
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        self._name, self._refused, self._died = name, refused, died
        try:
            self.child = Child(module, *arguments, text=True, orders=True, env=env, log=log)
        except OSError as error:
            raise died(f"{name} cannot be started: {reason(error)}", remedy="close other programs") from error

    def ask(self, verb: str, *arguments: object, limit: float | None = None) -> dict[str, Any]:
        """Give an order and return the answer; raises as ``answer`` does."""
        with contextlib.suppress(OSError):  # dead: its answer, or the lack of one, tells
            self.child.stdin.write(json.dumps([verb, *arguments]) + "\n")
            self.child.stdin.flush()
        return self.answer(limit=limit)

    def answer(self, notify: Callable[[str], None] | None = None, *, limit: float | None = None) -> dict[str, Any]:
        """Return the next answer.

        Args:
            notify: called with each notice before it.
            limit: seconds after which the process is killed; default: none.

        Raises:
            Lare2Error: of type ``refused``: it answered with an error; ``died``: it ended, or took too long.
        """
        late = threading.Event()

        def end() -> None:
            late.set()
            self.child.process.kill()

        timer = None if limit is None else threading.Timer(limit, end)
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            for line in self.child.stdout:
                content: dict[str, Any] = json.loads(line)
                if "notice" in content:
                    if notify is not None:
                        notify(content["notice"])
                elif "error" in content:
                    problem, remedy = content["error"]
                    raise self._refused(problem, remedy=remedy)
                else:
                    return content
        finally:
            if timer is not None:
                timer.cancel()
        if late.is_set():
            raise self._died(f"{self._name} gave no answer within {limit:g} s and was ended", remedy="report it")
        if self.child.wait() == -signal.SIGKILL:
            raise self._died(f"{self._name} was killed, most likely for want of memory", remedy="close other programs")
        raise self._died(f"{self._name} was {self.child.ending()}", remedy="report it")

    def close(self, *, patience: float = _END_LIMIT) -> None:
        """Ask the process to end (SIGTERM, no more orders) and end it after ``patience`` seconds; twice is harmless."""
        self.child.close(patience=patience, ask=self.child.process.terminate)


class Answers:
    """The child's side; what libraries print on standard output goes nowhere, or to standard error where ``logged``."""

    def __init__(self, *, logged: bool = False) -> None:
        self._stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2 if logged else os.open(os.devnull, os.O_WRONLY), 1)

    def tell(self, **content: Any) -> None:  # noqa: ANN401 - whatever JSON knows
        """Answer, or send a notice."""
        self._stream.write(json.dumps(content) + "\n")
        self._stream.flush()

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Answer with what the block raises of our errors, or for want of memory."""
        try:
            yield
        except Lare2Error as error:
            self.tell(error=[error.problem, error.remedy])
        except MemoryError:
            self.tell(error=["there is not enough memory for it", "close other programs"])

    @staticmethod
    def orders() -> Iterator[list[Any]]:
        """Yield each order until the parent closes standard input."""
        for line in sys.stdin:
            yield json.loads(line)
