"""Optional pyarrow import and Parquet helpers."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError, first_line
from ..host.atomic import reason


def arrow() -> tuple[Any, Any]:
    """Return the modules (pyarrow, pyarrow.parquet); raises UsageError when they are missing."""
    try:
        # By name: pyarrow ships no types, and what it returns is Any.
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UsageError(
            "pyarrow is needed for Parquet tables and is not installed", remedy="pip install pyarrow"
        ) from None


def encode_table(columns: Mapping[str, tuple[Any, Any]], metadata: Mapping[str, str]) -> bytes:
    """Return a Parquet file of columns given as name -> (values, type); the same input gives the same bytes."""
    pa, pq = arrow()
    schema = pa.schema([(name, kind) for name, (_, kind) in columns.items()], metadata=dict(metadata))
    arrays = [pa.array(values, type=kind) for values, kind in columns.values()]
    sink = io.BytesIO()
    pq.write_table(pa.table(arrays, schema=schema), sink, compression="zstd")
    return sink.getvalue()


def read_table(path: Path, *, types: Mapping[str, Any], schema: str, again: str) -> tuple[Any, dict[str, str]]:
    """Return (table, metadata) of one of our Parquet files, whose columns must have these types and no nulls.

    Args:
        path: the file.
        types: Arrow type of each column that must be there; others are ignored.
        schema: what the metadata key ``lare2_rt.schema`` must say.
        again: how to get a good file; ends each message.

    Raises:
        UsageError: missing, unreadable, not Parquet, of another schema, or with wrong columns.
    """
    pa, pq = arrow()
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", remedy=again) from None
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {reason(error)}", remedy="check the path and its access rights"
        ) from error
    try:
        table = pq.read_table(pa.BufferReader(content), use_threads=False)
        raw = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    except Exception as error:  # a damaged file can raise nearly anything
        raise UsageError(f"{path} is not a Parquet table ({first_line(error)[:100]})", remedy=again) from error
    found = raw.get("lare2_rt.schema")
    if found != schema:
        raise UsageError(f"{path} has schema {json.dumps(found)[:80]} where {schema} is needed", remedy=again)
    for name, kind in types.items():
        if name not in table.column_names or table.schema.field(name).type != kind:
            raise UsageError(f"{path} has no column {name} of type {kind}", remedy=again)
        if table.column(name).null_count:
            raise UsageError(f"{path} has empty cells in its column {name}", remedy=again)
    return table, raw
