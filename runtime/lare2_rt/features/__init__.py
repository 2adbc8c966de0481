"""LaRE maps of many images on disk: extracted once, kept by content, read through memory maps.

Everything is imported on first use; pyarrow only where a table is read or written.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .extract import Extraction, ExtractOptions
    from .reader import Features, open_features
    from .sources import ImageFile, sources_of

_WHERE = {
    "ExtractOptions": "extract",
    "Extraction": "extract",
    "Features": "reader",
    "ImageFile": "sources",
    "open_features": "reader",
    "sources_of": "sources",
}

__all__ = ["ExtractOptions", "Extraction", "Features", "ImageFile", "open_features", "sources_of"]


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
