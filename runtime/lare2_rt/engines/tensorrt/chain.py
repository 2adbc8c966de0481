"""The whole chain on a GPU: four TensorRT plans between fixed buffers, captured once into one CUDA graph, replayed.

    main stream   image ↑ ─ VAE encoder ─ UNet step ───────────┬─ EGRE ─ results ↓
    side stream        └─ crop ↑ ─ CLIP backbone ──────────────┘

Everything that a graph bakes in is made once and kept: addresses, shapes, contexts and activation memory. A call writes
pixels into page-locked memory, launches the graph (copies included) and reads the results.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundle.manifest import COMPONENTS, ComponentName, TensorSpec, Variant
from ...bundle.noise import Noise
from ...errors import EngineError
from ..chain import check_array, closed
from ..contract import ChainOutput, EngineInfo, Float32, Foreign, UInt8, WindowOutput, tensors_of
from ..cuda_runtime import ALIGNMENT, Buffer, Cuda
from .plan import Messages, cannot_start, make_logger

# What the host gives and takes; everything between stays on the device.
_UPLOADED = ("image", "crop")
_FIXED = ("posterior_noise", "noise")
_RETURNED = ("lare", "embedding", "logits", "attention")
# These run one after another on the main stream and share activation memory; CLIP runs beside them and has its own.
_IN_SEQUENCE: tuple[ComponentName, ...] = ("vae_encoder", "unet_step", "egre")


class TensorRtChain:
    """Implements ``OpenEngine`` over four plans.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``; binding: ``cuda.bindings.runtime``.
        plans: component name -> serialized plan; variants: the graphs that they were built from.
        noise: the bundle's draws; cuda_graph: whether calls replay one captured graph.

    Raises:
        EngineError: a plan does not load or is of another graph, CUDA fails, or the graph cannot be captured.
    """

    def __init__(
        self,
        trt: Foreign,
        binding: Foreign,
        *,
        plans: Mapping[ComponentName, bytes],
        variants: Mapping[ComponentName, Variant],
        noise: Noise,
        info: EngineInfo,
        cuda_graph: bool,
    ) -> None:
        self._info, self._noise = info, noise
        self._stack = contextlib.ExitStack()
        self._closed = False
        with contextlib.ExitStack() as opening:
            opening.callback(self._stack.close)  # nothing stays allocated when the opening fails
            self._cuda = Cuda(binding, self._stack)
            self._main, self._side = self._cuda.stream(), self._cuda.stream()
            self._forked, self._joined = self._cuda.event(), self._cuda.event()
            self._specs = tensors_of(variants)
            self._buffers = _allocate(self._cuda, self._specs)
            self._host = {
                name: self._cuda.pinned(self._buffers[name].shape, self._buffers[name].dtype)
                for name in (*_UPLOADED, *_RETURNED)
            }
            self._contexts = _Contexts(trt, self._cuda, self._stack, plans, variants, self._buffers)
            self._set_noise(noise)
            # Deferred work of the first run (lazy loading, shape updates) must be done before anything is captured.
            self._enqueue()
            self._cuda.synchronise(self._main)
            self._graph = self._cuda.capture(self._main, self._enqueue) if cuda_graph else None
            opening.pop_all()

    @property
    def info(self) -> EngineInfo:
        """What was opened."""
        return self._info

    def run(self, image: UInt8, crop: UInt8, *, noise: Noise | None = None) -> ChainOutput:
        """See ``OpenEngine.run``."""
        self._stage("image", image)
        self._stage("crop", crop)
        begin = time.perf_counter()
        if noise is not None:
            self._set_noise(noise)
        try:
            if self._graph is not None:
                self._cuda.launch(self._graph, self._main)
            else:
                self._enqueue()
            self._cuda.synchronise(self._main)
        finally:
            if noise is not None:
                self._set_noise(self._noise)
        timings = {"chain": (time.perf_counter() - begin) * 1e3}
        results = {name: self._host[name].copy() for name in _RETURNED}
        return ChainOutput(results["lare"], results["embedding"], results["logits"], results["attention"], timings)

    def run_window(self, lare: Float32, crop: UInt8) -> WindowOutput:
        """See ``WindowEngine.run_window``: two plans on the main stream, launched one by one, as no graph holds them.

        The page-locked copy of the results' LaRE is the staging memory of the upload: its content was given away.
        """
        self._stage("lare", lare)
        self._stage("crop", crop)
        begin, cuda, stream = time.perf_counter(), self._cuda, self._main
        for name in ("lare", "crop"):
            cuda.upload(self._buffers[name], self._host[name], stream)
        self._contexts.execute("clip_backbone", stream)
        self._contexts.execute("egre", stream)
        for name in ("logits", "attention"):
            cuda.download(self._host[name], self._buffers[name], stream)
        cuda.synchronise(stream)
        timings = {"window": (time.perf_counter() - begin) * 1e3}
        return WindowOutput(self._host["logits"].copy(), self._host["attention"].copy(), timings)

    def _stage(self, name: str, array: NDArray[np.generic]) -> None:
        """Copy an array into the page-locked memory of its name; raises EngineError unless type and shape fit."""
        if self._closed:
            raise closed(self._info)
        check_array(array, self._specs[name], taker=self._info.name)
        self._host[name][...] = array

    def close(self) -> None:
        """Release everything in the reverse order of its creation; twice is harmless."""
        if not self._closed:
            self._closed = True
            self._stack.close()

    def _enqueue(self) -> None:
        """Give one call's work to both streams: run as it is, or recorded by a capture."""
        cuda, buffers = self._cuda, self._buffers
        cuda.upload(buffers["image"], self._host["image"], self._main)
        cuda.signal(self._forked, self._main)
        cuda.wait(self._forked, self._side)
        cuda.upload(buffers["crop"], self._host["crop"], self._side)
        self._contexts.execute("clip_backbone", self._side)
        cuda.signal(self._joined, self._side)
        self._contexts.execute("vae_encoder", self._main)
        self._contexts.execute("unet_step", self._main)
        cuda.wait(self._joined, self._main)
        self._contexts.execute("egre", self._main)
        for name in _RETURNED:
            cuda.download(self._host[name], buffers[name], self._main)

    def _set_noise(self, noise: Noise) -> None:
        """Write the draws into their fixed buffers, outside any graph."""
        for name, array in zip(_FIXED, (noise.posterior, noise.ensemble), strict=True):
            content = np.ascontiguousarray(array, np.float32)
            check_array(content, self._specs[name], taker=self._info.name)
            self._cuda.upload(self._buffers[name], content, self._main)
            self._cuda.synchronise(self._main)  # the array may be gone when this returns


class _Contexts:
    """One execution context a plan, bound to its buffers and to activation memory for good."""

    def __init__(
        self,
        trt: Foreign,
        cuda: Cuda,
        stack: contextlib.ExitStack,
        plans: Mapping[ComponentName, bytes],
        variants: Mapping[ComponentName, Variant],
        buffers: Mapping[str, Buffer],
    ) -> None:
        self._messages = Messages()
        self._engines: dict[ComponentName, Any] = {}
        self._contexts: dict[ComponentName, Any] = {}
        self._logger: Any = make_logger(trt, self._messages)
        try:
            self._runtime: Any = trt.Runtime(self._logger)
        except TypeError as error:  # the constructor gave nothing, as there is no GPU, or its driver is too old
            raise cannot_start(self._messages) from error
        stack.callback(self._release)
        for name in COMPONENTS:
            engine = self._runtime.deserialize_cuda_engine(plans[name])
            if engine is None:
                raise self._refused(f"does not load the plan of {name}", "run 'lare2-rt cache clear' and try again")
            _check_plan(trt, engine, name, variants[name])
            self._engines[name] = engine
        sizes = {name: int(engine.device_memory_size_v2) for name, engine in self._engines.items()}
        memory = _activation_memory(cuda, sizes)
        # Contexts are let go before the memory that they use, which the stack has now got above them.
        stack.callback(self._contexts.clear)
        for name, engine in self._engines.items():
            self._contexts[name] = self._context(trt, engine, name, variants[name], buffers, memory[name])

    def execute(self, name: ComponentName, stream: int) -> None:
        """Enqueue a component; raises EngineError."""
        if not self._contexts[name].execute_async_v3(stream):
            raise self._refused(f"cannot run {name}")

    def _refused(self, what: str, remedy: str = "report it") -> EngineError:
        return EngineError(f"TensorRT {what}: {self._messages.last}", remedy=remedy)

    def _release(self) -> None:
        """Contexts before their engines, engines before the runtime, the logger last."""
        self._contexts.clear()
        self._engines.clear()
        self._runtime = None
        self._logger = None

    def _context(
        self,
        trt: Foreign,
        engine: Foreign,
        name: ComponentName,
        variant: Variant,
        buffers: Mapping[str, Buffer],
        memory: Buffer,
    ) -> Foreign:
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise self._refused(f"cannot prepare {name}", "free some GPU memory")
        context.set_device_memory(memory.address, memory.nbytes)
        for spec in variant.inputs:
            if not context.set_input_shape(spec.name, spec.shape):
                raise EngineError(
                    f"the plan of {name} does not take {spec.name} as {list(spec.shape)}", remedy="report it"
                )
        for spec in (*variant.inputs, *variant.outputs):
            if not context.set_tensor_address(spec.name, buffers[spec.name].address):
                raise self._refused(f"refuses the memory of {spec.name} in {name}")
        missing = context.infer_shapes()
        if missing:
            raise EngineError(f"the plan of {name} lacks the shape of {', '.join(missing)}", remedy="report it")
        return context


def _allocate(cuda: Cuda, specs: Mapping[str, TensorSpec]) -> dict[str, Buffer]:
    """Return one device buffer a tensor; what one component gives and the next takes is the same buffer."""
    return {name: cuda.allocate(spec.shape, np.dtype(spec.dtype)) for name, spec in specs.items()}


def _activation_memory(cuda: Cuda, sizes: Mapping[ComponentName, int]) -> dict[ComponentName, Buffer]:
    """One block for the components that run in sequence, one of its own for each that runs beside them."""
    shared = cuda.allocate((_padded(max(sizes[name] for name in _IN_SEQUENCE)),), np.dtype(np.uint8))
    return {
        name: shared if name in _IN_SEQUENCE else cuda.allocate((_padded(size),), np.dtype(np.uint8))
        for name, size in sizes.items()
    }


def _padded(size: int) -> int:
    return max(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT)


def _check_plan(trt: Foreign, engine: Foreign, name: ComponentName, variant: Variant) -> None:
    """Raise EngineError unless a plan's inputs and outputs are those of the graph in the manifest."""
    types = {trt.DataType.FLOAT: "float32", trt.DataType.UINT8: "uint8"}
    actual: dict[str, tuple[str, str, tuple[int, ...]]] = {}
    for index in range(engine.num_io_tensors):
        tensor = engine.get_tensor_name(index)
        mode = "input" if engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT else "output"
        actual[tensor] = (mode, types.get(engine.get_tensor_dtype(tensor), "?"), tuple(engine.get_tensor_shape(tensor)))
    expected = {
        spec.name: (mode, spec.dtype, spec.shape)
        for mode, specs in (("input", variant.inputs), ("output", variant.outputs))
        for spec in specs
    }
    if actual != expected:
        raise EngineError(
            f"the plan of {name} is of another graph than {variant.graph}",
            remedy="run 'lare2-rt cache clear' and try again",
        )
