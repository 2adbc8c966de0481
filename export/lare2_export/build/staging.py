"""A bundle on its way: components that are finished survive a killed build, the finished bundle appears by a rename."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lare2_rt.bundle.manifest import MANIFEST, FileEntry
from lare2_rt.errors import Lare2Error, OutputError
from lare2_rt.host.atomic import fsync_folder, reason, write_bytes
from lare2_rt.host.integrity import HashCache
from lare2_rt.host.locks import folder_lock
from lare2_rt.host.replace_folder import building_folder, swap_in


class BuildError(Lare2Error):
    """A build cannot start or failed; the existing bundle is untouched."""


def check_target(out: Path) -> None:
    """Refuse a target that is not free and not a bundle, before any work; raises BuildError."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise BuildError(f"{out} is not a folder", remedy="name another with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise BuildError(f"{out} holds something that is not a bundle", remedy="name another folder with --out")
    if not out.resolve().parent.is_dir():
        raise BuildError(f"the folder {out.resolve().parent} does not exist", remedy="create it first")


class Staging:
    """The sibling folder ``.<name>.building`` of a target, locked against a second build.

    Marks of finished components are in ``.<name>.finished`` beside it and survive a bundle that cannot be published.
    """

    def __init__(self, out: Path) -> None:
        self.out = out.resolve()
        self.folder = building_folder(self.out)
        self._marks = self.out.with_name(f".{self.out.name}.finished")
        # Of this build alone, never saved: the finished bundle is read anew before it is published.
        self._hashes = HashCache()

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Create the folder and hold its lock (yields its descriptor).

        Raises:
            BuildError: another build has the lock.
            OutputError: the folder, or in the block anything in it, cannot be written.
        """
        try:
            # A little patience for the last worker of a build that was killed a moment ago.
            with folder_lock(self.folder, seconds=2, create=True) as handle:
                if handle is None:
                    raise BuildError(
                        f"another build is writing {self.out}", remedy="wait for it or choose another --out"
                    )
                yield handle
        except OSError as error:
            raise OutputError(
                f"cannot write the bundle {self.out}: {reason(error)}",
                remedy="free some space or choose another --out, finished components are kept",
            ) from error

    def finished(self, component: str, key: str) -> dict[str, Any] | None:
        """Return what ``finish`` stored for a component if its key is the same and its files are whole."""
        try:
            mark = json.loads(self._mark(component).read_bytes())
            if mark["key"] != key:
                return None
            for name, entry in mark["files"].items():
                if self._hashes.sha256(self.folder / name, fresh=True) != entry["sha256"]:
                    return None
        except (OSError, ValueError, KeyError):
            return None
        content: dict[str, Any] = mark["content"]
        return content

    def _mark(self, component: str) -> Path:
        return self._marks / f"{component}.done.json"

    def clear(self, component: str) -> None:
        """Remove whatever an earlier build left of a component."""
        for path in (self._mark(component), *self.folder.glob(f"{component}.*")):
            path.unlink(missing_ok=True)

    def finish(self, component: str, key: str, content: dict[str, Any], files: list[str]) -> None:
        """Mark a component as finished, durably."""
        for name in files:
            with (self.folder / name).open("rb") as handle:
                os.fsync(handle.fileno())
        mark = {"key": key, "content": content, "files": {name: self.entry(name) for name in files}}
        self._marks.mkdir(exist_ok=True)
        write_bytes(self._mark(component), json.dumps(mark).encode())

    def entry(self, name: str) -> dict[str, Any]:
        """Return size and hash of a file as the manifest has them."""
        path = self.folder / name
        return FileEntry(size=path.stat().st_size, sha256=self._hashes.sha256(path)).model_dump()

    def prune(self, keep: set[str]) -> None:
        """Remove everything that is not part of the bundle."""
        for path in self.folder.iterdir():
            if path.name not in keep:
                path.unlink()

    def publish(self) -> None:
        """Swap the folder in; raises OSError, with the old bundle in its place and components still finished."""
        fsync_folder(self.folder)
        swap_in(self.folder, self.out)
        shutil.rmtree(self._marks, ignore_errors=True)
