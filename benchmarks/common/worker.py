"""The process behind ``Resident``: does what it is told to, and sleeps in between."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from lare2_rt.errors import Lare2Error, first_line
from lare2_rt.host.resident import Answers

_PR_SET_PDEATHSIG = 1


class Worker:
    """What can be asked for, one method each, with plain data in and out."""

    def call(self, function: str, imports: Sequence[str], arguments: Sequence[Any]) -> dict[str, Any]:
        """Do one piece of work, such as a build; returns its ``result`` and the ``seconds``, imports included."""
        begin = time.perf_counter()
        import_all(imports)
        result = resolve(function)(*arguments)
        return {"result": result, "seconds": time.perf_counter() - begin}


def resolve(name: str) -> Callable[..., Any]:
    """Return ``module:function``."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def import_all(names: Sequence[str]) -> None:
    """Import modules; raises Lare2Error for a package that is not installed."""
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise Lare2Error(
                f"{error.name} is not installed", remedy="install it; pyproject.toml has the extras"
            ) from error


def main(parent: str, worker: str) -> None:
    """Answer orders until the parent closes the pipe, or is gone: an orphan would disturb what is measured next."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it was gone before that call
        sys.exit(1)
    answers, served = Answers(logged=True), resolve(worker)()
    for verb, *arguments in answers.orders():
        with answers.errors():
            try:
                answers.tell(answer=getattr(served, verb)(*arguments))
            except Lare2Error:
                raise
            except Exception as error:  # a peer may raise anything; the parent needs one line, the log has the trace
                traceback.print_exc()
                answers.tell(failed=f"{type(error).__name__}: {first_line(error)}")
