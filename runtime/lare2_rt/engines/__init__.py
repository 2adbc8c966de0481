"""The engines, and the choice between them with a reason for every one that is not taken."""

from __future__ import annotations

from dataclasses import dataclass

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

    ``auto`` tries them in order; a name is taken or refused, never replaced by another engine.

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
        reason = engine.why_not(bundle, options)
        if reason is None:
            return engine, tuple(rejected)
        rejected.append(Rejected(engine.name, reason))
    raise EngineError("no usable engine: " + "; ".join(f"{r.name}: {r.reason}" for r in rejected))


__all__ = ["ENGINES", "Engine", "EngineInfo", "EngineOptions", "OpenEngine", "Rejected", "select_engine"]
