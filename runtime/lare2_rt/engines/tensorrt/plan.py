"""From a strongly typed ONNX graph to a TensorRT plan, by what TensorRT 10.16, 11 and TensorRT-RTX have in common.

The options are part of a plan's key, so a run has to know them to find the plan. What a build chose is kept beside the
plans, one small file for each engine and bundle; what cannot be read counts as the defaults.

TensorRT reports failure by None or False and raises nothing, so every return value is checked. Literal flag bits differ
between its versions, so flags are always ``1 << int(flag)``. Network, parser and logger stay referenced until the plan
is made: the network may point into the parser's weights.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ...bundle.opening import Bundle
from ...errors import EngineError, OutputError, first_line
from ...host.atomic import write_bytes
from ...host.child import written_or_said
from ...host.integrity import cache_folder
from ..contract import Foreign

Progress = Callable[[str], None]
_PROGRESS_SECONDS = 5.0
LEVELS = 5
_MAX_BYTES = 10_000  # of the file of options


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


def plan_options_of(engine: str, bundle: Bundle, cache: Path | None = None) -> PlanOptions:
    """Return the options that the last build chose for a bundle, or the defaults."""
    with contextlib.suppress(OSError, ValidationError), _options_file(engine, bundle, cache).open("rb") as handle:
        return TypeAdapter(PlanOptions).validate_json(handle.read(_MAX_BYTES))
    return PlanOptions()


def choose_plan_options(engine: str, bundle: Bundle, options: PlanOptions, cache: Path | None = None) -> None:
    """Keep options for a bundle; raises OSError or OutputError where the cache cannot be written."""
    path = _options_file(engine, bundle, cache)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(asdict(options), sort_keys=True) + "\n").encode())


def _options_file(engine: str, bundle: Bundle, cache: Path | None) -> Path:
    return (cache or cache_folder()) / "plans" / f"{engine}-{bundle.manifest.id}.json"


class Messages:
    """What TensorRT said, kept so that a failure can be told in its own words."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    @property
    def last(self) -> str:
        """The last error in one line."""
        return " ".join(self.errors[-1].split())[:240] if self.errors else "it gave no reason"


def make_logger(trt: Foreign, messages: Messages) -> Foreign:
    """Return a logger that keeps errors and drops the rest. The first logger of a process serves all later ones."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # required; without it the object cannot be used

        def log(self, severity: Foreign, text: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.errors.append(text)

    return Log()


def cannot_start(messages: Messages) -> EngineError:
    """Return the error of a constructor of TensorRT's that gave nothing."""
    return EngineError(
        f"TensorRT cannot start ({messages.last})", remedy="check the GPU and its driver ('lare2-rt doctor')"
    )


def build_plan(
    trt: Foreign, graph: Path, options: PlanOptions, *, progress: Progress, timings: bytes = b""
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
        raise cannot_start(messages) from error
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


def _parser_errors(parser: Foreign) -> str:
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    said = [f"{error.node_name() or 'graph'} ({error.node_operator()}): {error.desc()}" for error in found]
    return " ".join("; ".join(said).split())[:240] or "it gave no reason"


def _check_half(trt: Foreign, network: Foreign, name: str) -> None:
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


def _configure(trt: Foreign, config: Foreign, options: PlanOptions, *, timings: bytes, progress: Progress) -> Foreign:
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


def _monitor(trt: Foreign, graph: str, progress: Progress) -> Foreign:
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


def main(module: str, graph: str, target: str, timings: str, options: str) -> None:
    """Build and write a plan, as a child of the engine; lines on standard output tell the progress.

    Args:
        module: of the binding; graph: the ONNX file; target: where the plan goes; timings: the timing cache.
        options: ``PlanOptions`` as JSON.
    """
    known = Path(timings)
    try:
        plan, measured = build_plan(
            importlib.import_module(module),
            Path(graph),
            PlanOptions(**json.loads(options)),
            progress=lambda line: print(line, flush=True),  # noqa: T201 - for the parent
            timings=known.read_bytes() if known.is_file() else b"",
        )
    except EngineError as error:
        sys.exit(str(error))
    except Exception as error:  # the library is loaded from what the user has installed, and that can be broken
        sys.exit(f"{module} failed: {type(error).__name__}: {first_line(error)}")
    written_or_said(lambda: Path(target).write_bytes(plan))
    if measured:
        try:
            known.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_bytes(known, measured)  # atomically: several builds may share it
        except (OSError, OutputError) as error:
            print(f"the timing cache is not kept: {first_line(error)}")  # noqa: T201
