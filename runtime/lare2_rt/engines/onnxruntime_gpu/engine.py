"""ONNX Runtime on an NVIDIA GPU: its CUDA provider, and its TensorRT provider on TensorRT 10.

Both take device buffers through IO binding and replay CUDA graphs; see ``bound.py``. A name stands for one device: a
session that ONNX Runtime would quietly put on the CPU is refused.

Neither has run on a GPU yet; ``docs/gpu.md`` says what of it is proven, and the command that proves the rest.
"""

from __future__ import annotations

import abc
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from ...bundle.manifest import Variant
from ...bundle.opening import Bundle
from ...errors import EngineError, first_line
from ...host.child import written_or_said
from ...host.integrity import cache_folder
from ..cache.build import compile_chain, onnx_files, run_script
from ..contract import EngineOptions, Foreign, OpenEngine
from ..cuda_runtime import current_gpu
from ..gpu import GpuEngine, numbers
from ..onnxruntime.engine import check_signature, clash, import_onnxruntime, session_settings
from .bound import BoundChain

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_NO_CPU = "session.disable_cpu_ep_fallback"
_LIBRARIES = "onnxruntime-gpu[cuda,cudnn]"

_OLDEST = (1, 31)  # the first for CUDA 13
_DRIVER = 13000  # what drivers that know CUDA 13 answer: branch 580 and newer
# Options of a provider that change no result: where its files lie, and whether kernels are launched or replayed.
_UNDECISIVE = ("enable_cuda_graph", "trt_cuda_graph_enable", "trt_engine_cache_path", "trt_timing_cache_path")
CUDA_PROVIDER, TENSORRT_PROVIDER = "CUDAExecutionProvider", "TensorrtExecutionProvider"
Providers = list[tuple[str, dict[str, str]]]


class OnnxRuntimeGpuEngine(GpuEngine):
    """What both engines do; a subclass says which provider it is and how a graph is prepared for it.

    Attributes:
        revision: of how graphs are prepared, part of both keys: raise it with every change of that.
    """

    provider: ClassVar[str]
    revision: ClassVar[int] = 1

    def packages_lack(self) -> EngineError | None:
        """See ``GpuEngine.packages_lack``; the rules of the two environments are in docs/gpu.md."""
        lacks, version = clash() or super().packages_lack(), (self.version or "").partition("+")[0]
        if lacks is None and numbers(version) < _OLDEST:
            return EngineError(f"onnxruntime-gpu {version} is too old", remedy=f"{self.entry.install} --upgrade")
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
        ort = import_onnxruntime(_LIBRARIES)
        info, variants = self.describe(bundle, options), self.variants(bundle, options)
        chain = compile_chain(
            bundle,
            variants,
            options,
            info=info,
            facts=self.facts(bundle, options),
            build=lambda variant, folder: self.prepare(bundle, variant, folder, options),
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
    def provider_options(self, folder: Path, options: EngineOptions) -> Providers:
        """Return the providers of a session with their options, all of them text, as ONNX Runtime wants them."""

    @abc.abstractmethod
    def prepare(self, bundle: Bundle, variant: Variant, folder: Path, options: EngineOptions) -> None:
        """Put what the provider runs into ``folder``; raises EngineError or OSError."""

    def settings(self, bundle: Bundle, options: EngineOptions) -> dict[str, str | int]:
        """See ``GpuEngine.settings``."""
        decisive = [
            (name, {key: value for key, value in given.items() if key not in _UNDECISIVE})
            for name, given in self.provider_options(Path(), options)
        ]
        precision = self.variants(bundle, options)["egre"].precision
        return {"precision": precision, "revision": self.revision, "options": json.dumps(decisive, sort_keys=True)}

    def _graph(self, bundle: Bundle, variant: Variant, folder: Path, settings: Foreign) -> str | bytes:
        """Return the graph to open, as a path or as content, after what it needs was set."""
        return str(bundle.graph_path(variant))

    def _session(self, ort: Foreign, bundle: Bundle, variant: Variant, folder: Path, options: EngineOptions) -> Foreign:
        path, settings = bundle.graph_path(variant), session_settings(options.threads)
        graph = self._graph(bundle, variant, folder, settings)
        session = open_on(ort, graph, settings, self.provider_options(folder, options), name=path.name)
        check_signature(session, variant, path)
        return session


def open_on(ort: Foreign, graph: str | bytes, settings: Foreign, providers: Providers, *, name: str) -> Foreign:
    """Return a session on the first of the providers, with no node on the CPU; raises EngineError.

    Args:
        graph: path, or content; settings: SessionOptions; name: of the graph, for sentences.
    """
    wanted, install = providers[0][0], f"pip install '{_LIBRARIES}'"
    settings.add_session_config_entry(_NO_CPU, "1")
    try:
        session = ort.InferenceSession(graph, settings, providers=providers)
    except Exception as error:
        raise EngineError(
            f"onnxruntime cannot open {name} on the GPU ({first_line(error)})",
            remedy=f"see 'lare2-rt doctor', or install its libraries with {install}",
        ) from error
    if session.get_providers()[:1] != [wanted]:  # libraries that do not load are no error to ONNX Runtime
        raise EngineError(
            f"onnxruntime opened {name} on {', '.join(session.get_providers())} instead of {wanted}: "
            "libraries of CUDA 13 or cuDNN 9 do not load",
            remedy=install,
        )
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

    def provider_options(self, folder: Path, options: EngineOptions) -> Providers:
        """See ``OnnxRuntimeGpuEngine.provider_options``."""
        return [(CUDA_PROVIDER, {**_cuda_options(), "enable_cuda_graph": str(int(options.cuda_graph))})]

    def prepare(self, bundle: Bundle, variant: Variant, folder: Path, options: EngineOptions) -> None:
        """Rewrite the norms of the graph; its weights stay in the bundle."""
        with onnx_files(bundle, variant, folder):
            run_script(
                f"{__package__}.norms",
                [variant.graph, "rewritten"],
                cwd=folder,
                doing=f"rewrite {variant.graph} for CUDA",
                remedy="install onnx again: pip install --force-reinstall onnx",
            )
        (folder / "rewritten").rename(folder / variant.graph)

    def _graph(self, bundle: Bundle, variant: Variant, folder: Path, settings: Foreign) -> str | bytes:
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

    def provider_options(self, folder: Path, options: EngineOptions) -> Providers:
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

    def prepare(self, bundle: Bundle, variant: Variant, folder: Path, options: EngineOptions) -> None:
        """Let the provider build its engine, in a process of its own."""
        self._timings(options).mkdir(mode=0o700, parents=True, exist_ok=True)
        run_script(
            __name__,
            [bundle.graph_path(variant).absolute(), json.dumps(self.provider_options(folder, options))],
            cwd=folder,
            doing=f"build {variant.graph} with TensorRT",
            remedy="free some GPU memory, or choose another --engine",
        )
        if not any(path.suffix == ".engine" for path in folder.iterdir()):
            raise EngineError(
                f"TensorRT took no part of {variant.graph}", remedy="choose another --engine, and report it"
            )

    def _timings(self, options: EngineOptions) -> Path:
        return (options.cache or cache_folder()) / "timings" / f"{self.name}-{self.version}"


def main(graph: str, providers: str) -> None:
    """Let the first of the providers, given as JSON, build the engine of an ONNX file, as a child of the engine.

    Opening a session does; whoever changes how raises ``revision``.
    """
    written_or_said(lambda: _built(graph, [(name, options) for name, options in json.loads(providers)]))


def _built(graph: str, providers: Providers) -> None:
    ort = importlib.import_module("onnxruntime")
    ort.preload_dlls()
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.add_session_config_entry(_NO_CPU, "1")
    found = ort.InferenceSession(graph, settings, providers=providers).get_providers()
    if found[0] != providers[0][0]:
        sys.exit(f"it went to {found[0]}, as libraries of TensorRT 10 or CUDA 13 do not load")
