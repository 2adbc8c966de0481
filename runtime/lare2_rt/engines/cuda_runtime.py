"""CUDA's runtime, as little of it as the TensorRT engine needs: every call checked, every resource released in order.

The binding (``cuda.bindings.runtime``) returns a tuple from every call, whose first item is the error code, and raises
nothing. Here each call either gives its value or raises one sentence. Nothing in this file touches a device on import.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, first_line
from .contract import Foreign

ALIGNMENT = 256  # bytes; TensorRT takes no address that is not a multiple
# Error codes for which the remedy is another than 'report it'.
_REMEDIES = {
    2: "free some GPU memory or use a smaller batch (--batch 1)",
    35: "install the NVIDIA driver, or update it to 580 or newer",
    100: "check nvidia-smi and CUDA_VISIBLE_DEVICES: no NVIDIA GPU is visible",
    209: "use another engine: the GPU is not supported by this CUDA version",
    804: "update the driver, which is older than this CUDA version",
}
_CAPTURE_ERRORS = range(900, 911)


@dataclass(frozen=True, slots=True)
class Gpu:
    """Facts of the device in use that decide whether a compiled plan fits it."""

    name: str
    capability: str
    driver: int
    runtime: int


@dataclass(frozen=True, slots=True)
class Buffer:
    """Device memory of a fixed shape and element type."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Cuda:
    """The calls that the engine makes, on one device. Resources belong to an ``ExitStack`` given at creation.

    Args:
        binding: ``cuda.bindings.runtime``, or a stand-in that keeps its rules.
        stack: releases everything in the reverse order of its creation.
    """

    def __init__(self, binding: ModuleType, stack: contextlib.ExitStack) -> None:
        self._binding = binding
        self._stack = stack

    def call(self, name: str, *arguments: Foreign) -> Foreign:
        """Call a function of the binding; returns its value (None, one, or a tuple), raises EngineError."""
        error, *values = getattr(self._binding, name)(*arguments)
        code = int(error)
        if code:
            raise self._failure(name, code)
        return values[0] if len(values) == 1 else tuple(values) or None

    def gpu(self) -> Gpu:
        """Return what the current device is."""
        count = self.call("cudaGetDeviceCount")
        if not count:
            raise EngineError("CUDA sees no GPU", remedy=_REMEDIES[100])
        properties = self.call("cudaGetDeviceProperties", 0)
        name = properties.name
        return Gpu(
            name=name.decode() if isinstance(name, bytes) else str(name),
            capability=f"{properties.major}.{properties.minor}",
            driver=int(self.call("cudaDriverGetVersion")),
            runtime=int(self.call("cudaRuntimeGetVersion")),
        )

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Buffer:
        """Return uninitialised device memory."""
        size = max(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, ALIGNMENT)
        address = int(self.call("cudaMalloc", size))
        self._stack.callback(self._quietly, "cudaFree", address)
        if address % ALIGNMENT:
            raise EngineError(
                f"CUDA gave memory at an address that is not a multiple of {ALIGNMENT}", remedy="report it"
            )
        return Buffer(address, shape, dtype)

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return a host array in page-locked memory, which copies inside a graph need."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        address = int(self.call("cudaMallocHost", size))
        self._stack.callback(self._quietly, "cudaFreeHost", address)
        content: Any = (ctypes.c_uint8 * size).from_address(address)
        raw: NDArray[np.uint8] = np.frombuffer(content, np.uint8)
        return raw.view(dtype).reshape(shape)

    def stream(self) -> int:
        """Return a stream that does not wait for the default stream, on which nothing can be captured."""
        stream = self.call("cudaStreamCreateWithFlags", self._binding.cudaStreamNonBlocking)
        self._stack.callback(self._quietly, "cudaStreamDestroy", stream)
        return int(stream)

    def event(self) -> Foreign:
        """Return an event for ordering streams, without a time."""
        event = self.call("cudaEventCreateWithFlags", self._binding.cudaEventDisableTiming)
        self._stack.callback(self._quietly, "cudaEventDestroy", event)
        return event

    def upload(self, target: Buffer, source: NDArray[Any], stream: int) -> None:
        """Enqueue a copy from a host array to the device."""
        kind = self._binding.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", target.address, source.ctypes.data, target.nbytes, kind, stream)

    def download(self, target: NDArray[Any], source: Buffer, stream: int) -> None:
        """Enqueue a copy from the device to a host array."""
        kind = self._binding.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", target.ctypes.data, source.address, source.nbytes, kind, stream)

    def signal(self, event: Foreign, stream: int) -> None:
        """Mark the end of what ``stream`` has been given so far."""
        self.call("cudaEventRecord", event, stream)

    def wait(self, event: Foreign, stream: int) -> None:
        """Let ``stream`` continue only after an event."""
        self.call("cudaStreamWaitEvent", stream, event, 0)

    def synchronise(self, stream: int) -> None:
        """Block until a stream is empty."""
        self.call("cudaStreamSynchronize", stream)

    def capture(self, stream: int, enqueue: Callable[[], None]) -> Foreign:
        """Return an executable graph of what ``enqueue`` gives to ``stream`` and to streams forked from it.

        ThreadLocal mode: other threads of the process may go on allocating. Nothing is executed.
        """
        mode = self._binding.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        with self._captured(stream, mode) as captured:
            enqueue()
        graph = captured[0]
        try:
            executable = self.call("cudaGraphInstantiate", graph, 0)
            self._stack.callback(self._quietly, "cudaGraphExecDestroy", executable)
        finally:
            self._quietly("cudaGraphDestroy", graph)
        self.call("cudaGraphUpload", executable, stream)
        return executable

    def launch(self, executable: Foreign, stream: int) -> None:
        """Enqueue a graph."""
        self.call("cudaGraphLaunch", executable, stream)

    @contextlib.contextmanager
    def _captured(self, stream: int, mode: Foreign) -> Iterator[list[Foreign]]:
        """End the capture whatever happens: a stream left in capture is of no use to anybody."""
        self.call("cudaStreamBeginCapture", stream, mode)
        result: list[Any] = []
        try:
            yield result
        except BaseException:
            with contextlib.suppress(Exception):
                error, graph = self._binding.cudaStreamEndCapture(stream)
                if not int(error):
                    self._quietly("cudaGraphDestroy", graph)
            raise
        result.append(self.call("cudaStreamEndCapture", stream))

    def _quietly(self, name: str, *arguments: Foreign) -> None:
        """Release something; an error here has a cause that was told already."""
        with contextlib.suppress(Exception):
            getattr(self._binding, name)(*arguments)

    def _failure(self, name: str, code: int) -> EngineError:
        label = getattr(self._binding.cudaError_t(code), "name", str(code))
        if code in _CAPTURE_ERRORS:
            return EngineError(
                f"the CUDA graph could not be captured ({label} in {name})",
                remedy="run with --no-cuda-graph and report it",
            )
        remedy = _REMEDIES.get(code, "report it with the GPU and the driver version")
        return EngineError(f"CUDA failed in {name} ({label}, {code})", remedy=remedy)


def import_runtime() -> Foreign:
    """Import CUDA's binding; raises EngineError with the remedy."""
    try:
        import cuda.bindings.runtime
    except ImportError as error:
        raise EngineError(
            f"cuda-bindings cannot be imported ({first_line(error)})", remedy="pip install 'cuda-bindings>=13.0.3,<14'"
        ) from error
    return cuda.bindings.runtime


def current_gpu() -> Gpu:
    """Return what GPU there is; raises EngineError with the remedy where there is none."""
    binding = import_runtime()
    try:
        with contextlib.ExitStack() as stack:
            return Cuda(binding, stack).gpu()
    except EngineError:
        raise
    except Exception as error:  # a broken driver can fail in any way while it is loaded
        raise EngineError(
            f"the NVIDIA driver cannot be loaded ({first_line(error)})", remedy="install or update it"
        ) from error
