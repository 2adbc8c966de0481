"""Decoding in processes of their own: a file that crashes a decoder, or keeps it busy, costs that file only."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import threading
from typing import TYPE_CHECKING

from ..errors import EngineError, ImageError, PassingImageError, no_memory
from ..host.child import Child
from . import worker as decode_worker
from .decode import ImageSource, read_source
from .packing import unpack, unpack_picture
from .picture import Picture, Properties
from .preprocess import DecodeTask, Pixels
from .worker import CONTENT, DONE, HEAD, PATH, PICTURE, PROPERTIES, READY, encode_task

if TYPE_CHECKING:
    from .ahead import Cancellation

_START_LIMIT = 60.0  # seconds for a process to import what it needs
# What the GNU C library is told to do with freed memory: give it back. By default it keeps some of earlier pictures
# (10 MB after 3,000 damaged ones of up to two megapixels), so that the same file would take more the later it came.
_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
_END_LIMIT = 2.0  # seconds for an idle process to leave by itself


class IsolatedDecoder:
    """A few resident processes that decode. Safe to share between threads, each of which waits for a free process.

    The same file gives the same bits as in this process: it is the same code.
    """

    def __init__(self, task: DecodeTask, *, processes: int) -> None:
        """Start nothing yet: each process is started when it is needed."""
        self._task = task
        self._workers = [Worker(task) for _ in range(processes)]
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        for worker in reversed(self._workers):
            self._idle.put(worker)

    def start(self) -> None:
        """Start one process, so that it is ready when it is needed. Raises EngineError."""
        self._workers[0].start()

    def decode(self, source: ImageSource, *, cancellation: Cancellation | None = None) -> Pixels:
        """Decode a path, encoded bytes or a binary file object.

        Args:
            source: a file object is read here; a path is read in the process.
            cancellation: what the request belongs to, so that whoever waits for it can stop waiting.

        Raises:
            ImageError: as ``preprocess``; also where the process took too long or died, or the request is cancelled.
            EngineError: no process can be started.
        """
        if isinstance(source, (str, os.PathLike)):
            kind, content = PATH, os.fsencode(source)
        else:
            kind, content = CONTENT, read_source(source, self._task.limits)  # type: ignore[arg-type]  # checked there
        return unpack(self._ask(kind, content, cancellation))

    def picture(self, path: str) -> Picture:
        """Read a whole picture as ``read_picture`` does; raises as ``decode``."""
        try:
            return unpack_picture(self._ask(PICTURE, os.fsencode(path), None))
        except MemoryError:
            raise no_memory() from None

    def properties(self, path: str, *, cancellation: Cancellation | None = None) -> Properties:
        """Tell what a file is as ``read_properties`` does; raises as ``decode``."""
        return Properties(**json.loads(self._ask(PROPERTIES, os.fsencode(path), cancellation)))

    def _ask(self, kind: int, content: bytes, cancellation: Cancellation | None) -> bytes:
        worker = self._idle.get()
        try:
            if cancellation is not None:
                cancellation.workers.add(worker)
            return worker.ask(kind, content, cancellation)
        finally:
            if cancellation is not None:
                cancellation.workers.discard(worker)
            self._idle.put(worker)

    def close(self) -> None:
        """End all processes; twice is harmless."""
        for worker in self._workers:
            worker.close()


class Worker:
    """One process, started when it is needed and replaced when it is gone. One thread uses it at a time."""

    def __init__(self, task: DecodeTask) -> None:
        self._task = task
        self._child: Child | None = None
        self._ready = self._killed = False
        self._folder = ""

    def start(self) -> None:
        """Start the process unless it runs; returns before it is ready. Raises EngineError."""
        if self._child is not None and not self._killed and self._child.process.poll() is None:
            return
        self.close()
        self._ready = self._killed = False
        with contextlib.suppress(OSError):
            self._folder = os.getcwd()  # noqa: PTH109 - as text
        try:
            # A group of its own: Ctrl-C in a terminal reaches the parent alone.
            self._child = Child(
                decode_worker.__name__,
                encode_task(self._task),
                orders=True,
                env={**_MEMORY, **os.environ},
                own_group=True,
            )
        except OSError as error:
            raise _cannot_start(str(error)) from error

    def ask(self, kind: int, content: bytes, cancellation: Cancellation | None) -> bytes:
        """Return the answer to one order; raises ImageError or EngineError."""
        if kind != CONTENT and not content.startswith(b"/"):
            content = self._from_its_folder(content)
        self._make_ready()
        # Nothing starts the process from here on, so that a kill is for good.
        if cancellation is not None and cancellation.over:
            raise PassingImageError("decoding was cancelled", remedy="ask for it again")
        limit = self._task.limits.max_seconds
        answer, late = self._answer(kind, content, limit)
        if answer is None:
            raise _too_late(limit) if late else self._death()
        what, found = answer
        if what == DONE:
            return found
        problem, remedy, passing = json.loads(found)
        raise (PassingImageError if passing else ImageError)(problem, remedy=remedy)

    def kill(self) -> None:
        """End the process at once, from any thread."""
        self._killed = True
        child = self._child
        if child is not None:
            child.process.kill()

    def close(self) -> None:
        """End the process."""
        child, self._child = self._child, None
        if child is not None:
            child.close(patience=0 if self._killed else _END_LIMIT)

    def _from_its_folder(self, path: bytes) -> bytes:
        """A relative path means what it means here, also where this process has changed its folder since."""
        self.start()
        with contextlib.suppress(OSError):
            here = os.getcwd()  # noqa: PTH109
            if here != self._folder:
                return os.path.join(os.fsencode(here), path)
        return path

    def _make_ready(self) -> None:
        self.start()
        if self._ready:
            return
        timer = threading.Timer(_START_LIMIT, self.kill)
        timer.daemon = True
        timer.start()
        answer = self._read()
        timer.cancel()
        if answer is None or answer[0] != READY:
            assert self._child is not None
            raise _cannot_start(self._child.last_line() or self._child.ending())
        self._ready = True

    def _answer(self, kind: int, content: bytes, limit: float) -> tuple[tuple[int, bytes] | None, bool]:
        """Return the answer, or None where the process is gone, and whether its time was over."""
        over = threading.Event()

        def end() -> None:
            over.set()
            self.kill()

        timer = threading.Timer(limit, end)
        timer.daemon = True
        timer.start()
        try:
            assert self._child is not None
            with contextlib.suppress(OSError):  # gone: the lack of an answer tells
                self._child.stdin.write(HEAD.pack(kind, len(content)) + content)
                self._child.stdin.flush()
            return self._read(), over.is_set()
        except BaseException:  # Ctrl-C, no memory: the rest of the answer would be taken for that to the next order
            self.kill()
            raise
        finally:
            timer.cancel()

    def _read(self) -> tuple[int, bytes] | None:
        assert self._child is not None
        answers = self._child.stdout
        head = answers.read(HEAD.size)
        if len(head) < HEAD.size:
            return None
        kind, size = HEAD.unpack(head)
        content = answers.read(size)
        return (kind, content) if len(content) == size else None

    def _death(self) -> ImageError:
        """Return the error for a process that died over a file."""
        assert self._child is not None
        code = self._child.wait()
        if code == -signal.SIGKILL:
            return PassingImageError(
                "its decoder was killed, most likely for want of memory", remedy="scale it down or free some memory"
            )
        if code == -signal.SIGALRM:
            return _too_late(self._task.limits.max_seconds)
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        return ImageError(
            f"its decoder crashed ({how})",
            remedy="the file is damaged or means harm: open and save it with another program",
        )


def _too_late(limit: float) -> ImageError:
    return PassingImageError(
        f"decoding took more than {limit:g} seconds and was stopped",
        remedy="convert it to another format, or allow more with 'lare2-rt infer --max-seconds'",
    )


def _cannot_start(why: str) -> EngineError:
    return EngineError(
        f"no process for decoding can be started ({why})",
        remedy="free some memory, or decode without with 'lare2-rt infer --no-isolate'",
    )
