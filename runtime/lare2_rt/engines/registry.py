"""The engines there are: one entry of data each. Nothing of an engine is imported before it is asked for."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import EngineError

if TYPE_CHECKING:
    from .contract import Engine


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution without importing it; None where it is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(distribution)
    return None


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """One engine.

    Attributes:
        name: what users give to ``--engine``.
        target: ``module:class`` below this package, or a function that returns the engine.
        device: what it computes on.
        extra: of pyproject.toml, which installs it from a checkout.
        libraries: distributions that compute, whose versions are the engine's; alternatives are separated by ``|``.
        requirements: what ``pip install`` takes to install all that it needs, as the extra has it.
        tools: distributions that it needs as well and that compute nothing.
        rival: the distribution that a missing library would overwrite.
    """

    name: str
    target: str | Callable[[], Engine]
    device: Literal["cpu", "cuda"]
    extra: str
    libraries: tuple[str, ...]
    requirements: tuple[str, ...]
    tools: tuple[str, ...] = ()
    rival: str | None = None

    @property
    def version(self) -> str | None:
        """Versions of the libraries, joined by ``+``; None unless all of them, and the tools, are installed."""
        return None if self.missing() else "+".join(_first_installed(library) or "" for library in self.libraries)

    @property
    def install(self) -> str:
        """The command that installs what the engine needs."""
        return "pip install " + " ".join(shlex.quote(requirement) for requirement in self.requirements)

    def missing(self) -> EngineError | None:
        """Return which package is not installed; None where none is missing."""
        for library in (*self.libraries, *self.tools):
            if _first_installed(library) is None:
                rival = self.rival if self.rival and installed_version(self.rival) else None
                remedy = f"pip uninstall -y {rival}, then {self.install}" if rival else self.install
                return EngineError(f"{library.partition('|')[0]} is not installed", remedy=remedy)
        return None

    def load(self) -> Engine:
        """Import the engine's module and return the engine; its libraries are imported when it is opened."""
        if not isinstance(self.target, str):
            return self.target()
        module, _, name = self.target.partition(":")
        engine: Engine = getattr(importlib.import_module(f"{__package__}.{module}"), name)()
        return engine


def _first_installed(alternatives: str) -> str | None:
    return next(filter(None, map(installed_version, alternatives.split("|"))), None)


# Where nothing was measured, ``auto`` takes the first that can be used: the one with the kernels that builds measure.
ENGINES: tuple[EngineEntry, ...] = (
    EngineEntry("onnxruntime", "onnxruntime.engine:OnnxRuntimeEngine", "cpu", "cpu",
                ("onnxruntime|onnxruntime-gpu",), ("onnxruntime>=1.20",)),
    EngineEntry("openvino", "openvino.engine:OpenVinoEngine", "cpu", "openvino", ("openvino",), ("openvino>=2025.4",)),
    EngineEntry("winograd", "winograd.engine:WinogradEngine", "cpu", "winograd",
                ("openvino",), ("onnx>=1.17", "openvino>=2025.4"), tools=("onnx",)),
    EngineEntry("tensorrt", "tensorrt.engine:TensorRtEngine", "cuda", "tensorrt",
                ("tensorrt-cu13|tensorrt-cu12|tensorrt",), ("tensorrt-cu13>=10.16", "cuda-bindings>=13.0.3,<14")),
    EngineEntry("tensorrt-rtx", "tensorrt.engine:TensorRtRtxEngine", "cuda", "tensorrt-rtx",
                ("tensorrt-rtx",), ("tensorrt-rtx>=1.7", "cuda-bindings>=13.0.3,<14")),
    EngineEntry("onnxruntime-cuda", "onnxruntime_gpu.engine:OnnxRuntimeCudaEngine", "cuda", "gpu", ("onnxruntime-gpu",),
                ("onnx>=1.18", "onnxruntime-gpu[cuda,cudnn]>=1.31", "cuda-bindings>=13.0.3,<14"), tools=("onnx",),
                rival="onnxruntime"),
    EngineEntry("onnxruntime-tensorrt", "onnxruntime_gpu.engine:OnnxRuntimeTensorRtEngine", "cuda", "gpu-trt",
                ("onnxruntime-gpu", "tensorrt-cu13|tensorrt"),
                ("onnx>=1.18", "onnxruntime-gpu[cuda,cudnn]>=1.31", "cuda-bindings>=13.0.3,<14",
                 "tensorrt-cu13==10.16.1.11"), rival="onnxruntime"),
)  # fmt: skip


def entry_of(name: str) -> EngineEntry:
    """Return the entry of an engine; raises EngineError where there is none of that name."""
    for entry in ENGINES:
        if entry.name == name:
            return entry
    names = ", ".join(["auto", *(entry.name for entry in ENGINES)])
    raise EngineError(f"there is no engine {name!r}", remedy=f"choose one of {names}")


def engine_named(name: str) -> Engine:
    """Return an engine by its name; raises EngineError where there is none."""
    return entry_of(name).load()
