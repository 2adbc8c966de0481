"""Decoding ahead of the engine: sources go in, groups for one call of the engine come out, in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image

from ..errors import ImageError, no_memory
from .decode import ImageSource, source_name
from .preprocess import DecodeTask, Pixels

if TYPE_CHECKING:
    from .pool import IsolatedDecoder, Worker

DECODERS = 2  # decoding is far cheaper than scoring; two keep ahead without holding many pictures
Source = TypeVar("Source")


class Cancellation:
    """One caller's requests, which can all be cancelled.

    Attributes:
        over: whether they are.
        workers: processes at work on them.
    """

    def __init__(self) -> None:
        self.over = False
        self.workers: set[Worker] = set()

    def cancel(self) -> None:
        """End the processes at work, which are replaced when they are needed; nothing more begins."""
        self.over = True  # before the kills: a process that starts between the two is told by this
        for worker in tuple(self.workers):
            worker.kill()


@dataclass(frozen=True, slots=True)
class Decoded:
    """One image: pixels and the milliseconds that they took, or the sentence that says why there are none."""

    name: str
    pixels: Pixels | None
    milliseconds: float = 0.0
    error: str | None = None


class Decoder:
    """Decodes as a task says. Safe to share between threads.

    Args:
        task: what is done with every source.
        isolate: whether paths, bytes and file objects are decoded in processes, of which a bad file ends one at most.

    Raises:
        EngineError: no process can be started.
    """

    def __init__(self, task: DecodeTask, *, isolate: bool) -> None:
        self._task = task
        self._processes: IsolatedDecoder | None = None
        if isolate:
            from .pool import IsolatedDecoder  # needed only here

            self._processes = IsolatedDecoder(task, processes=DECODERS)
            self._processes.start()  # so that it is ready when the engine is

    def decode(self, source: ImageSource, *, cancellation: Cancellation | None = None) -> Pixels:
        """Decode one source; raises ImageError, or EngineError where no process can be started."""
        try:
            if self._processes is not None and not isinstance(source, (Image.Image, np.ndarray)):
                return self._processes.decode(source, cancellation=cancellation)
            return self._task.decode(source)
        except MemoryError:
            raise no_memory() from None

    def attempt(self, source: ImageSource, cancellation: Cancellation | None = None) -> Decoded:
        """Decode one source; what is wrong with it becomes a sentence. Raises EngineError as ``decode``."""
        name, begin = source_name(source), time.perf_counter()
        try:
            pixels = self.decode(source, cancellation=cancellation)
        except ImageError as error:
            return Decoded(name, None, error=str(error))
        return Decoded(name, pixels, (time.perf_counter() - begin) * 1e3)

    def close(self) -> None:
        """End the processes; twice is harmless."""
        if self._processes is not None:
            self._processes.close()


def batches(
    sources: Iterable[Source], attempt: Callable[[Source, Cancellation], Decoded], *, size: int
) -> Generator[list[tuple[Source, Decoded]], None, None]:
    """Decode in threads, ahead of whoever takes the groups, and yield every source with its result, in order.

    Args:
        sources: taken one by one, a few more than are asked for.
        attempt: decodes one of them, such as ``Decoder.attempt``.
        size: readable images of a group; the last one may have fewer. Any number of failures stand among them, and
            those that wait behind no readable image come at once.
    """
    cancellation = Cancellation()
    pending: deque[tuple[Source, Future[Decoded]]] = deque()
    group: list[tuple[Source, Decoded]] = []
    rest, exhausted = iter(sources), False
    with ThreadPoolExecutor(DECODERS, thread_name_prefix="lare2-decode") as pool:
        try:
            while True:
                while not exhausted and len(pending) < DECODERS + size:
                    try:
                        source = next(rest)
                    except StopIteration:
                        exhausted = True
                    else:
                        pending.append((source, pool.submit(attempt, source, cancellation)))
                if pending:
                    source, future = pending.popleft()
                    group.append((source, future.result()))
                readable = sum(decoded.pixels is not None for _, decoded in group)
                if group and (readable in (0, size) or not pending):
                    yield group
                    group = []
                if not pending and exhausted:
                    return
        finally:
            for _, future in pending:
                future.cancel()
            cancellation.cancel()  # else leaving the block would wait for a decoder that may be stuck
