"""Keeping what C libraries print away from standard output, where a program may be reading JSON."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator

_lock = threading.RLock()
_null: int | None = None  # a stream to nowhere; never closed, as C code of another thread may be using it


@contextlib.contextmanager
def quiet_c_output() -> Iterator[None]:
    """Send what C code prints to standard output nowhere until the block ends. Blocks of several threads take turns.

    Where C's stream cannot be turned away by itself (see ``quiet_c_stream``) descriptor 1 is, and what others write to
    it meanwhile is lost: for short blocks only.
    """
    with _lock, _stream_turned_away() if _is_glibc() else descriptor_turned_away():
        yield


@contextlib.contextmanager
def quiet_c_stream() -> Iterator[None]:
    """Do the same where it costs nobody anything, else nothing.

    The GNU C library lets ``stdout`` be set like any variable, so that only C's stream is turned away: descriptor 1
    stays what it is, and Python's own output, other threads and child processes lose nothing.
    """
    with _lock, _stream_turned_away() if _is_glibc() else contextlib.nullcontext():
        yield


def _is_glibc() -> bool:
    try:
        return hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
    except (OSError, TypeError):  # Windows knows no library without a name
        return False


@contextlib.contextmanager
def _stream_turned_away() -> Iterator[None]:
    global _null
    libc = ctypes.CDLL(None)
    if _null is None:
        libc.fopen.restype = ctypes.c_void_p
        libc.fopen.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
        _null = libc.fopen(os.devnull.encode(), b"w")
    variable = ctypes.c_void_p.in_dll(libc, "stdout")
    before = variable.value
    if _null is not None:  # else out of descriptors, which whatever is opened next will say
        variable.value = _null
    try:
        yield
    finally:
        variable.value = before


@contextlib.contextmanager
def descriptor_turned_away() -> Iterator[None]:
    """Point descriptor 1 to nowhere; C's buffer is emptied before and after, each to where it belongs."""
    _flush()
    saved, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
        yield
    finally:
        _flush()
        os.dup2(saved, 1)
        os.close(saved)
        os.close(null)


def _flush() -> None:
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).fflush(None)
