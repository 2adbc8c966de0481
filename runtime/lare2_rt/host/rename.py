"""Two renames that POSIX lacks: one that never replaces anything, and one that swaps two names in a single step."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

_HERE = -100  # AT_FDCWD: paths are relative to the working folder, as everywhere
_NO_REPLACE, _EXCHANGE = 1, 2
# The system, the file system or a container's filter does not know the call or the flag. EPERM is what older filters
# answer; a true lack of permission comes up again in the call that is then made instead.
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})


def exchange(one: Path, other: Path) -> bool:
    """Swap two files or folders in one step; returns False, with nothing done, where that is not possible.

    Raises:
        OSError: either is missing, or the disk or the access rights are against it.
    """
    return _renameat2(one, other, _EXCHANGE)


def rename_new(source: Path, target: Path) -> None:
    """Rename a file or folder to a name that nothing has; whatever appears there first is left alone.

    Only where neither the system nor the file system offers such a rename (nor, for files, hard links) does a moment
    remain between looking and renaming.

    Raises:
        FileExistsError: the name is taken, be it by a broken link.
        OSError: as ``os.rename``.
    """
    if _renameat2(source, target, _NO_REPLACE):
        return
    if not source.is_dir():
        try:
            target.hardlink_to(source)
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        else:
            source.unlink()
            return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def _renameat2(source: Path, target: Path, flag: int) -> bool:
    """Call Linux's ``renameat2``; returns whether it is supported, raises OSError where it failed."""
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:  # a C library from before 2018, or musl
        return False
    if call(_HERE, os.fsencode(source), _HERE, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(target))
