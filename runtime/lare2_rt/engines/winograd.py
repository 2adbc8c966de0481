"""ONNX Runtime with Winograd's convolutions: the portable float32 graphs with fewer multiplications.

Direct convolutions already run at the peak of the machine; fewer multiplications are what is left. 3×3 convolutions
become matrix products over tiles, and between them pictures stay in the layout of those (``winograd_rewrite.py``),
where that is faster and as far as the memory for transformed weights goes (``winograd_choose.py``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..bundle import Bundle
from ..compiled_entry import Entry
from ..errors import EngineError, first_line
from ..manifest import Variant
from .chain import Component, ComponentChain
from .compiling import compile_chain, onnx_files, run_script
from .contract import (
    EngineInfo,
    EngineOptions,
    OpenEngine,
    describe_on_cpu,
    fp32_only,
    installed_version,
    portable_variants,
)
from .onnxruntime import PROVIDER, OnnxRuntimeEngine, component_of, import_onnxruntime, open_session, session_settings
from .stages import share_memory

MODEL = "model.onnx"
# Of what our own code writes for the same graph, settings and versions. Raise it with every change of that: what is in
# users' caches is rewritten then.
REVISION = 2
_WEIGHTS_OUTSIDE = "session.use_device_allocator_for_initializers"
_REWRITTEN = ("vae_encoder", "unet_step", "clip_backbone")


@dataclass(frozen=True, slots=True)
class WinogradEngine:
    """Engine ``winograd``.

    Attributes:
        tiles: sizes of tiles that may be chosen; none leaves every convolution as it is.
        budget: bytes that the transformed weights of a component may take more than the stored ones. SD 1.5's would
            take 5 GB more with F(4×4) everywhere; what is slow without it fits into 2.
        channels: layers with fewer are left alone: there the transforms cost as much as a direct convolution.
    """

    tiles: tuple[int, ...] = (2, 4)
    budget: int = 2_000_000_000
    channels: int = 64

    name = "winograd"
    position_stable = False
    compiled = True

    @property
    def version(self) -> str | None:
        """See ``Engine.version``; onnx rewrites the graphs and computes nothing."""
        return OnnxRuntimeEngine().version if installed_version("onnx") else None

    def why_not(self, bundle: Bundle, options: EngineOptions) -> str | None:
        """Return why ONNX Runtime or the rewriting cannot be used, with the remedy."""
        if installed_version("onnx") is None:
            return "onnx is not installed: pip install 'lare2-rt[winograd]'"
        return fp32_only(self.name, options) or OnnxRuntimeEngine().why_not(bundle, options)

    def describe(self, bundle: Bundle, options: EngineOptions) -> EngineInfo:
        """See ``Engine.describe``."""
        return describe_on_cpu(self.name, self.version, bundle, options, {"precision": "fp32", **self._facts()})

    def open(self, bundle: Bundle, options: EngineOptions) -> OpenEngine:
        """Rewrite what the cache lacks and load it; raises EngineError when ONNX Runtime refuses a graph."""
        import_onnxruntime()
        info, variants = self.describe(bundle, options), portable_variants(bundle, options)
        settings = asdict(self)
        chain = compile_chain(
            bundle,
            {name: variants[name] for name in _REWRITTEN},
            options,
            info=info,
            facts=self._facts(),
            build=lambda variant, folder: make_graph(bundle, variant, folder, settings),
        )
        try:
            components: dict[str, Component] = {
                name: _load(variants[name], chain.entries[name], options.threads) for name in _REWRITTEN
            }
            for name, variant in variants.items():
                if name not in components:
                    components[name] = component_of(variant, open_session(bundle, variant, options.threads))
        except BaseException:
            chain.close()
            raise
        opened = replace(info, compiled=chain.digest)
        return ComponentChain(opened, components, noise=bundle.noise, close=chain.close)

    def _facts(self) -> dict[str, str | int]:
        """What decides the rewritten graphs beside the graphs and the versions."""
        return {"settings": json.dumps(asdict(self)), "revision": REVISION}


def make_graph(bundle: Bundle, variant: Variant, folder: Path, settings: Mapping[str, object]) -> None:
    """Write the rewritten graph into ``folder``; raises EngineError or, where the disk is full, OSError."""
    with onnx_files(bundle, variant, folder):
        run_script(
            "winograd_build.py",
            [variant.graph, MODEL, json.dumps(settings)],
            cwd=folder,
            doing=f"rewrite {variant.graph} for winograd",
            remedy="update onnx and onnxruntime, or choose another --engine",
        )


def _load(variant: Variant, entry: Entry, threads: int) -> Component:
    """Return a component; raises EngineError, and forgets an entry that cannot be loaded."""
    import onnxruntime

    try:
        settings = session_settings(threads)
        share_memory(settings)
        # A plan for all of a run's memory at once is one more block of that size beside what the first run has left.
        settings.enable_mem_pattern = False
        # Not from the arena, which would keep what was needed while weights were packed.
        settings.add_session_config_entry(_WEIGHTS_OUTSIDE, "1")
        session = onnxruntime.InferenceSession(str(entry.folder / MODEL), settings, providers=[PROVIDER])
        return component_of(variant, session)
    except Exception as error:
        entry.discard()
        raise EngineError(
            f"winograd cannot load what it made of {variant.graph} ({first_line(error)}); it was removed from the "
            "cache: try again, else choose another --engine"
        ) from error
