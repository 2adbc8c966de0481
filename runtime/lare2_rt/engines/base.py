"""What the engines of the registry share: their packages, what they refuse, and what names that which they open."""

from __future__ import annotations

import abc
from typing import ClassVar

from ..bundle.manifest import COMPONENTS, ComponentName, Precision, Profile, Variant
from ..bundle.opening import Bundle
from ..errors import BundleError, EngineError
from .contract import EngineInfo, EngineOptions, OpenEngine, build_key
from .registry import EngineEntry, entry_of

Variants = dict[ComponentName, Variant]


class RegisteredEngine(abc.ABC):
    """Implements what of ``Engine`` a registry entry and a choice of graphs decide.

    Attributes:
        name: that of the entry; precisions: that it computes in, its default first.
    """

    name: ClassVar[str]
    precisions: ClassVar[tuple[Precision, ...]]
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

    def packages_lack(self) -> EngineError | None:
        """Return which package is missing, too old, or in the way of another; None if none is."""
        return self.entry.missing()

    def device_lacks(self) -> EngineError | None:
        """Return what is wrong with driver or device; None if nothing is."""
        return None

    def machine_lacks(self) -> EngineError | None:
        """See ``Engine.machine_lacks``."""
        return self.packages_lack() or self.device_lacks()

    def why_not(self, bundle: Bundle, options: EngineOptions) -> EngineError | None:
        """See ``Engine.why_not``."""
        return self.packages_lack() or self.graphs_lack(bundle, options) or self.device_lacks()

    def graphs_lack(self, bundle: Bundle, options: EngineOptions) -> EngineError | None:
        """Return why there are no graphs for the options; None if there are."""
        if options.precision not in (None, *self.precisions):
            return EngineError(
                f"{self.name} computes in {' or '.join(self.precisions)}, not in {options.precision}",
                remedy="leave --precision out",
            )
        try:
            self.variants(bundle, options)
        except BundleError as error:
            return EngineError(error.problem, remedy=error.remedy)
        return None

    def variants(self, bundle: Bundle, options: EngineOptions) -> Variants:
        """Return the graphs that it runs; raises BundleError when the bundle lacks one.

        Batch 1 is the default: on a CPU the cost grows with the images, so a larger graph would only pad.
        """
        precision = options.precision or self.precisions[0]
        profile: Profile = "native" if precision == "fp16" and self.entry.device == "cuda" else "portable"
        batch = options.batch or (1 if 1 in bundle.batches else bundle.batches[0])
        return {name: bundle.variant(name, batch=batch, precision=precision, profile=profile) for name in COMPONENTS}

    @abc.abstractmethod
    def describe(self, bundle: Bundle, options: EngineOptions) -> EngineInfo:
        """See ``Engine.describe``."""

    @abc.abstractmethod
    def open(self, bundle: Bundle, options: EngineOptions) -> OpenEngine:
        """See ``Engine.open``."""


class CpuEngine(RegisteredEngine):
    """An engine on the CPU: float32, the portable graphs."""

    precisions = ("fp32",)

    def facts(self) -> dict[str, str | int]:
        """Return what decides the results beside graphs, version, device and threads; part of the build key."""
        return {"precision": "fp32"}

    def describe(self, bundle: Bundle, options: EngineOptions) -> EngineInfo:
        """See ``Engine.describe``."""
        variants, version = self.variants(bundle, options), self.version or ""
        facts = {"engine": self.name, "version": version, "device": "cpu", "threads": options.threads, **self.facts()}
        key = build_key(bundle, variants, facts)
        return EngineInfo(self.name, version, "cpu", "fp32", variants["egre"].batch, options.threads, key)
