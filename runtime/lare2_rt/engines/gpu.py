"""What the engines on an NVIDIA GPU share: packages and device are checked, the half-precision graphs at batch 1.

None of them has run on a GPU yet; ``docs/gpu.md`` says what of each is proven, and the command that proves the rest.
"""

from __future__ import annotations

import abc
from typing import ClassVar

from ..bundle.opening import Bundle
from ..errors import EngineError
from .base import RegisteredEngine
from .contract import EngineInfo, EngineOptions, build_key
from .cuda_runtime import current_gpu


class GpuEngine(RegisteredEngine):
    """An engine on a GPU.

    ``position_stable`` is not claimed: it has not been measured on a GPU, so they run at batch 1 until it has.
    """

    position_stable: ClassVar[bool] = False
    compiled: ClassVar[bool] = True

    def device_lacks(self) -> EngineError | None:
        """See ``RegisteredEngine.device_lacks``."""
        try:
            current_gpu()
        except EngineError as error:
            return error
        return None

    def graphs_lack(self, bundle: Bundle, options: EngineOptions) -> EngineError | None:
        """See ``RegisteredEngine.graphs_lack``."""
        lacks = super().graphs_lack(bundle, options)
        if lacks is None or options.precision not in (None, "fp16"):
            return lacks
        remedy = "build it with 'python export/build_engines.py --half'"
        return EngineError(f"{bundle.path} has no fp16 graphs for GPUs", remedy=remedy)

    @abc.abstractmethod
    def settings(self, bundle: Bundle, options: EngineOptions) -> dict[str, str | int]:
        """Return what decides the results beside graphs, version and GPU."""

    def facts(self, bundle: Bundle, options: EngineOptions) -> dict[str, str | int]:
        """Return what decides the compiled files beside the graphs and the version; part of both keys."""
        gpu = current_gpu()
        return {
            "gpu": gpu.name,
            "capability": gpu.capability,
            "driver": gpu.driver,
            "cuda": gpu.runtime // 1000,
            **self.settings(bundle, options),
        }

    def describe(self, bundle: Bundle, options: EngineOptions) -> EngineInfo:
        """See ``Engine.describe``; raises EngineError where there is no GPU."""
        variants, version, facts = self.variants(bundle, options), self.version or "", self.facts(bundle, options)
        precision, batch = variants["egre"].precision, variants["egre"].batch
        key = build_key(bundle, variants, {"engine": self.name, "version": version, **facts})
        device = f"cuda:0 ({facts['gpu']})"
        return EngineInfo(self.name, version, device, precision, batch, options.threads, key)


def numbers(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version: (10, 16) of 10.16.1.11."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
