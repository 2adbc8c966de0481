"""A disk that is full from one call on. Files are real; only calls that need space are counted, and made to fail."""

import builtins
import errno
import io
import os
import re
from pathlib import Path

from lare2_rt.host import atomic as rename

_RANDOM = re.compile(r"^\.|\.[0-9a-f]{8}\.tmp$|(?<=\.old)-[0-9a-f]{8}$")


class FullDisk:
    """Counts the calls of this process that need space below a folder, and lets some fail.

    Attributes:
        calls: (kind, name of the file without what is random in it) of each call so far, beginning with number 0.
        full_from: number of the first call that fails; None for a disk with room for everything.
        once: only that call fails, as when somebody else frees space at once; else all that follow do too.
    """

    def __init__(self, folder, *, full_from=None, once=False):
        self.folder, self.full_from, self.once = Path(os.path.realpath(folder)), full_from, once
        self.calls = []

    @property
    def struck(self):
        return self.full_from is not None and len(self.calls) > self.full_from

    def refuses(self, kind, path):
        """Count a call; returns whether it has to fail."""
        path = Path(path)
        if not Path(os.path.realpath(path.parent), path.name).is_relative_to(self.folder):
            return False
        number = len(self.calls)
        self.calls.append((kind, _RANDOM.sub("", path.name)))
        return self.full_from is not None and (number == self.full_from or (number > self.full_from and not self.once))

    def need(self, kind, path):
        if self.refuses(kind, path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))

    def mount(self, patch):
        """Put the disk under the calls of this process, by way of a monkeypatch."""
        self._open = builtins.open
        for module in (builtins, io):
            patch.setattr(module, "open", self._opened)
        originals = {name: getattr(os, name) for name in ("mkdir", "rename", "replace", "link")}

        def mkdir(path, *arguments, **options):
            if not os.path.lexists(path):
                self.need("mkdir", path)
            originals["mkdir"](path, *arguments, **options)

        def fsync(handle):  # no test lives to see whether anything was lost
            self.need("fsync", Path(f"/proc/self/fd/{handle}").readlink())

        def renaming(name):
            def renamed(source, target, **options):
                self.need("rename", target)
                originals[name](source, target, **options)

            return renamed

        patch.setattr(os, "mkdir", mkdir)
        patch.setattr(os, "fsync", fsync)
        for name in ("rename", "replace", "link"):
            patch.setattr(os, name, renaming(name))
        original = rename._renameat2

        def renameat2(source, target, flag):
            self.need("rename", target)
            return original(source, target, flag)

        patch.setattr(rename, "_renameat2", renameat2)

    def _opened(self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *rest, **options):
        if isinstance(file, int) or not set(mode) & set("wax"):
            return self._open(file, mode, buffering, encoding, errors, newline, *rest, **options)
        self.need("open", file)
        assert "+" not in mode
        buffered = io.BufferedWriter(_File(self, file, mode.replace("b", "").replace("t", "")))
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)


class _File(io.FileIO):
    """A file whose last write on a full disk takes only half of what it is given, as the kernel's do."""

    def __init__(self, disk, path, mode):
        super().__init__(path, mode)
        self._disk = disk

    def write(self, content):
        if self._disk.refuses("write", self.name):
            view = memoryview(content).cast("B")
            super().write(view[: len(view) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(self.name))
        return super().write(content)
