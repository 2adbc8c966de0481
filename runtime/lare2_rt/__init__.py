"""LaRE² at run time: score images with a bundle, without torch.

Everything is imported on first use, so that ``import lare2_rt`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .detection import Detection
    from .detector import Detector
    from .errors import BundleError, EngineError, ImageError, Lare2Error, UsageError

_WHERE = {
    "Detector": "detector",
    "Detection": "detection",
    "Lare2Error": "errors",
    "BundleError": "errors",
    "EngineError": "errors",
    "ImageError": "errors",
    "UsageError": "errors",
}

__all__ = [
    "BundleError",
    "Detection",
    "Detector",
    "EngineError",
    "ImageError",
    "Lare2Error",
    "UsageError",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
