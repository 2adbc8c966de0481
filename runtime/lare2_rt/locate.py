"""Which bundle to use when none, or one, is named."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Origin = Literal["named", "LARE2_BUNDLE", "./engines", "embedded"]


@dataclass(frozen=True, slots=True)
class Located:
    """A bundle folder and why it was chosen."""

    path: Path
    origin: Origin


def embedded_bundle() -> Path:
    """Return the folder of the default bundle that ships with the package."""
    return Path(__file__).parent / "models" / "mini"


def locate_bundle(named: str | os.PathLike[str] | None = None) -> Located:
    """Choose the bundle: the named one, ``LARE2_BUNDLE``, ``./engines`` if it is a bundle, else the embedded."""
    if named is not None:
        return Located(Path(named), "named")
    variable = os.environ.get("LARE2_BUNDLE")
    if variable:
        return Located(Path(variable), "LARE2_BUNDLE")
    local = Path("engines")
    # os.path answers False where pathlib raises: an ./engines that may not be looked into is not a bundle of ours.
    if os.path.isfile(local / "manifest.json"):
        return Located(local, "./engines")
    return Located(embedded_bundle(), "embedded")
