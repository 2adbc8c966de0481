"""TensorRT, native: the half-precision graphs as plans for this very GPU, run as one CUDA graph.

No torch and no ONNX Runtime: the plans are built from the bundle's ONNX files into the user's cache and driven through
CUDA's own binding. A plan fits one version of TensorRT and one kind of GPU, so both are in its key, and a plan of
another is never even opened.

This engine has not run on a GPU yet; ``docs/gpu.md`` says what of it is proven, and the command that proves the rest.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..bundle import Bundle
from ..errors import BundleError, EngineError, first_line
from ..integrity import cache_folder
from ..manifest import Variant
from .compiling import CompiledChain, compile_chain, made_elsewhere
from .contract import EngineInfo, EngineOptions, OpenEngine, build_key, choose_variants, installed_version
from .cuda_runtime import Gpu, current_gpu, import_runtime
from .tensorrt_build import NOT_WRITTEN
from .tensorrt_chain import TensorRtChain
from .tensorrt_choice import plan_options_of
from .tensorrt_plan import PlanOptions

PLAN = "engine.plan"
_OLDEST = (10, 16)  # before it, strongly typed networks and set_device_memory were other


@dataclass(frozen=True, slots=True)
class Flavour:
    """A library with TensorRT's API.

    Attributes:
        engine: the name users give; module: of the Python binding; packages: distributions that hold it.
        extra: of ours, which installs it.
    """

    engine: str
    module: str
    packages: tuple[str, ...]
    extra: str


TENSORRT = Flavour("tensorrt", "tensorrt", ("tensorrt-cu13", "tensorrt-cu12", "tensorrt"), "tensorrt")
TENSORRT_RTX = Flavour("tensorrt-rtx", "tensorrt_rtx", ("tensorrt-rtx",), "tensorrt-rtx")


class TensorRtEngine:
    """Engines ``tensorrt`` and ``tensorrt-rtx``.

    ``position_stable`` is not claimed: it has not been measured on a GPU, so they run at batch 1 until it has.

    Args:
        plan_options: how plans are made; default: as the last build chose for the bundle (``tensorrt_choice.py``).
    """

    position_stable = False
    compiled = True

    def __init__(self, flavour: Flavour = TENSORRT, *, plan_options: PlanOptions | None = None) -> None:
        self.flavour = flavour
        self.name = flavour.engine
        self.plan_options = plan_options

    @property
    def version(self) -> str | None:
        """See ``Engine.version``."""
        return next(filter(None, map(installed_version, self.flavour.packages)), None)

    def why_not(self, bundle: Bundle, options: EngineOptions) -> str | None:
        """Return why TensorRT cannot be used, with the remedy."""
        reason = self._library()
        if reason is not None:
            return reason
        if options.precision not in (None, "fp16"):
            return f"{self.name} computes in fp16 here, not in {options.precision}; leave --precision out"
        try:
            _variants(bundle, options)
        except BundleError:
            return f"{bundle.path} has no fp16 graphs for GPUs: build it with 'python export/build_engines.py --half'"
        return self._device() or self._plans(bundle, options)

    def machine_lacks(self) -> str | None:
        """Return what of library, driver and GPU is missing here, with the remedy, whatever the bundle."""
        return self._library() or self._device()

    def describe(self, bundle: Bundle, options: EngineOptions) -> EngineInfo:
        """See ``Engine.describe``; raises EngineError where there is no GPU."""
        gpu, variants = current_gpu(), _variants(bundle, options)
        version = self.version or ""
        facts = {"engine": self.name, "version": version, **self._facts(gpu, self._options(bundle, options))}
        key = build_key(bundle, variants, facts)
        device = f"cuda:0 ({gpu.name})"
        return EngineInfo(self.name, version, device, "fp16", variants["egre"].batch, options.threads, key)

    def open(self, bundle: Bundle, options: EngineOptions) -> OpenEngine:
        """Build the plans that the cache lacks, load them, and capture the chain; raises EngineError."""
        trt, binding = self._import(), import_runtime()
        chain, info, variants = self.compile(bundle, options)
        try:
            plans = {name: (chain.entries[name].folder / PLAN).read_bytes() for name in variants}
        except OSError as error:
            raise EngineError(f"a plan cannot be read ({first_line(error)}); run 'lare2-rt cache clear'") from error
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

    def compile(self, bundle: Bundle, options: EngineOptions) -> tuple[CompiledChain, EngineInfo, dict[Any, Variant]]:
        """Return every plan, built where the cache lacks it; the caller closes the chain. Raises EngineError."""
        info, variants = self.describe(bundle, options), _variants(bundle, options)
        timings = (options.cache or cache_folder()) / "timings" / f"{self.name}-{info.version}.cache"

        def build(variant: Variant, folder: Path) -> None:
            self._build(bundle, variant, folder / PLAN, timings, options)

        facts = self._plan_facts(bundle, options)
        return compile_chain(bundle, variants, options, info=info, facts=facts, build=build), info, variants

    def _library(self) -> str | None:
        version = self.version
        if version is None:
            return f"{self.name} is not installed: pip install 'lare2-rt[{self.flavour.extra}]' (docs/gpu.md)"
        if self.flavour is TENSORRT and _numbers(version) < _OLDEST:
            oldest = ".".join(map(str, _OLDEST))
            return f"TensorRT {version} is too old: install {oldest} or newer, pip install 'lare2-rt[tensorrt]'"
        return None

    def _device(self) -> str | None:
        try:
            current_gpu()
        except EngineError as error:
            return str(error)
        return None

    def _plans(self, bundle: Bundle, options: EngineOptions) -> str | None:
        """Plans of this bundle that are of no use here are told: a wrong environment is not mended by building."""
        if options.build_anew:
            return None
        info, facts = self.describe(bundle, options), self._plan_facts(bundle, options)
        found = made_elsewhere(bundle, _variants(bundle, options), options, info=info, facts=facts)
        if found is None:
            return None
        here = facts(_variants(bundle, options)["egre"])
        return (
            f"the plans of this bundle were built by {self.name} {found['version']} for {found['facts'].get('gpu')}, "
            f"and here are {info.version} and {here['gpu']}: go back to that, or build new ones with "
            f"'lare2-rt bench --engine {self.name}'"
        )

    def _options(self, bundle: Bundle, options: EngineOptions) -> PlanOptions:
        return self.plan_options or plan_options_of(self.name, bundle, options.cache)

    def _build(self, bundle: Bundle, variant: Variant, target: Path, timings: Path, options: EngineOptions) -> None:
        """Build one plan in a process of its own, telling its progress; raises EngineError or OSError."""
        settings = json.dumps(asdict(self._options(bundle, options)))
        arguments = [self.flavour.module, str(bundle.graph_path(variant)), str(target), str(timings), settings]
        command = [sys.executable, "-m", f"{__package__}.tensorrt_build", *arguments]
        last = ""
        # Two pipes read one after the other could block the child; what it complains about goes to a file.
        with (
            tempfile.TemporaryFile("w+", errors="replace") as complaints,
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=complaints,
                stdin=subprocess.DEVNULL,
                text=True,
                errors="replace",
            ) as child,
        ):
            assert child.stdout is not None
            for line in child.stdout:
                last = line.strip()
                if not last.isdigit():
                    options.say(last)
            child.wait()
            complaints.seek(0)
            said = [line.strip() for line in complaints if line.strip()]
        if child.returncode == NOT_WRITTEN:
            raise OSError(int(last), "cannot write the plan")
        if child.returncode:
            why = said[-1][:300] if said else f"the process ended with {child.returncode}; free memory and try again"
            raise EngineError(f"{self.name} cannot build {variant.graph}: {why}")

    def _plan_facts(self, bundle: Bundle, options: EngineOptions) -> Callable[[Variant], dict[str, str | int]]:
        """Return what decides a plan beside the ONNX files, the engine, its version and the precision."""
        facts = self._facts(current_gpu(), self._options(bundle, options))

        def of(variant: Variant) -> dict[str, str | int]:
            shapes = {spec.name: spec.shape for spec in (*variant.inputs, *variant.outputs)}
            return {**facts, "shapes": json.dumps(shapes, sort_keys=True)}

        return of

    @staticmethod
    def _facts(gpu: Gpu, options: PlanOptions) -> dict[str, str | int]:
        return {
            "gpu": gpu.name,
            "capability": gpu.capability,
            "driver": gpu.driver,
            "cuda": gpu.runtime // 1000,
            "options": json.dumps(asdict(options), sort_keys=True),
        }

    def _import(self) -> Any:  # noqa: ANN401 - the binding has no types
        try:
            return importlib.import_module(self.flavour.module)
        except Exception as error:  # its libraries are separate packages, which may be missing or of another CUDA
            raise EngineError(
                f"{self.name} is installed but cannot be imported ({first_line(error)}): "
                f"pip install --force-reinstall 'lare2-rt[{self.flavour.extra}]' (docs/gpu.md)"
            ) from error


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _variants(bundle: Bundle, options: EngineOptions) -> dict[Any, Variant]:
    return dict(choose_variants(bundle, options, profile="native", default_precision="fp16", default_batch=1))
