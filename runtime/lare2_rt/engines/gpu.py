"""What the engines on an NVIDIA GPU share: packages and device are checked, the half-precision graphs at batch 1.

None of them has run on a GPU yet; ``docs/gpu.md`` says what of each is proven, and the command that proves the rest.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from ..bundle.manifest import Precision, Profile, Variant
from ..bundle.opening import Bundle
from ..errors import BundleError, EngineError
from .contract import EngineInfo, EngineOptions, OpenEngine, build_key, choose_variants
from .cuda_runtime import Gpu, current_gpu
from .registry import EngineEntry, entry_of


class GpuEngine(abc.ABC):
    """Implements ``Engine`` but for ``open`` and ``settings``; a subclass gives the name of its registry entry.

    ``position_stable`` is not claimed: it has not been measured on a GPU, so they run at batch 1 until it has.
    """

    name: ClassVar[str]
    precisions: ClassVar[tuple[Precision, ...]]  # that it computes in
    position_stable: ClassVar[bool] = False
    compiled: ClassVar[bool] = True

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
        """Return what is wrong with driver or GPU; None if nothing is."""
        try:
            current_gpu()
        except EngineError as error:
            return error
        return None

    def machine_lacks(self) -> EngineError | None:
        """See ``Engine.machine_lacks``."""
        return self.packages_lack() or self.device_lacks()

    def why_not(self, bundle: Bundle, options: EngineOptions) -> EngineError | None:
        """See ``Engine.why_not``."""
        return self.packages_lack() or self._graphs_lack(bundle, options) or self.device_lacks()

    def _graphs_lack(self, bundle: Bundle, options: EngineOptions) -> EngineError | None:
        if options.precision not in (None, *self.precisions):
            return EngineError(
                f"{self.name} computes in {' or '.join(self.precisions)}, not in {options.precision}",
                remedy="leave --precision out",
            )
        try:
            gpu_variants(bundle, options)
        except BundleError as error:
            if options.precision == "fp32":
                return EngineError(error.problem, remedy=error.remedy)
            return EngineError(
                f"{bundle.path} has no fp16 graphs for GPUs",
                remedy="build it with 'python export/build_engines.py --half'",
            )
        return None

    @abc.abstractmethod
    def settings(self, bundle: Bundle, options: EngineOptions) -> dict[str, str | int]:
        """Return what decides the results beside graphs, versions, precision and GPU."""

    def facts(self, gpu: Gpu, bundle: Bundle, options: EngineOptions) -> dict[str, str | int]:
        """Return what decides the compiled files beside the graphs, the library and the precision; in both keys."""
        return {
            "gpu": gpu.name,
            "capability": gpu.capability,
            "driver": gpu.driver,
            "cuda": gpu.runtime // 1000,
            **self.settings(bundle, options),
        }

    def describe(self, bundle: Bundle, options: EngineOptions) -> EngineInfo:
        """See ``Engine.describe``; raises EngineError where there is no GPU."""
        gpu, variants, version = current_gpu(), gpu_variants(bundle, options), self.version or ""
        precision, batch = variants["egre"].precision, variants["egre"].batch
        facts = {"engine": self.name, "version": version, "precision": precision, **self.facts(gpu, bundle, options)}
        key = build_key(bundle, variants, facts)
        return EngineInfo(self.name, version, f"cuda:0 ({gpu.name})", precision, batch, options.threads, key)

    @abc.abstractmethod
    def open(self, bundle: Bundle, options: EngineOptions) -> OpenEngine:
        """See ``Engine.open``."""


def gpu_variants(bundle: Bundle, options: EngineOptions) -> dict[Any, Variant]:
    """Return the half-precision graphs for GPUs, or the portable ones where float32 is asked for."""
    profile: Profile = "portable" if options.precision == "fp32" else "native"
    return dict(choose_variants(bundle, options, profile=profile, default_precision="fp16", default_batch=1))


def numbers(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version: (10, 16) of 10.16.1.11."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
