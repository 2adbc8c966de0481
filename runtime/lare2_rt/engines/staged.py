"""Stages: convolutions on MNN, attention on ONNX Runtime, both from the portable float32 graphs of batch 1.

MNN's convolutions need fewer multiplications (Winograd) than a direct convolution; ONNX Runtime's matrix products and
softmax are faster than MNN's. So the UNet is cut where the one ends and the other begins, some thirty times, and what
crosses is a few megabytes.

Rows of a batch come out of MNN with other bits by position, so it runs at batch 1 only; what else is peculiar about
that library stands in ``mnn_library.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..bundle import Bundle
from ..compiled_entry import Entry
from ..errors import EngineError
from ..manifest import Variant
from .chain import Component, ComponentChain
from .compiling import compile_chain
from .contract import (
    EngineInfo,
    EngineOptions,
    OpenEngine,
    describe_on_cpu,
    fp32_only,
    installed_version,
    portable_variants,
)
from .mnn_library import import_mnn, open_runtime, threads_for, too_new
from .onnxruntime import OnnxRuntimeEngine, component_of, import_onnxruntime, open_session
from .stages import REVISION, Placement, make_stages, open_stages

# In SD 1.5 the UNet's middle, at an eighth of the latent's resolution, and the stages before and after it have more.
_LARGE_TILES_BELOW = 120_000_000
PLACEMENTS: Mapping[str, Placement] = {
    # At its resolutions MNN's largest tiles are F(6×6), which put the latent 5e-4 off; 3e-4 is what it may be.
    "vae_encoder": Placement("mnn", "onnxruntime"),
    "unet_step": Placement("mnn", "onnxruntime", _LARGE_TILES_BELOW),
}


@dataclass(frozen=True, slots=True)
class StagedEngine:
    """Engine ``staged``.

    Attributes:
        placements: where the stages of a component run; a component without one runs on ONNX Runtime as it is.
    """

    placements: Mapping[str, Placement] = field(default_factory=lambda: PLACEMENTS)

    name = "staged"
    position_stable = False
    compiled = True

    @property
    def version(self) -> str | None:
        """See ``Engine.version``; onnx cuts the graphs and computes nothing."""
        mnn, cutter, runtime = installed_version("mnn"), installed_version("onnx"), OnnxRuntimeEngine().version
        return None if None in (mnn, cutter, runtime) else f"{mnn}+{runtime}"

    def why_not(self, bundle: Bundle, options: EngineOptions) -> str | None:
        """Return why the two libraries cannot be used, with the remedy."""
        for name in ("mnn", "onnx"):
            if installed_version(name) is None:
                return f"{name} is not installed: pip install 'lare2-rt[staged]'"
        reason = fp32_only(self.name, options) or OnnxRuntimeEngine().why_not(bundle, options)
        return reason or too_new(portable_variants(bundle, options))

    def describe(self, bundle: Bundle, options: EngineOptions) -> EngineInfo:
        """See ``Engine.describe``."""
        return describe_on_cpu(self.name, self.version, bundle, options, {"precision": "fp32", **self._facts()})

    def open(self, bundle: Bundle, options: EngineOptions) -> OpenEngine:
        """Make the stages that the cache lacks and load them; raises EngineError when a library refuses one."""
        import_mnn()
        import_onnxruntime()
        info, variants = self.describe(bundle, options), portable_variants(bundle, options)
        threads = threads_for(options)
        by_graph = {variants[name].graph: placement for name, placement in self.placements.items()}
        chain = compile_chain(
            bundle,
            {name: variants[name] for name in self.placements},
            options,
            info=info,
            facts=self._facts(),
            build=lambda variant, folder: make_stages(bundle, variant, folder, by_graph[variant.graph]),
        )
        try:
            runtime = open_runtime(threads)
            components: dict[str, Component] = {
                name: self._load(bundle, name, variants[name], chain.entries[name], runtime=runtime, threads=threads)
                for name in self.placements
            }
            for name, variant in variants.items():
                if name not in components:
                    components[name] = component_of(variant, open_session(bundle, variant, threads))
        except BaseException:
            chain.close()
            raise
        opened = EngineInfo(
            info.name, info.version, info.device, info.precision, 1, threads, info.build_key, chain.digest
        )
        return ComponentChain(opened, components, noise=bundle.noise, close=chain.close)

    def _facts(self) -> dict[str, str | int]:
        """What decides the stages beside the graphs and the versions."""
        placements = {name: asdict(placement) for name, placement in self.placements.items()}
        return {"placements": json.dumps(placements, sort_keys=True), "revision": REVISION}

    def _load(
        self,
        bundle: Bundle,
        name: str,
        variant: Variant,
        entry: Entry,
        *,
        runtime: Any,  # noqa: ANN401 - the binding has no types
        threads: int,
    ) -> Component:
        """Return a component; raises EngineError, and forgets an entry that cannot be loaded."""
        try:
            return open_stages(bundle, variant, entry.folder, self.placements[name], runtime=runtime, threads=threads)
        except Exception as error:
            entry.discard()
            raise EngineError(
                f"staged cannot load the stages of {variant.graph}; they were removed from the cache: try again, else "
                "choose another --engine"
            ) from error
