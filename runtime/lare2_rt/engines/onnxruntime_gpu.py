"""ONNX Runtime on an NVIDIA GPU: its CUDA provider, and its TensorRT provider on TensorRT 10.

Both take device buffers through IO binding and replay CUDA graphs; see ``onnxruntime_bound.py``. A name stands for one
device: a session that ONNX Runtime would quietly put on the CPU is refused.

Neither has run on a GPU yet; ``docs/gpu.md`` says what of it is proven, and the command that proves the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..bundle import Bundle
from ..errors import BundleError, EngineError, first_line
from ..integrity import cache_folder
from ..manifest import Profile, Variant
from .compiling import compile_chain
from .contract import EngineInfo, EngineOptions, OpenEngine, build_key, choose_variants, installed_version
from .cuda_runtime import Gpu, current_gpu
from .onnxruntime import check_signature, session_settings
from .onnxruntime_bound import BoundChain
from .onnxruntime_build import REVISION as BUILD_REVISION
from .onnxruntime_norms import REVISION as NORMS_REVISION
from .onnxruntime_opening import (
    WEIGHTS_FOLDER,
    build_tensorrt,
    import_onnxruntime_gpu,
    open_on,
    rewrite_norms,
)

_OLDEST = (1, 31)  # the first for CUDA 13
_DRIVER = 13000  # what drivers that know CUDA 13 answer: branch 580 and newer
# Options of a provider that change no result: where its files lie, and whether kernels are launched or replayed.
_UNDECISIVE = ("enable_cuda_graph", "trt_cuda_graph_enable", "trt_engine_cache_path", "trt_timing_cache_path")
CUDA_PROVIDER, TENSORRT_PROVIDER = "CUDAExecutionProvider", "TensorrtExecutionProvider"


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider as an engine.

    Attributes:
        engine: the name users give; extra: of ours, which installs it; name: ONNX Runtime's own.
        needs: distributions beside onnxruntime-gpu, one of which must be there.
    """

    engine: str
    extra: str
    name: str
    needs: tuple[str, ...]


CUDA = Provider("onnxruntime-cuda", "gpu", CUDA_PROVIDER, ("onnx",))
TENSORRT = Provider("onnxruntime-tensorrt", "gpu-trt", TENSORRT_PROVIDER, ("tensorrt-cu13", "tensorrt"))


class OnnxRuntimeGpuEngine:
    """Engines ``onnxruntime-cuda`` and ``onnxruntime-tensorrt``.

    ``position_stable`` is not claimed: it has not been measured on a GPU, so they run at batch 1 until it has.
    """

    position_stable = False
    compiled = True

    def __init__(self, provider: Provider = CUDA) -> None:
        self.provider = provider
        self.name = provider.engine

    @property
    def version(self) -> str | None:
        """See ``Engine.version``; with TensorRT's own, which decides its engines."""
        version, beside = installed_version("onnxruntime-gpu"), self._beside()
        if version is None or beside is None:
            return None
        return f"{version}+{beside}" if self.provider is TENSORRT else version

    def why_not(self, bundle: Bundle, options: EngineOptions) -> str | None:
        """Return why the provider cannot be used, with the remedy."""
        return self._packages() or self._precision(bundle, options) or self._device()

    def machine_lacks(self) -> str | None:
        """Return what of packages, driver and GPU is missing here, with the remedy, whatever the bundle."""
        return self._packages() or self._device()

    def describe(self, bundle: Bundle, options: EngineOptions) -> EngineInfo:
        """See ``Engine.describe``; raises EngineError where there is no GPU."""
        gpu, variants, version = current_gpu(), _variants(bundle, options), self.version or ""
        precision, batch = variants["egre"].precision, variants["egre"].batch
        facts: dict[str, str | int] = {
            "engine": self.name,
            "version": version,
            "precision": precision,
            **self._facts(gpu, options),
        }
        key = build_key(bundle, variants, facts)
        return EngineInfo(self.name, version, f"cuda:0 ({gpu.name})", precision, batch, options.threads, key)

    def open(self, bundle: Bundle, options: EngineOptions) -> OpenEngine:
        """Prepare the graphs that the cache lacks, open one session a component and capture; raises EngineError."""
        ort = import_onnxruntime_gpu()
        info, variants = self.describe(bundle, options), _variants(bundle, options)
        facts = self._facts(current_gpu(), options)
        chain = compile_chain(bundle, variants, options, info=info, facts=facts, build=self._builder(bundle, options))
        try:
            sessions = {
                name: self._session(ort, bundle, variants[name], chain.entries[name].folder, options)
                for name in variants
            }
            return BoundChain(
                ort,
                sessions,
                variants,
                noise=bundle.noise,
                info=replace(info, compiled=chain.digest),
                device="cuda",
                graph=options.cuda_graph,
                close=chain.close,
            )
        except OSError as error:
            chain.close()
            raise EngineError(f"a graph cannot be read ({first_line(error)}); run 'lare2-rt cache clear'") from error
        except BaseException:
            chain.close()
            raise

    def provider_options(self, folder: Path, options: EngineOptions) -> list[tuple[str, dict[str, str]]]:
        """Return the providers of a session with their options, all of them text, as ONNX Runtime wants them."""
        graph = str(int(options.cuda_graph))
        cuda = {
            "device_id": "0",
            # The default measures convolutions when they first run, and two processes may choose other kernels.
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": "0",
        }
        if self.provider is CUDA:
            return [(CUDA_PROVIDER, {**cuda, "enable_cuda_graph": graph})]
        tensorrt = {
            "device_id": "0",
            "trt_fp16_enable": "1",
            "trt_builder_optimization_level": "3",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(self._timings(options)),
            "trt_cuda_graph_enable": graph,
        }
        # What TensorRT does not take may stay on the GPU, but never go to the CPU.
        return [(TENSORRT_PROVIDER, tensorrt), (CUDA_PROVIDER, cuda)]

    def _facts(self, gpu: Gpu, options: EngineOptions) -> dict[str, str | int]:
        """Return what decides the results beside the graphs, the library and the precision; part of both keys."""
        settings = [
            (name, {key: value for key, value in given.items() if key not in _UNDECISIVE})
            for name, given in self.provider_options(Path(), options)
        ]
        return {
            "gpu": gpu.name,
            "capability": gpu.capability,
            "driver": gpu.driver,
            "cuda": gpu.runtime // 1000,
            "revision": NORMS_REVISION if self.provider is CUDA else BUILD_REVISION,
            "options": json.dumps(settings, sort_keys=True),
        }

    def _beside(self) -> str | None:
        return next(filter(None, map(installed_version, self.provider.needs)), None)

    def _packages(self) -> str | None:
        """The rules of the two environments: see docs/gpu.md."""
        cpu, gpu, beside = installed_version("onnxruntime"), installed_version("onnxruntime-gpu"), self._beside()
        install = f"pip install 'lare2-rt[{self.provider.extra}]'"
        if gpu is None:
            first = "pip uninstall -y onnxruntime, then " if cpu is not None else ""
            return f"onnxruntime-gpu is not installed: {first}{install} (docs/gpu.md)"
        if cpu is not None:
            return (
                "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
                f"pip uninstall -y onnxruntime onnxruntime-gpu, then {install}"
            )
        if _numbers(gpu) < _OLDEST:
            return f"onnxruntime-gpu {gpu} is too old: pip install --upgrade 'lare2-rt[{self.provider.extra}]'"
        if beside is None:
            return f"{self.provider.needs[0]} is not installed, which {self.name} needs: {install}"
        if self.provider is TENSORRT and _numbers(beside)[:1] != (10,):
            return (
                f"onnxruntime-gpu needs TensorRT 10 and {beside} is installed: make another environment with "
                f"{install} (docs/gpu.md)"
            )
        return None

    def _device(self) -> str | None:
        try:
            gpu = current_gpu()
        except EngineError as error:
            return str(error)
        if gpu.driver < _DRIVER:
            return "the NVIDIA driver is too old for CUDA 13, which onnxruntime-gpu is built for: update it to 580"
        return None

    def _precision(self, bundle: Bundle, options: EngineOptions) -> str | None:
        if self.provider is TENSORRT and options.precision not in (None, "fp16"):
            return f"{self.name} computes in fp16 here, not in {options.precision}; leave --precision out"
        try:
            _variants(bundle, options)
        except BundleError as error:
            if options.precision == "fp32":
                return str(error)
            return f"{bundle.path} has no fp16 graphs for GPUs: build it with 'python export/build_engines.py --half'"
        return None

    def _timings(self, options: EngineOptions) -> Path:
        return (options.cache or cache_folder()) / "timings" / f"{self.name}-{self.version}"

    def _builder(self, bundle: Bundle, options: EngineOptions) -> Callable[[Variant, Path], None]:
        if self.provider is CUDA:
            return lambda variant, folder: rewrite_norms(bundle, variant, folder)

        def build(variant: Variant, folder: Path) -> None:
            timings = self._timings(options)
            timings.mkdir(mode=0o700, parents=True, exist_ok=True)
            build_tensorrt(bundle, variant, folder, self.provider_options(folder, options))

        return build

    def _session(
        self,
        ort: Any,  # noqa: ANN401 - the binding has no types
        bundle: Bundle,
        variant: Variant,
        folder: Path,
        options: EngineOptions,
    ) -> Any:  # noqa: ANN401
        path = bundle.graph_path(variant)
        graph: str | bytes = str(path)
        settings = session_settings(options.threads)
        if self.provider is CUDA:
            graph = (folder / variant.graph).read_bytes()
            settings.add_session_config_entry(WEIGHTS_FOLDER, str(bundle.path.absolute()))
        session = open_on(ort, graph, settings, self.provider_options(folder, options), name=path.name)
        check_signature(session, variant, path)
        return session


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _variants(bundle: Bundle, options: EngineOptions) -> dict[Any, Variant]:
    """Return the half-precision graphs for GPUs, or the portable ones where float32 is asked for."""
    profile: Profile = "portable" if options.precision == "fp32" else "native"
    return dict(choose_variants(bundle, options, profile=profile, default_precision="fp16", default_batch=1))
