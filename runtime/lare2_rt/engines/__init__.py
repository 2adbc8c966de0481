"""The engines: the contract that each keeps, the registry of what there is, and the choice between them."""

from .contract import Engine, EngineInfo, EngineOptions, Notify, OpenEngine
from .registry import engine_named, entry_of
from .selection import Rejected, load_engine, open_engine, prepare_engine, select_engine, why_not

__all__ = [
    "Engine",
    "EngineInfo",
    "EngineOptions",
    "Notify",
    "OpenEngine",
    "Rejected",
    "engine_named",
    "entry_of",
    "load_engine",
    "open_engine",
    "prepare_engine",
    "select_engine",
    "why_not",
]
