"""LaRE² at run time: score images with a bundle, without torch.

Everything is imported on first use, so that ``import lare2_rt`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .bundle.manifest import Manifest as Manifest
    from .bundle.opening import Bundle as Bundle, open_bundle as open_bundle
    from .detection import DecisionRule as DecisionRule, Detection as Detection, Provenance as Provenance
    from .detector import Detector as Detector, DetectorInfo as DetectorInfo
    from .engines.contract import (
        ChainOutput as ChainOutput,
        Engine as Engine,
        EngineInfo as EngineInfo,
        EngineOptions as EngineOptions,
        OpenEngine as OpenEngine,
        WindowEngine as WindowEngine,
        WindowOutput as WindowOutput,
    )
    from .errors import (
        BundleError as BundleError,
        EngineError as EngineError,
        ImageError as ImageError,
        Lare2Error as Lare2Error,
        OutputError as OutputError,
        UsageError as UsageError,
    )
    from .pixels.limits import Limits as Limits
    from .pixels.policy import Preprocessing as Preprocessing
    from .pixels.preprocess import Pixels as Pixels, preprocess as preprocess
    from .tools.datasets.audit import AuditReport as AuditReport, audit_index as audit_index
    from .tools.datasets.build import Indexed as Indexed, build_index as build_index
    from .tools.datasets.matched import MatchedOptions as MatchedOptions, write_matched as write_matched
    from .tools.datasets.split import SplitOptions as SplitOptions, arrange_splits as arrange_splits
    from .tools.datasets.table import (
        Index as Index,
        IndexRow as IndexRow,
        read_index as read_index,
        write_index as write_index,
    )
    from .tools.evidence.maps import (
        Scale as Scale,
        Scales as Scales,
        attention_map as attention_map,
        lare_map as lare_map,
        overlay as overlay,
        run_scales as run_scales,
    )
    from .tools.evidence.panel import render_panel as render_panel
    from .tools.features.extract import Extraction as Extraction, ExtractOptions as ExtractOptions
    from .tools.features.reader import Features as Features, open_features as open_features
    from .tools.features.sources import ImageFile as ImageFile, sources_of as sources_of

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
    "tools.evidence.maps": ("Scale", "Scales", "attention_map", "lare_map", "overlay", "run_scales"),
    "tools.evidence.panel": ("render_panel",),
    "tools.features.extract": ("ExtractOptions", "Extraction"),
    "tools.features.reader": ("Features", "open_features"),
    "tools.features.sources": ("ImageFile", "sources_of"),
}
_MODULES = {name: module for module, names in _WHERE.items() for name in names}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
