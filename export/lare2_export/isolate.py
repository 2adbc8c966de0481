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
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from typing import Any, TypeVar

from lare2_rt.atomic import reason
from lare2_rt.errors import Lare2Error, first_line

from .staging import BuildError

Report = Callable[[str], None]
Result = TypeVar("Result")
_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOAD = ["lare2_export.onnx_export", "lare2_export.parity", "lare2_ref.sources", "transformers"]


def start_server() -> None:
    """Start the server that workers fork from, if it is not running; it imports its libraries by itself."""
    _CONTEXT.set_forkserver_preload(_PRELOAD)
    multiprocessing.forkserver.ensure_running()


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
            if kind == "report":
                report(content)
            elif kind == "result":
                result: Result = content
                return result
            elif kind == "refused":
                raise content
            else:
                raise BuildError(f"{name} failed: {content}; the full trace is above, finished components are kept")
    except KeyboardInterrupt:
        child.kill()  # it ignores the signal, so that we decide
        raise
    except EOFError:
        child.join()
        raise BuildError(f"{name} {_how_it_died(child.exitcode)}; finished components are kept") from None
    finally:
        child.join(timeout=10)
        if child.is_alive():
            child.kill()
        ours.close()


def _how_it_died(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "was killed, probably for lack of memory: close other programs or build fewer batch sizes (--batch 1)"
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}; run the build again"
    return f"ended without a result (exit code {code}); run the build again"


def _child(pipe: Connection, lock: SharedLock, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    """Run one step; ``lock`` is held simply by being alive."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends us
    try:
        result = function(*arguments, report=lambda line: pipe.send(("report", line)))
        pipe.send(("report", f"  peak memory {peak_gigabytes():.1f} GB"))
        pipe.send(("result", result))
    except Lare2Error as error:
        pipe.send(("refused", error))
    except OSError as error:
        pipe.send(("refused", BuildError(f"cannot write the bundle: {reason(error)}; free some space and build again")))
    except Exception as error:  # the exporters raise anything; the parent needs one sentence, the developer the trace
        traceback.print_exc(file=sys.stderr)
        pipe.send(("failed", f"{type(error).__name__}: {first_line(error)}"))
    finally:
        assert lock.descriptor >= 0
        pipe.close()


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
