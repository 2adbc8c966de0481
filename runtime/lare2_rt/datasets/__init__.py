"""Labelled image sets: one index table for every layout, what is wrong with a set, and copies that are matched.

Everything is imported on first use; pyarrow only where a table is read or written.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .audit import AuditReport, audit_index
    from .build import Indexed, build_index
    from .matched import MatchedOptions, write_matched
    from .split import SplitOptions, arrange_splits
    from .table import Index, IndexRow, read_index, write_index

_WHERE = {
    "AuditReport": "audit",
    "Index": "table",
    "IndexRow": "table",
    "Indexed": "build",
    "MatchedOptions": "matched",
    "SplitOptions": "split",
    "audit_index": "audit",
    "build_index": "build",
    "arrange_splits": "split",
    "read_index": "table",
    "write_index": "table",
    "write_matched": "matched",
}

__all__ = [
    "AuditReport",
    "Index",
    "IndexRow",
    "Indexed",
    "MatchedOptions",
    "SplitOptions",
    "arrange_splits",
    "audit_index",
    "build_index",
    "read_index",
    "write_index",
    "write_matched",
]


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
