"""From a strongly typed ONNX graph to a TensorRT plan, by what TensorRT 10.16, 11 and TensorRT-RTX have in common.

TensorRT reports failure by None or False and raises nothing, so every return value is checked. Literal flag bits differ
between its versions, so flags are always ``1 << int(flag)``. Network, parser and logger stay referenced until the plan
is made: the network may point into the parser's weights.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import EngineError

Progress = Callable[[str], None]
_PROGRESS_SECONDS = 5.0
LEVELS = 5


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """How a plan is made; all of it is part of its key.

    Attributes:
        workspace: bytes of GPU memory that a kernel may use for itself; None is TensorRT's default, all there is.
        level: builder optimisation level 0 to 5; TensorRT's default is 3.
        tf32: whether float32 layers may use TF32, which TensorRT allows by default and parity does not.
        target: compute capability such as ``8.9`` of a GPU that is not here; TensorRT-RTX alone can build for it.
    """

    workspace: int | None = None
    level: int = 3
    tf32: bool = False
    target: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.level <= LEVELS:
            raise ValueError(f"TensorRT's builder optimisation level is 0 to {LEVELS}, not {self.level}")
        if self.workspace is not None and self.workspace < 1:
            raise ValueError(f"a workspace of {self.workspace} bytes leaves nothing to work with")


class Messages:
    """What TensorRT said, kept so that a failure can be told in its own words."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    @property
    def last(self) -> str:
        """The last error in one line."""
        return " ".join(self.errors[-1].split())[:240] if self.errors else "it gave no reason"


def make_logger(trt: Any, messages: Messages) -> Any:  # noqa: ANN401 - the binding has no types
    """Return a logger that keeps errors and drops the rest. The first logger of a process serves all later ones."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # required; without it the object cannot be used

        def log(self, severity: Any, text: str) -> None:  # noqa: ANN401
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.errors.append(text)

    return Log()


def build_plan(
    trt: Any,  # noqa: ANN401
    graph: Path,
    options: PlanOptions,
    *,
    progress: Progress,
    timings: bytes = b"",
) -> tuple[bytes, bytes]:
    """Parse a graph and build its plan.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``.
        graph: ONNX file with fixed shapes; its types are taken as they are.
        progress: called with one line every few seconds.
        timings: a timing cache of the same TensorRT and GPU, or nothing.

    Returns:
        The plan, and the timing cache with what this build has measured (empty where there is none).

    Raises:
        EngineError: with TensorRT's reason.
    """
    messages = Messages()
    logger = make_logger(trt, messages)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # the constructor gave nothing: there is no GPU, or its driver is too old
        raise EngineError(f"TensorRT cannot start ({messages.last}): check the GPU and its driver") from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(os.fspath(graph)):
        raise EngineError(f"TensorRT does not take {graph.name}: {_parser_errors(parser)}", remedy="report it")
    _check_half(trt, network, graph.name)
    config = builder.create_builder_config()
    cache = _configure(trt, config, options, timings=timings, progress=progress)
    monitor = _monitor(trt, graph.name, progress)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(
            f"TensorRT cannot build {graph.name}: {messages.last}",
            remedy="free GPU memory, or lower the optimisation level",
        )
    return bytes(plan), b"" if cache is None else bytes(config.get_timing_cache().serialize())


def _parser_errors(parser: Any) -> str:  # noqa: ANN401
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    said = [f"{error.node_name() or 'graph'} ({error.node_operator()}): {error.desc()}" for error in found]
    return " ".join("; ".join(said).split())[:240] or "it gave no reason"


def _check_half(trt: Any, network: Any, name: str) -> None:  # noqa: ANN401
    """Refuse a graph in float32, of which TensorRT would make a slow plan without a word.

    Convolutions tell: all of them are in half in the graphs for GPUs, whatever lies around them.
    """
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.CONVOLUTION and layer.get_output(0).dtype != trt.DataType.HALF:
            raise EngineError(
                f"{name} computes in float32 where half precision is asked for ({layer.name})",
                remedy="build the bundle again with 'python export/build_engines.py --half'",
            )


def _configure(
    trt: Any,  # noqa: ANN401
    config: Any,  # noqa: ANN401
    options: PlanOptions,
    *,
    timings: bytes,
    progress: Progress,
) -> Any:  # noqa: ANN401
    """Set a builder's configuration; returns its timing cache, None where the library has none."""
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    config.builder_optimization_level = options.level
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    # The chain forks by itself; a plan with streams of its own would fork again inside a captured graph.
    config.max_aux_streams = 0
    if hasattr(config, "set_compute_capability"):  # TensorRT-RTX, which keeps no timings
        if options.target is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + options.target.replace(".", "")), 0)
        return None
    cache = config.create_timing_cache(timings)
    if not config.set_timing_cache(cache, False):
        progress("the timing cache is of another GPU or TensorRT and is begun anew")
        cache = config.create_timing_cache(b"")
        if not config.set_timing_cache(cache, False):
            raise EngineError("TensorRT refuses an empty timing cache", remedy="report it with the TensorRT version")
    return cache


def _monitor(trt: Any, graph: str, progress: Progress) -> Any:  # noqa: ANN401
    """Return a monitor that tells the phase and the time every few seconds."""
    begin = time.monotonic()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)  # required
            self.told = begin
            self.phases: list[tuple[str, int]] = []

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases.append((phase_name, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            now = time.monotonic()
            if now - self.told >= _PROGRESS_SECONDS:
                self.told = now
                steps = dict(self.phases).get(phase_name, 0)
                progress(f"{graph}: {phase_name}, step {step + 1} of {steps}, {now - begin:.0f} s")
            return True  # anything else cancels the build

        def phase_finish(self, phase_name: str) -> None:
            self.phases = [phase for phase in self.phases if phase[0] != phase_name]

    return Monitor()
