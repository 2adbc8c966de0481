"""The chain over ONNX Runtime sessions whose inputs and outputs lie in device memory for good.

A CUDA graph has the addresses of its capture baked in, so every tensor gets one buffer when the chain is opened, what
one component gives and the next takes is the same buffer, and a call writes into them in place. ONNX Runtime captures a
graph in the first runs of a session and replays it from then on, one graph for each ``gpu_graph_id``.

Nothing here is particular to CUDA: with ``device`` ``cpu`` and sessions on the CPU the same code runs anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundle.manifest import COMPONENTS, ComponentName, Variant
from ...bundle.noise import Noise
from ...errors import EngineError, first_line
from ..chain import check_array, closed
from ..contract import ChainOutput, EngineInfo, Float32, Foreign, UInt8, WindowOutput, tensors_of

# ONNX Runtime runs a session twice before it captures, all within the first call; one more shows that replays work.
_WARM_UP = 2
_NO_GRAPH = "-1"
_UPLOADED = ("image", "crop")
_JUDGING: tuple[ComponentName, ...] = ("clip_backbone", "egre")
_Sessions = Mapping[ComponentName, Any]


class BoundChain:
    """Implements ``OpenEngine`` and ``WindowEngine``.

    Args:
        ort: the module ``onnxruntime``; sessions: one a component, each with the same provider.
        variants: the graphs that they were made from; noise: the bundle's draws.
        device: where the buffers lie, ``cuda`` or ``cpu``.
        graph: whether calls replay captured graphs; the sessions must have been made for it.
        close: called last of all.

    Raises:
        EngineError: memory cannot be had, or a session fails.
    """

    def __init__(
        self,
        ort: Foreign,
        sessions: _Sessions,
        variants: Mapping[ComponentName, Variant],
        *,
        noise: Noise,
        info: EngineInfo,
        device: str,
        graph: bool,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._info, self._noise, self._close = info, noise, close
        self._specs = tensors_of(variants)
        self._sessions = dict(sessions)
        self._buffers: dict[str, Any] = {}
        self._bindings: dict[ComponentName, Any] = {}
        # All graphs of a session have one shape, that of its batch; an id used for two is not noticed by anybody.
        self._run_options = ort.RunOptions()
        self._run_options.add_run_config_entry("gpu_graph_id", str(info.batch) if graph else _NO_GRAPH)
        try:
            self._allocate(ort, variants, device)
            self._set_noise(noise)
            for name in _UPLOADED:
                spec = self._specs[name]
                self._write(name, np.zeros(spec.shape, spec.dtype))
            for _ in range(_WARM_UP):
                for component in COMPONENTS:
                    self._call(component)
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> EngineInfo:
        """What was opened."""
        return self._info

    def run(self, image: UInt8, crop: UInt8, *, noise: Noise | None = None) -> ChainOutput:
        """See ``OpenEngine.run``."""
        self._write("image", image)
        self._write("crop", crop)
        timings: dict[str, float] = {}
        try:
            if noise is not None:
                self._set_noise(noise)
            for name in COMPONENTS:
                timings[name] = self._call(name)
        finally:
            if noise is not None:
                self._set_noise(self._noise)
        lare, embedding, logits, attention = map(self._read, ("lare", "embedding", "logits", "attention"))
        return ChainOutput(lare, embedding, logits, attention, timings)

    def run_window(self, lare: Float32, crop: UInt8) -> WindowOutput:
        """See ``WindowEngine.run_window``; the graphs of CLIP and EGRE are those of ``run``."""
        self._write("lare", lare)
        self._write("crop", crop)
        timings: dict[str, float] = {name: self._call(name) for name in _JUDGING}
        return WindowOutput(self._read("logits"), self._read("attention"), timings)

    def close(self) -> None:
        """Release bindings before sessions and sessions before memory; twice is harmless."""
        if self._sessions:
            for part in (self._bindings, self._sessions, self._buffers):
                part.clear()
            self._close()

    def _allocate(self, ort: Foreign, variants: Mapping[ComponentName, Variant], device: str) -> None:
        """Get one buffer a tensor and bind it wherever that tensor goes in or comes out."""
        try:
            for name, spec in self._specs.items():
                element = np.dtype(spec.dtype).type
                self._buffers[name] = ort.OrtValue.ortvalue_from_shape_and_type(list(spec.shape), element, device, 0)
            for component in COMPONENTS:
                binding = self._bindings[component] = self._sessions[component].io_binding()
                for spec in variants[component].inputs:
                    binding.bind_ortvalue_input(spec.name, self._buffers[spec.name])
                for spec in variants[component].outputs:
                    binding.bind_ortvalue_output(spec.name, self._buffers[spec.name])
        except Exception as error:
            raise EngineError(
                f"{self._info.name} cannot prepare its memory ({first_line(error)})",
                remedy=f"free some memory of {self._info.device}",
            ) from error

    def _call(self, name: ComponentName) -> float:
        """Run a component to its end; returns milliseconds."""
        begin = time.perf_counter()
        try:
            self._sessions[name].run_with_iobinding(self._bindings[name], self._run_options)
        except Exception as error:
            raise EngineError(
                f"{self._info.name} failed in {name}: {first_line(error)}",
                remedy=f"free some memory of {self._info.device}, or run with --no-cuda-graph, else report it",
            ) from error
        return (time.perf_counter() - begin) * 1e3

    def _write(self, name: str, array: NDArray[Any]) -> None:
        """Write an array into its buffer; raises EngineError unless type and shape are the buffer's."""
        if not self._sessions:
            raise closed(self._info)
        check_array(array, self._specs[name], taker=self._info.name)
        try:
            self._buffers[name].update_inplace(np.ascontiguousarray(array))
        except Exception as error:
            raise EngineError(
                f"{self._info.name} cannot take {name}: {first_line(error)}", remedy="report it"
            ) from error

    def _read(self, name: str) -> Float32:
        """Return a buffer's content; on a CPU ONNX Runtime may give the buffer itself, so it is copied."""
        content: Float32 = np.array(self._buffers[name].numpy())
        return content

    def _set_noise(self, noise: Noise) -> None:
        self._write("posterior_noise", np.asarray(noise.posterior, np.float32))
        self._write("noise", np.asarray(noise.ensemble, np.float32))
