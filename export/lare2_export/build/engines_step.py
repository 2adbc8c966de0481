"""After a bundle: the compiled engines that are asked for, each checked against the reference before it is used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from lare2_rt.bundle.opening import Bundle
from lare2_rt.engines.contract import EngineOptions
from lare2_rt.engines.registry import engine_named, entry_of
from lare2_rt.engines.selection import prepare_engine
from lare2_rt.engines.tensorrt.engine import TensorRtEngine
from lare2_rt.engines.tensorrt.plan import PlanOptions, choose_plan_options, plan_options_of
from lare2_rt.errors import EngineError, UsageError

from .isolate import Report

_MIB = 1 << 20


def plan_options(level: int | None, workspace: int | None) -> PlanOptions:
    """Return how TensorRT's plans are to be built; ``workspace`` in MiB, None for defaults. Raises UsageError."""
    try:
        size = None if workspace is None else workspace * _MIB
        return PlanOptions(workspace=size) if level is None else PlanOptions(workspace=size, level=level)
    except ValueError as error:
        raise UsageError(str(error), remedy="see --help for --optimization-level and --workspace") from error


def check_engines(names: Sequence[str], *, half: bool | None = None, plans: bool = False) -> bool:
    """Return whether any of the engines runs on a GPU.

    The export takes minutes, so what no bundle could mend is told before.

    Args:
        half: whether fp16 graphs are to be exported; None where nobody said.
        plans: whether options for TensorRT's plans were given.

    Raises:
        UsageError: the engines and the other options contradict each other.
        EngineError: there is no such engine, or this machine cannot build for it.
    """
    if "auto" in names:
        raise UsageError(
            "--engine auto would compile for no engine in particular", remedy="name one, such as --engine openvino"
        )
    engines = [engine_named(name) for name in names]
    if plans and not any(isinstance(engine, TensorRtEngine) for engine in engines):
        raise UsageError(
            "--optimization-level and --workspace are for TensorRT's plans",
            remedy="add --engine tensorrt, or leave them out",
        )
    on_gpu = [name for name in names if entry_of(name).device == "cuda"]
    if on_gpu and half is False:
        raise UsageError(
            f"{on_gpu[0]} computes in half precision", remedy=f"leave --no-half out, or --engine {on_gpu[0]}"
        )
    for engine in engines:
        reason = engine.machine_lacks()
        if reason is not None:
            raise EngineError(f"engines for {engine.name} cannot be built here: {reason.problem}", remedy=reason.remedy)
    return bool(on_gpu)


@contextlib.contextmanager
def _chosen(name: str, bundle: Bundle, options: PlanOptions) -> Iterator[None]:
    """Let runs look for plans with these options, from now on if the block succeeds; else as before."""
    if not isinstance(engine_named(name), TensorRtEngine):
        yield
        return
    before = plan_options_of(name, bundle)
    choose_plan_options(name, bundle, options)
    try:
        yield
    except BaseException:
        choose_plan_options(name, bundle, before)
        raise


def build_compiled(bundle: Bundle, names: Sequence[str], options: PlanOptions, *, threads: int, report: Report) -> None:
    """Compile engines into the user's cache, check and, on a GPU, time them.

    Raises:
        EngineError: one cannot be built, or fails parity; the bundle stays as it is, and so do the options by which
            runs find earlier plans.
    """
    for name in names:
        report(f"engine {name}")
        asked = EngineOptions(threads=threads, notify=lambda line: report(f"  {line}"))
        with _chosen(name, bundle, options):
            record = prepare_engine(name, bundle, asked)
        if record is None or record.check is None:
            report(f"  {name} compiles nothing, so there is nothing to build")
            continue
        speed = (
            "" if record.speed is None else f", {record.speed.p50:.1f} ms an image (median of {record.speed.rounds})"
        )
        report(
            f"  {name}: LaRE {record.check.lare:.1e} (relative L2) and probability {record.check.probability:.1e} away "
            f"from the reference{speed}"
        )
