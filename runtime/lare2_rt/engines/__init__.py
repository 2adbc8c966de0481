"""The engines, and the choice between them with a reason for every one that is not taken."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..bundle import Bundle
from ..errors import EngineError
from .contract import Engine, EngineInfo, EngineOptions, OpenEngine
from .onnxruntime import OnnxRuntimeEngine

# Fastest first: ``auto`` takes the first that has no reason against it.
ENGINES: tuple[Engine, ...] = (OnnxRuntimeEngine(),)


@dataclass(frozen=True, slots=True)
class Rejected:
    """An engine that was not taken, and why."""

    name: str
    reason: str


def select_engine(name: str, bundle: Bundle, options: EngineOptions) -> tuple[Engine, tuple[Rejected, ...]]:
    """Choose an engine for a bundle.

    ``auto`` tries them in order; a name is taken or refused, never replaced by another engine. An engine whose rows
    differ by position is refused for batches: the same file would get other bits in other company.

    Raises:
        EngineError: no engine of that name, or none usable; the text gives every reason with its remedy.
    """
    if name != "auto" and name not in {engine.name for engine in ENGINES}:
        names = ", ".join(["auto", *(engine.name for engine in ENGINES)])
        raise EngineError(f"there is no engine {name!r}; choose one of {names}")
    rejected: list[Rejected] = []
    for engine in ENGINES:
        if name not in ("auto", engine.name):
            continue
        reason = _unstable(engine, options) or engine.why_not(bundle, _settled(engine, options))
        if reason is None:
            return engine, tuple(rejected)
        rejected.append(Rejected(engine.name, reason))
    raise EngineError("no usable engine: " + "; ".join(f"{r.name}: {r.reason}" for r in rejected))


def open_engine(name: str, bundle: Bundle, options: EngineOptions) -> tuple[OpenEngine, tuple[Rejected, ...]]:
    """Choose an engine as ``select_engine`` does and load it; raises EngineError or BundleError."""
    engine, rejected = select_engine(name, bundle, options)
    running = engine.open(bundle, _settled(engine, options))
    if not engine.position_stable and running.info.batch != 1:
        running.close()
        raise EngineError(f"{engine.name} opened batch {running.info.batch} but may only run at batch 1; report it")
    return running, rejected


def _unstable(engine: Engine, options: EngineOptions) -> str | None:
    if engine.position_stable or options.batch in (None, 1):
        return None
    return f"it gives an image other bits in other rows of a batch, so it runs at batch 1 only, not {options.batch}"


def _settled(engine: Engine, options: EngineOptions) -> EngineOptions:
    """Batch 1 is no mere default of an engine that cannot take batches."""
    return options if engine.position_stable else replace(options, batch=1)


__all__ = ["ENGINES", "Engine", "EngineInfo", "EngineOptions", "OpenEngine", "Rejected", "open_engine", "select_engine"]
