"""Let go of the pages of a mapped file while a library loads from it.

A library that maps its weights and copies them into a layout of its own leaves both in memory, the copy and the pages
that it has read, as long as the mapping lasts.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

_SECONDS = 0.05  # between two times; a disk reads some hundred megabytes meanwhile
_DONT_NEED = 4  # MADV_DONTNEED of Linux


@contextlib.contextmanager
def let_go(*files: Path) -> Iterator[None]:
    """Let go of the pages of files that this process has mapped and cannot write to, again and again until the end.

    No result changes: what is read once more comes from the system's file cache. Only on Linux; elsewhere nothing
    happens.
    """
    if sys.platform != "linux":
        yield
        return
    names, done = {str(file.resolve()) for file in files}, threading.Event()

    def repeat() -> None:
        while not done.wait(_SECONDS):
            _drop(names)

    thread = threading.Thread(target=repeat, name="lare2-rt-let-go", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _drop(names)


def _drop(names: set[str]) -> None:
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with contextlib.suppress(OSError), Path("/proc/self/maps").open(encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(maxsplit=5)
            if fields[-1] in names and fields[1].startswith("r-"):
                begin, end = (int(number, 16) for number in fields[0].split("-"))
                advise(begin, end - begin, _DONT_NEED)
