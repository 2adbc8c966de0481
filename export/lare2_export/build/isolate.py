"""Running a heavy step in a process of its own, so that its memory is gone when it ends.

Exporters and ONNX Runtime keep what they once allocated; a second network on top of a first would need twice the
memory. The processes fork from one server that has imported the libraries already, so that each costs a moment and not
the five seconds of those imports. They end when their parent does, and hold its lock until then.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from typing import Any, TypeVar

from lare2_rt.errors import Lare2Error, first_line
from lare2_rt.host.atomic import reason

from .staging import BuildError

Report = Callable[[str], None]
Result = TypeVar("Result")
_CONTEXT = multiprocessing.get_context("forkserver")
# 'timeout' and others end a whole group of processes: then our own signal is due now, and it is the one to tell.
_OWN_SIGNAL = 0.5  # seconds
_QUIET = "ignore:resource_tracker"
_PRELOAD = ["lare2_export.graph.onnx_export", "lare2_export.parity.measure", "lare2_ref.sources", "transformers"]


def start_server() -> None:
    """Start the server that workers fork from, if it is not running; it imports its libraries by itself."""
    _CONTEXT.set_forkserver_preload(_PRELOAD)
    # With it starts Python's resource tracker, which clears up after workers that are killed and need not say so.
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = _QUIET if not before else f"{before},{_QUIET}"
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


class SharedLock:
    """A lock's file descriptor on its way to a child: as long as a duplicate is open, the lock is held."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _adopt, (DupFd(self.descriptor),)


def _adopt(duplicate: Any) -> SharedLock:  # noqa: ANN401 - multiprocessing's type is private
    return SharedLock(duplicate.detach())


def run_isolated(
    name: str, function: Callable[..., Result], *arguments: object, lock: SharedLock, report: Report
) -> Result:
    """Return ``function(*arguments, report=…)`` computed in a child process; everything must be picklable.

    Raises:
        Lare2Error: as raised in the child.
        BuildError: the child died or failed otherwise; ``name`` says in which step.
    """
    start_server()
    ours, theirs = _CONTEXT.Pipe()
    child = _CONTEXT.Process(target=_child, args=(theirs, lock, function, arguments), daemon=True)
    child.start()
    theirs.close()
    try:
        while True:
            kind, content = ours.recv()
            if kind != "report":
                result: Result = answer(name, kind, content)
                return result
            report(content)
    except KeyboardInterrupt:
        child.kill()  # it ignores the signal, so that we decide
        raise
    except EOFError:
        child.join()
        if child.exitcode == -signal.SIGTERM:
            time.sleep(_OWN_SIGNAL)
        raise _died(name, child.exitcode) from None
    finally:
        child.join(timeout=10)
        if child.is_alive():
            child.kill()
        ours.close()


def _died(name: str, code: int | None) -> BuildError:
    remedy = "run the build again, finished components are kept"
    if code == -signal.SIGKILL:
        remedy = f"close other programs or build fewer batch sizes (--batch 1), and {remedy}"
        return BuildError(f"{name} was killed, probably for lack of memory", remedy=remedy)
    if code is not None and code < 0:
        return BuildError(f"{name} was ended by {signal.Signals(-code).name}", remedy=remedy)
    return BuildError(f"{name} ended without a result (exit code {code})", remedy=remedy)


def _child(pipe: Connection, lock: SharedLock, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    """Run one step; ``lock`` is held simply by being alive."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends us
    try:
        pipe.send(attempt(function, *arguments, report=lambda line: pipe.send(("report", line))))
    finally:
        assert lock.descriptor >= 0
        pipe.close()


def attempt(function: Callable[..., object], *arguments: object, report: Report) -> tuple[str, object]:
    """Run one step here; returns its result, or what went wrong, in the form that ``answer`` takes."""
    try:
        result = function(*arguments, report=report)
        report(f"  peak memory {peak_gigabytes():.1f} GB")
    except Lare2Error as error:
        return "refused", error
    except OSError as error:
        return "refused", BuildError(
            f"cannot write the bundle: {reason(error)}", remedy="free some space and build again"
        )
    except Exception as error:  # the exporters raise anything; the parent needs one sentence, the developer the trace
        traceback.print_exc(file=sys.stderr)
        return "failed", f"{type(error).__name__}: {first_line(error)}"
    return "result", result


def answer(name: str, kind: str, content: Any) -> Any:  # noqa: ANN401 - a step returns what it likes
    """Return the result of an ``attempt`` at step ``name``; raises Lare2Error where it has none."""
    if kind == "refused":
        raise content
    if kind == "failed":
        raise BuildError(
            f"{name} failed: {content}",
            remedy="run the build again, finished components are kept; if it fails again, report the trace above with "
            "the versions that 'pip freeze' gives",
        )
    return content


def _end_with_parent() -> None:
    """Leave at once when the parent is gone, so that no orphan writes into a folder that a new build has taken."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def peak_gigabytes() -> float:
    """Return the largest resident size of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
