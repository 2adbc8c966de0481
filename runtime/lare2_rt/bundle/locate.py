"""Which bundle to use when none, or one, is named."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..host.replace_folder import restore
from .manifest import MANIFEST

Origin = Literal["named", "LARE2_BUNDLE", "./engines", "embedded"]


@dataclass(frozen=True, slots=True)
class Located(os.PathLike[str]):
    """A bundle folder and why it was chosen. ``locate_bundle`` returns it as it is, so that it is found once.

    Attributes:
        restored: where it stood aside after a killed build until this call put it back; None as a rule.
    """

    path: Path
    origin: Origin
    restored: Path | None = None

    def __fspath__(self) -> str:
        return str(self.path)


def embedded_bundle() -> Path:
    """Return the folder of the default bundle that ships with the package."""
    return Path(__file__).parents[1] / "models" / "mini"


def locate_bundle(named: str | os.PathLike[str] | None = None) -> Located:
    """Choose the bundle: the named one, ``LARE2_BUNDLE``, ``./engines`` if it is a bundle, else the embedded.

    Where the first two, or ``./engines``, are missing because a build was killed while it replaced them, the old bundle
    is put back.
    """
    if isinstance(named, Located):
        return named
    if named is not None:
        return _put_back(Path(named), "named")
    variable = os.environ.get("LARE2_BUNDLE")
    if variable:
        return _put_back(Path(variable), "LARE2_BUNDLE")
    local = _put_back(Path("engines"), "./engines")
    # os.path answers False where pathlib raises: an ./engines that may not be looked into is not a bundle of ours.
    if os.path.isfile(local.path / MANIFEST):
        return local
    return Located(embedded_bundle(), "embedded")


def _put_back(path: Path, origin: Origin) -> Located:
    return Located(path, origin, restore(path, marker=MANIFEST))
