"""LaRE² at run time: score images with a bundle, without torch.

Everything is imported on first use, so that ``import lare2_rt`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .bundle.manifest import Manifest
    from .bundle.opening import Bundle, open_bundle
    from .detection import DecisionRule, Detection, Provenance
    from .detector import Detector, DetectorInfo
    from .engines.contract import (
        ChainOutput,
        Engine,
        EngineInfo,
        EngineOptions,
        OpenEngine,
        WindowEngine,
        WindowOutput,
    )
    from .errors import BundleError, EngineError, ImageError, Lare2Error, OutputError, UsageError
    from .pixels.limits import Limits
    from .pixels.policy import Preprocessing
    from .pixels.preprocess import Pixels, preprocess
    from .tools.datasets.audit import AuditReport, audit_index
    from .tools.datasets.build import Indexed, build_index
    from .tools.datasets.matched import MatchedOptions, write_matched
    from .tools.datasets.split import SplitOptions, arrange_splits
    from .tools.datasets.table import Index, IndexRow, read_index, write_index
    from .tools.evidence.maps import attention_map, lare_map, overlay
    from .tools.evidence.panel import render_panel
    from .tools.evidence.scale import Scale, Scales, run_scales
    from .tools.features.extract import Extraction, ExtractOptions
    from .tools.features.reader import Features, open_features
    from .tools.features.sources import ImageFile, sources_of

_WHERE = {
    "bundle.manifest": ("Manifest",),
    "bundle.opening": ("Bundle", "open_bundle"),
    "detection": ("DecisionRule", "Detection", "Provenance"),
    "detector": ("Detector", "DetectorInfo"),
    "engines.contract": (
        "ChainOutput",
        "Engine",
        "EngineInfo",
        "EngineOptions",
        "OpenEngine",
        "WindowEngine",
        "WindowOutput",
    ),
    "errors": ("BundleError", "EngineError", "ImageError", "Lare2Error", "OutputError", "UsageError"),
    "pixels.limits": ("Limits",),
    "pixels.policy": ("Preprocessing",),
    "pixels.preprocess": ("Pixels", "preprocess"),
    "tools.datasets.audit": ("AuditReport", "audit_index"),
    "tools.datasets.build": ("Indexed", "build_index"),
    "tools.datasets.matched": ("MatchedOptions", "write_matched"),
    "tools.datasets.split": ("SplitOptions", "arrange_splits"),
    "tools.datasets.table": ("Index", "IndexRow", "read_index", "write_index"),
    "tools.evidence.maps": ("attention_map", "lare_map", "overlay"),
    "tools.evidence.panel": ("render_panel",),
    "tools.evidence.scale": ("Scale", "Scales", "run_scales"),
    "tools.features.extract": ("ExtractOptions", "Extraction"),
    "tools.features.reader": ("Features", "open_features"),
    "tools.features.sources": ("ImageFile", "sources_of"),
}
_MODULES = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "AuditReport",
    "Bundle",
    "BundleError",
    "ChainOutput",
    "DecisionRule",
    "Detection",
    "Detector",
    "DetectorInfo",
    "Engine",
    "EngineError",
    "EngineInfo",
    "EngineOptions",
    "ExtractOptions",
    "Extraction",
    "Features",
    "ImageError",
    "ImageFile",
    "Index",
    "IndexRow",
    "Indexed",
    "Lare2Error",
    "Limits",
    "Manifest",
    "MatchedOptions",
    "OpenEngine",
    "OutputError",
    "Pixels",
    "Preprocessing",
    "Provenance",
    "Scale",
    "Scales",
    "SplitOptions",
    "UsageError",
    "WindowEngine",
    "WindowOutput",
    "__version__",
    "arrange_splits",
    "attention_map",
    "audit_index",
    "build_index",
    "lare_map",
    "open_bundle",
    "open_features",
    "overlay",
    "preprocess",
    "read_index",
    "render_panel",
    "run_scales",
    "sources_of",
    "write_index",
    "write_matched",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
