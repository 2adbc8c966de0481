"""ONNX Runtime on the CPU: takes the portable ONNX graphs of a bundle as they are."""

from __future__ import annotations

import contextlib
import importlib
import io
import shlex
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...bundle.manifest import Variant
from ...bundle.opening import Bundle
from ...errors import EngineError, first_line
from ..base import CpuEngine
from ..chain import Arrays, Component, ComponentChain, check_outputs
from ..contract import EngineOptions, Foreign, OpenEngine
from ..registry import installed_version

PROVIDER = "CPUExecutionProvider"
_ERROR_LEVEL = 3
_TYPES = {"float32": "tensor(float)", "uint8": "tensor(uint8)"}


class OnnxRuntimeEngine(CpuEngine):
    """Engine ``onnxruntime``. The same file gives the same bits alone and in any batch position, checked by tests."""

    name = "onnxruntime"
    position_stable = True
    compiled = False

    def packages_lack(self) -> EngineError | None:
        """See ``RegisteredEngine.packages_lack``."""
        return super().packages_lack() or clash()

    def open(self, bundle: Bundle, options: EngineOptions) -> OpenEngine:
        """Create one session per component; raises EngineError when ONNX Runtime refuses one."""
        import_onnxruntime()
        variants, info = self.variants(bundle, options), self.describe(bundle, options)
        sessions = {name: open_session(bundle, variant, options.threads) for name, variant in variants.items()}
        components = {name: component_of(variants[name], session) for name, session in sessions.items()}
        return ComponentChain(info, components, noise=bundle.noise, close=sessions.clear)


def clash() -> EngineError | None:
    """Return what is wrong where ONNX Runtime is installed twice: both write into one folder."""
    if None in map(installed_version, ("onnxruntime", "onnxruntime-gpu")):
        return None
    return EngineError(
        "onnxruntime and onnxruntime-gpu are both installed and overwrite each other",
        remedy="pip uninstall -y onnxruntime onnxruntime-gpu, then install the one you need",
    )


def import_onnxruntime(package: str = "onnxruntime") -> Foreign:
    """Import the library as a package has it, that for GPUs with NVIDIA's libraries; raises EngineError."""
    try:
        ort = importlib.import_module("onnxruntime")
        if package != "onnxruntime":
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find, which may be elsewhere
                ort.preload_dlls()
    except Exception as error:  # a broken installation can fail in any way
        raise EngineError(
            f"{package.partition('[')[0]} is installed but cannot be imported ({first_line(error)})",
            remedy=f"pip install --force-reinstall {shlex.quote(package)}",
        ) from error
    return ort


def session_settings(threads: int) -> Foreign:
    """Return the SessionOptions of every session.

    Threads are set from the outside because ONNX Runtime counts the host's cores inside a container, and spinning is
    kept because the chain calls the sessions back to back.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.log_severity_level = _ERROR_LEVEL
    return settings


def open_session(bundle: Bundle, variant: Variant, threads: int) -> Foreign:
    """Return an InferenceSession on the CPU provider alone; raises EngineError."""
    import onnxruntime

    path = bundle.graph_path(variant)
    try:
        session = onnxruntime.InferenceSession(str(path), session_settings(threads), providers=[PROVIDER])
    except Exception as error:
        raise EngineError(
            f"onnxruntime {onnxruntime.__version__} cannot load {path.name} ({first_line(error)})",
            remedy="update onnxruntime or build the bundle again",
        ) from error
    if session.get_providers() != [PROVIDER]:
        raise EngineError(
            f"onnxruntime opened {path.name} on {session.get_providers()} instead of {PROVIDER}", remedy="report it"
        )
    check_signature(session, variant, path)
    return session


def check_signature(session: Foreign, variant: Variant, path: Path) -> None:
    """Raise EngineError unless a session takes and gives what the manifest says."""
    for values, specs in ((session.get_inputs(), variant.inputs), (session.get_outputs(), variant.outputs)):
        actual = {value.name: (value.type, tuple(value.shape)) for value in values}
        if actual != {spec.name: (_TYPES[spec.dtype], spec.shape) for spec in specs}:
            raise EngineError(
                f"{path} has other inputs or outputs than its manifest says", remedy="build the bundle again"
            )


def component_of(variant: Variant, session: Foreign) -> Component:
    """Return a session as a component."""
    names = [spec.name for spec in variant.outputs]

    def call(inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        try:
            results = session.run(names, dict(inputs))
        except Exception as error:
            raise EngineError(
                f"onnxruntime failed in {variant.graph}: {first_line(error)}",
                remedy="close other programs if memory is short, else report it",
            ) from error
        outputs = dict(zip(names, results, strict=True))
        check_outputs(variant, outputs)
        return outputs

    return call
