"""Two openly licensed photographs, on which every build is measured beside the procedural pictures."""

from __future__ import annotations

from pathlib import Path


def photographs() -> tuple[str, ...]:
    """Return the paths of the photographs that come with the package (``photos/ATTRIBUTION.md``)."""
    folder = Path(__file__).parent / "photos"
    return tuple(str(path) for path in sorted(folder.iterdir()) if path.suffix in (".jpg", ".png"))
