"""ONNX Runtime on an NVIDIA GPU: its CUDA provider, and its TensorRT provider on TensorRT 10.

Both take device buffers through IO binding and replay CUDA graphs; see ``onnxruntime_bound.py``. A name stands for one
device: a session that ONNX Runtime would quietly put on the CPU is refused.

Neither has run on a GPU yet; ``docs/gpu.md`` says what of it is proven, and the command that proves the rest.
"""

from __future__ import annotations

import abc
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ...bundle.manifest import Variant
from ...bundle.opening import Bundle
from ...errors import EngineError, first_line
from ...host.integrity import cache_folder
from ..cache.build import compile_chain
from ..contract import EngineOptions, OpenEngine
from ..cuda_runtime import current_gpu
from ..gpu import GpuEngine, gpu_variants, numbers
from ..onnxruntime.engine import check_signature, clash, session_settings
from ..registry import installed_version
from .bound import BoundChain
from .opening import WEIGHTS_FOLDER, build_tensorrt, import_onnxruntime_gpu, open_on, rewrite_norms

_OLDEST = (1, 31)  # the first for CUDA 13
_DRIVER = 13000  # what drivers that know CUDA 13 answer: branch 580 and newer
# Options of a provider that change no result: where its files lie, and whether kernels are launched or replayed.
_UNDECISIVE = ("enable_cuda_graph", "trt_cuda_graph_enable", "trt_engine_cache_path", "trt_timing_cache_path")
CUDA_PROVIDER, TENSORRT_PROVIDER = "CUDAExecutionProvider", "TensorrtExecutionProvider"


class OnnxRuntimeGpuEngine(GpuEngine):
    """What both engines do; a subclass says which provider it is and how a graph is prepared for it."""

    provider: ClassVar[str]

    def packages_lack(self) -> EngineError | None:
        """See ``GpuEngine.packages_lack``; the rules of the two environments are in docs/gpu.md."""
        gpu, both = installed_version("onnxruntime-gpu"), clash()
        if gpu is None and installed_version("onnxruntime") is not None:
            return EngineError(
                "onnxruntime-gpu is not installed",
                remedy=f"pip uninstall -y onnxruntime, then {self.entry.install} (docs/gpu.md)",
            )
        lacks = both or super().packages_lack()
        if lacks is None and gpu is not None and numbers(gpu) < _OLDEST:
            return EngineError(f"onnxruntime-gpu {gpu} is too old", remedy=f"{self.entry.install} --upgrade")
        return lacks

    def device_lacks(self) -> EngineError | None:
        """See ``GpuEngine.device_lacks``."""
        lacks = super().device_lacks()
        if lacks is None and current_gpu().driver < _DRIVER:
            return EngineError(
                "the NVIDIA driver is too old for CUDA 13, which onnxruntime-gpu is built for",
                remedy="update it to 580 or newer",
            )
        return lacks

    def open(self, bundle: Bundle, options: EngineOptions) -> OpenEngine:
        """Prepare the graphs that the cache lacks, open one session a component and capture; raises EngineError."""
        ort = import_onnxruntime_gpu()
        info, variants = self.describe(bundle, options), gpu_variants(bundle, options)
        facts = self.facts(current_gpu(), bundle, options)
        chain = compile_chain(
            bundle,
            variants,
            options,
            info=info,
            facts=facts,
            build=lambda variant, folder: self._prepare(bundle, variant, folder, options),
        )
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
            raise EngineError(
                f"a graph cannot be read ({first_line(error)})", remedy="run 'lare2-rt cache clear'"
            ) from error
        except BaseException:
            chain.close()
            raise

    @abc.abstractmethod
    def provider_options(self, folder: Path, options: EngineOptions) -> list[tuple[str, dict[str, str]]]:
        """Return the providers of a session with their options, all of them text, as ONNX Runtime wants them."""

    @abc.abstractmethod
    def _prepare(self, bundle: Bundle, variant: Variant, folder: Path, options: EngineOptions) -> None:
        """Put what the provider runs into ``folder``."""

    @abc.abstractmethod
    def _revision(self) -> int:
        """Return the revision of the script that prepares graphs."""

    def settings(self, bundle: Bundle, options: EngineOptions) -> dict[str, str | int]:
        """See ``GpuEngine.settings``."""
        decisive = [
            (name, {key: value for key, value in given.items() if key not in _UNDECISIVE})
            for name, given in self.provider_options(Path(), options)
        ]
        return {"revision": self._revision(), "options": json.dumps(decisive, sort_keys=True)}

    def _graph(self, bundle: Bundle, variant: Variant, folder: Path, settings: Any) -> str | bytes:  # noqa: ANN401
        """Return the graph to open, as a path or as content, after what it needs was set."""
        return str(bundle.graph_path(variant))

    def _session(
        self,
        ort: Any,  # noqa: ANN401 - the binding has no types
        bundle: Bundle,
        variant: Variant,
        folder: Path,
        options: EngineOptions,
    ) -> Any:  # noqa: ANN401
        path, settings = bundle.graph_path(variant), session_settings(options.threads)
        graph = self._graph(bundle, variant, folder, settings)
        session = open_on(ort, graph, settings, self.provider_options(folder, options), name=path.name)
        check_signature(session, variant, path)
        return session


def _cuda_options() -> dict[str, str]:
    return {
        "device_id": "0",
        # The default measures convolutions when they first run, and two processes may choose other kernels.
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
    }


class OnnxRuntimeCudaEngine(OnnxRuntimeGpuEngine):
    """Engine ``onnxruntime-cuda``: the CUDA provider, on graphs whose norms it can run."""

    name = "onnxruntime-cuda"
    provider = CUDA_PROVIDER
    precisions = ("fp16", "fp32")

    def provider_options(self, folder: Path, options: EngineOptions) -> list[tuple[str, dict[str, str]]]:
        """See ``OnnxRuntimeGpuEngine.provider_options``."""
        return [(CUDA_PROVIDER, {**_cuda_options(), "enable_cuda_graph": str(int(options.cuda_graph))})]

    def _prepare(self, bundle: Bundle, variant: Variant, folder: Path, options: EngineOptions) -> None:
        rewrite_norms(bundle, variant, folder)

    def _revision(self) -> int:
        from .norms import REVISION

        return REVISION

    def _graph(self, bundle: Bundle, variant: Variant, folder: Path, settings: Any) -> str | bytes:  # noqa: ANN401
        settings.add_session_config_entry(WEIGHTS_FOLDER, str(bundle.path.absolute()))
        return (folder / variant.graph).read_bytes()


class OnnxRuntimeTensorRtEngine(OnnxRuntimeGpuEngine):
    """Engine ``onnxruntime-tensorrt``: the TensorRT provider, on TensorRT 10."""

    name = "onnxruntime-tensorrt"
    provider = TENSORRT_PROVIDER
    precisions = ("fp16",)

    def packages_lack(self) -> EngineError | None:
        """See ``GpuEngine.packages_lack``."""
        lacks = super().packages_lack()
        if lacks is None and not (version := (self.version or "").partition("+")[2]).startswith("10."):
            return EngineError(
                f"onnxruntime-gpu needs TensorRT 10 and {version} is installed",
                remedy=f"make another environment with {self.entry.install} (docs/gpu.md)",
            )
        return lacks

    def provider_options(self, folder: Path, options: EngineOptions) -> list[tuple[str, dict[str, str]]]:
        """See ``OnnxRuntimeGpuEngine.provider_options``."""
        tensorrt = {
            "device_id": "0",
            "trt_fp16_enable": "1",
            "trt_builder_optimization_level": "3",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(self._timings(options)),
            "trt_cuda_graph_enable": str(int(options.cuda_graph)),
        }
        # What TensorRT does not take may stay on the GPU, but never go to the CPU.
        return [(TENSORRT_PROVIDER, tensorrt), (CUDA_PROVIDER, _cuda_options())]

    def _prepare(self, bundle: Bundle, variant: Variant, folder: Path, options: EngineOptions) -> None:
        self._timings(options).mkdir(mode=0o700, parents=True, exist_ok=True)
        build_tensorrt(bundle, variant, folder, self.provider_options(folder, options))

    def _revision(self) -> int:
        from .build import REVISION

        return REVISION

    def _timings(self, options: EngineOptions) -> Path:
        return (options.cache or cache_folder()) / "timings" / f"{self.name}-{self.version}"
