"""Stages: convolutions on MNN, attention on ONNX Runtime, both from the portable float32 graphs of batch 1.

MNN's convolutions need fewer multiplications (Winograd) than a direct convolution; ONNX Runtime's matrix products and
softmax are faster than MNN's. So the UNet is cut where the one ends and the other begins, some thirty times, and what
crosses is a few megabytes. Where each kind of stage runs was measured (docs/cpu.md).

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
from .contract import EngineInfo, EngineOptions, OpenEngine, build_key, choose_variants, installed_version
from .mnn_library import NEWEST_OPSET, import_mnn, open_runtime, threads_for
from .onnxruntime import OnnxRuntimeEngine, component_of, import_onnxruntime, open_session
from .stages import Placement, make_stages, open_stages

# In SD 1.5 all but the stages at an eighth of the latent's resolution and below have fewer bytes of weights than this.
_LARGE_TILES_BELOW = 120_000_000
PLACEMENTS: Mapping[str, Placement] = {
    "vae_encoder": Placement("mnn", "onnxruntime", _LARGE_TILES_BELOW),
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

    def why_not(self, bundle: Bundle, options: EngineOptions) -> str | None:
        """Return why the two libraries cannot be used, with the remedy."""
        missing = [name for name in ("mnn", "onnx") if installed_version(name) is None]
        if missing:
            return f"{missing[0]} is not installed: pip install 'lare2-rt[staged]'"
        if options.precision not in (None, "fp32"):
            return f"staged computes in fp32 here, not in {options.precision}; leave --precision out"
        reason = OnnxRuntimeEngine().why_not(bundle, options)
        if reason is not None:
            return reason
        newest = max(variant.opset for variant in _variants(bundle, options).values())
        if newest > NEWEST_OPSET:
            return f"mnn reads ONNX up to opset {NEWEST_OPSET} and the bundle has {newest}; choose another --engine"
        return None

    def describe(self, bundle: Bundle, options: EngineOptions) -> EngineInfo:
        """See ``Engine.describe``."""
        variants = _variants(bundle, options)
        facts: dict[str, str | int] = {
            "engine": self.name,
            "version": _version(),
            "device": "cpu",
            "precision": "fp32",
            "threads": options.threads,
            **{f"placement {name}": _words(placement) for name, placement in self.placements.items()},
        }
        key = build_key(bundle, variants, facts)
        return EngineInfo(self.name, _version(), "cpu", "fp32", variants["egre"].batch, options.threads, key)

    def open(self, bundle: Bundle, options: EngineOptions) -> OpenEngine:
        """Make the stages that the cache lacks and load them; raises EngineError when a library refuses one."""
        import_mnn()
        import_onnxruntime()
        info, variants = self.describe(bundle, options), _variants(bundle, options)
        threads = threads_for(options)
        by_graph = {variants[name].graph: placement for name, placement in self.placements.items()}
        chain = compile_chain(
            bundle,
            {name: variants[name] for name in self.placements},
            options,
            info=info,
            facts={"placement": json.dumps({graph: _words(p) for graph, p in sorted(by_graph.items())})},
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


def _words(placement: Placement) -> str:
    return json.dumps(asdict(placement), sort_keys=True)


def _version() -> str:
    runtime = installed_version("onnxruntime") or installed_version("onnxruntime-gpu")
    return f"{installed_version('mnn')}+{runtime}"


def _variants(bundle: Bundle, options: EngineOptions) -> dict[str, Variant]:
    return choose_variants(bundle, options, profile="portable", default_precision="fp32", default_batch=1)
