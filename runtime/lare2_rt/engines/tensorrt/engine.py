"""TensorRT, native: the half-precision graphs as plans for this very GPU, run as one CUDA graph.

No torch and no ONNX Runtime: the plans are built from the bundle's ONNX files into the user's cache and driven through
CUDA's own binding. A plan fits one version of TensorRT and one kind of GPU, so both are in its key, and a plan of
another is never even opened.

This engine has not run on a GPU yet; ``docs/gpu.md`` says what of it is proven, and the command that proves the rest.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar

from ...bundle.manifest import Variant
from ...bundle.opening import Bundle
from ...errors import EngineError, first_line
from ...host.integrity import cache_folder
from ..base import Variants
from ..cache.build import CompiledChain, compile_chain, made_elsewhere, run_script
from ..contract import EngineInfo, EngineOptions, Foreign, OpenEngine
from ..cuda_runtime import import_runtime
from ..gpu import GpuEngine, numbers
from .chain import TensorRtChain
from .plan import PlanOptions, plan_options_of

PLAN = "engine.plan"


class TensorRtEngine(GpuEngine):
    """Engine ``tensorrt``.

    Args:
        plan_options: how plans are made; default: as the last build chose for the bundle (``plan.py``).
    """

    name = "tensorrt"
    module: ClassVar[str] = "tensorrt"  # of the Python binding
    oldest: ClassVar[tuple[int, ...]] = (10, 16)  # before it, strongly typed networks and set_device_memory were other
    precisions = ("fp16",)

    def __init__(self, *, plan_options: PlanOptions | None = None) -> None:
        self.plan_options = plan_options

    def packages_lack(self) -> EngineError | None:
        """See ``GpuEngine.packages_lack``."""
        lacks, version = super().packages_lack(), self.version or ""
        if lacks is None and numbers(version) < self.oldest:
            oldest = ".".join(map(str, self.oldest))
            return EngineError(f"{self.name} {version} is too old, {oldest} is needed", remedy=self.entry.install)
        return lacks

    def why_not(self, bundle: Bundle, options: EngineOptions) -> EngineError | None:
        """See ``Engine.why_not``."""
        return super().why_not(bundle, options) or self._plans(bundle, options)

    def open(self, bundle: Bundle, options: EngineOptions) -> OpenEngine:
        """Build the plans that the cache lacks, load them, and capture the chain; raises EngineError."""
        trt, binding = self._import(), import_runtime()
        chain, info, variants = self.compile(bundle, options)
        try:
            plans = {name: (chain.entries[name].folder / PLAN).read_bytes() for name in variants}
        except OSError as error:
            raise EngineError(
                f"a plan cannot be read ({first_line(error)})", remedy="run 'lare2-rt cache clear'"
            ) from error
        finally:
            chain.close()  # a plan is copied to the GPU; its file is not needed any more
        return TensorRtChain(
            trt,
            binding,
            plans=plans,
            variants=variants,
            noise=bundle.noise,
            info=replace(info, compiled=chain.digest),
            cuda_graph=options.cuda_graph,
        )

    def compile(self, bundle: Bundle, options: EngineOptions) -> tuple[CompiledChain, EngineInfo, Variants]:
        """Return every plan, built where the cache lacks it; the caller closes the chain. Raises EngineError."""
        info, variants = self.describe(bundle, options), self.variants(bundle, options)
        timings = (options.cache or cache_folder()) / "timings" / f"{self.name}-{info.version}.cache"

        def build(variant: Variant, folder: Path) -> None:
            self._build(bundle, variant, folder / PLAN, timings, options)

        facts = self._plan_facts(bundle, options)
        return compile_chain(bundle, variants, options, info=info, facts=facts, build=build), info, variants

    def _plans(self, bundle: Bundle, options: EngineOptions) -> EngineError | None:
        """Report unusable plans instead of rebuilding them: the environment is more likely wrong."""
        if options.build_anew:
            return None
        info, facts = self.describe(bundle, options), self._plan_facts(bundle, options)
        variants = self.variants(bundle, options)
        found = made_elsewhere(bundle, variants, options, info=info, facts=facts)
        if found is None:
            return None
        return EngineError(
            f"the plans of this bundle were built by {self.name} {found['version']} for {found['facts'].get('gpu')}, "
            f"and here are {info.version} and {facts(variants['egre'])['gpu']}",
            remedy=f"go back to that, or build new ones with 'lare2-rt bench --engine {self.name}'",
        )

    def _options(self, bundle: Bundle, options: EngineOptions) -> PlanOptions:
        return self.plan_options or plan_options_of(self.name, bundle, options.cache)

    def _build(self, bundle: Bundle, variant: Variant, target: Path, timings: Path, options: EngineOptions) -> None:
        """Build one plan in a process of its own, telling its progress; raises EngineError or OSError."""
        settings = json.dumps(asdict(self._options(bundle, options)))
        run_script(
            f"{__package__}.plan",
            [self.module, bundle.graph_path(variant), target, timings, settings],
            doing=f"build {variant.graph} with {self.name}",
            remedy="free memory and try again, or choose another --engine",
            notify=options.say,
        )

    def _plan_facts(self, bundle: Bundle, options: EngineOptions) -> Callable[[Variant], dict[str, str | int]]:
        """Return what decides a plan beside the ONNX files, the engine, its version and the precision."""
        facts = self.facts(bundle, options)

        def of(variant: Variant) -> dict[str, str | int]:
            shapes = {spec.name: spec.shape for spec in (*variant.inputs, *variant.outputs)}
            return {**facts, "shapes": json.dumps(shapes, sort_keys=True)}

        return of

    def settings(self, bundle: Bundle, options: EngineOptions) -> dict[str, str | int]:
        """See ``GpuEngine.settings``."""
        return {"options": json.dumps(asdict(self._options(bundle, options)), sort_keys=True)}

    def _import(self) -> Foreign:
        try:
            return importlib.import_module(self.module)
        except Exception as error:  # its libraries are separate packages, which may be missing or of another CUDA
            raise EngineError(
                f"{self.name} is installed but cannot be imported ({first_line(error)})",
                remedy=f"{self.entry.install} --force-reinstall (docs/gpu.md)",
            ) from error


class TensorRtRtxEngine(TensorRtEngine):
    """Engine ``tensorrt-rtx``, a library with the same API."""

    name = "tensorrt-rtx"
    module = "tensorrt_rtx"
    oldest = ()
