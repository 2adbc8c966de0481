"""A bundle on its way: components that are finished survive a killed build, the finished bundle appears by a rename."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lare2_rt.atomic import fsync_folder, reason, write_bytes
from lare2_rt.errors import Lare2Error, OutputError
from lare2_rt.integrity import HashCache
from lare2_rt.manifest import MANIFEST, FileEntry


class BuildError(Lare2Error):
    """A build cannot start or failed; the existing bundle is untouched."""


def check_target(out: Path) -> None:
    """Refuse a target that is not free and not a bundle, before any work; raises BuildError."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise BuildError(f"{out} is not a folder; name another with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise BuildError(f"{out} holds something that is not a bundle; name another folder with --out")
    if not out.resolve().parent.is_dir():
        raise BuildError(f"the folder {out.resolve().parent} does not exist; create it first")


class Staging:
    """The sibling folder ``.<name>.building`` of a target, locked against a second build."""

    def __init__(self, out: Path) -> None:
        self.out = out.resolve()
        self.folder = self.out.with_name(f".{self.out.name}.building")
        self._hashes = (
            HashCache()
        )  # of this build alone, never saved: the finished bundle is read anew before it is published

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Create the folder and hold its lock (yields its descriptor); raises BuildError when another build has it."""
        try:
            self.folder.mkdir(exist_ok=True)
            handle = os.open(self.folder, os.O_RDONLY)
        except OSError as error:
            raise OutputError(f"cannot build beside {self.out}: {reason(error)}; choose another --out") from error
        try:
            if not _locked_in_time(handle):
                raise BuildError(f"another build is writing {self.out}; wait for it or choose another --out")
            yield handle
        finally:
            os.close(handle)

    def finished(self, component: str, key: str) -> dict[str, Any] | None:
        """Return what ``finish`` stored for a component if its key is the same and its files are whole."""
        try:
            marker = json.loads((self.folder / self.marker(component)).read_bytes())
            if marker["key"] != key:
                return None
            for name, entry in marker["files"].items():
                if self._hashes.sha256(self.folder / name, fresh=True) != entry["sha256"]:
                    return None
        except (OSError, ValueError, KeyError):
            return None
        content: dict[str, Any] = marker["content"]
        return content

    def marker(self, component: str) -> str:
        """Return the name of the file that marks a component as finished."""
        return f"{component}.done.json"

    def clear(self, component: str) -> None:
        """Remove whatever an earlier build left of a component."""
        for path in self.folder.glob(f"{component}.*"):
            path.unlink()

    def finish(self, component: str, key: str, content: dict[str, Any], files: list[str]) -> None:
        """Mark a component as finished, durably."""
        for name in files:
            with (self.folder / name).open("rb") as handle:
                os.fsync(handle.fileno())
        marker = {"key": key, "content": content, "files": {name: self.entry(name) for name in files}}
        write_bytes(self.folder / self.marker(component), json.dumps(marker).encode())

    def entry(self, name: str) -> dict[str, Any]:
        """Return size and hash of a file as the manifest has them."""
        path = self.folder / name
        return FileEntry(size=path.stat().st_size, sha256=self._hashes.sha256(path)).model_dump()

    def prune(self, keep: set[str]) -> None:
        """Remove everything that is not part of the bundle, markers included."""
        for path in self.folder.iterdir():
            if path.name not in keep:
                path.unlink()

    def publish(self) -> None:
        """Swap the folder in: the old bundle is moved aside first and removed last."""
        fsync_folder(self.folder)
        old = self.out.with_name(f".{self.out.name}.old-{secrets.token_hex(4)}")
        if self.out.exists():
            self.out.rename(old)
        self.folder.rename(self.out)
        fsync_folder(self.out.parent)
        shutil.rmtree(old, ignore_errors=True)


def _locked_in_time(handle: int, seconds: float = 2.0) -> bool:
    """Take the lock, waiting a little for the last worker of a build that was killed a moment ago."""
    import fcntl

    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        else:
            return True
