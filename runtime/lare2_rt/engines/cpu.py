"""What the engines on the CPU share: float32, the portable graphs, batch 1 unless asked for more."""

from __future__ import annotations

import abc
from typing import ClassVar

from ..bundle.manifest import Variant
from ..bundle.opening import Bundle
from ..errors import BundleError, EngineError
from .contract import EngineInfo, EngineOptions, OpenEngine, build_key, choose_variants
from .registry import EngineEntry, entry_of


class CpuEngine(abc.ABC):
    """Implements ``Engine`` but for ``open``; a subclass gives the name of its registry entry."""

    name: ClassVar[str]
    position_stable: ClassVar[bool]
    compiled: ClassVar[bool]

    @property
    def entry(self) -> EngineEntry:
        """Its line in the registry."""
        return entry_of(self.name)

    @property
    def version(self) -> str | None:
        """See ``Engine.version``."""
        return self.entry.version

    def machine_lacks(self) -> EngineError | None:
        """See ``Engine.machine_lacks``: packages are all that a CPU engine can miss."""
        return self.entry.missing()

    def why_not(self, bundle: Bundle, options: EngineOptions) -> EngineError | None:
        """See ``Engine.why_not``."""
        lacks = self.machine_lacks()
        if lacks is not None:
            return lacks
        if options.precision not in (None, "fp32"):
            return EngineError(
                f"{self.name} computes in fp32, not in {options.precision}", remedy="leave --precision out"
            )
        try:
            portable_variants(bundle, options)
        except BundleError as error:
            return EngineError(error.problem, remedy=error.remedy)
        return None

    def facts(self) -> dict[str, str | int]:
        """Return what decides the results beside graphs, version, device and threads; part of the build key."""
        return {"precision": "fp32"}

    def describe(self, bundle: Bundle, options: EngineOptions) -> EngineInfo:
        """See ``Engine.describe``."""
        variants, version = portable_variants(bundle, options), self.version or ""
        facts = {"engine": self.name, "version": version, "device": "cpu", "threads": options.threads, **self.facts()}
        key = build_key(bundle, variants, facts)
        return EngineInfo(self.name, version, "cpu", "fp32", variants["egre"].batch, options.threads, key)

    @abc.abstractmethod
    def open(self, bundle: Bundle, options: EngineOptions) -> OpenEngine:
        """See ``Engine.open``."""


def portable_variants(bundle: Bundle, options: EngineOptions) -> dict[str, Variant]:
    """Return what engines on a CPU run; raises BundleError when the bundle lacks it.

    Batch 1 is the default: on a CPU the cost grows with the images, so a larger graph would only pad.
    """
    return choose_variants(bundle, options, profile="portable", default_precision="fp32", default_batch=1)
