"""Optional pyarrow import and Parquet helpers; results as Parquet, written and read a few at a time."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from .. import columns
from ..errors import UsageError, first_line
from ..host.atomic import reason
from ..host.text import decode_name, encode_name

MAGIC = b"PAR1"
_GROUP = 1000  # records held until they are written: about a megabyte


class ParquetRecords:
    """Writes records one by one onto a binary stream; ``end`` completes the file. Raises UsageError without pyarrow."""

    def __init__(self, stream: IO[bytes]) -> None:
        pa, pq = arrow()
        self._pa, self._schema = pa, _schema(pa)
        self._writer = pq.ParquetWriter(stream, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, record: dict[str, Any]) -> None:
        """Write one record as ``Detection.as_dict`` gives it."""
        timings = list(record["timings_ms"].items())
        texts = {name: _text(record[name]) for name in ("source", "error")}
        bundle = {**record["bundle"], "path": _text(record["bundle"]["path"])}
        self._rows.append({**record, **texts, "bundle": bundle, "timings_ms": timings})
        if len(self._rows) >= _GROUP:
            self._flush()

    def end(self) -> None:
        """Write the rest and the footer."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows.clear()


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file that ``ParquetRecords`` wrote, in order; raises UsageError for any other."""
    _, pq = arrow()
    try:
        with pq.ParquetFile(path) as file:
            if (file.schema_arrow.metadata or {}).get(b"lare2_rt.schema") != columns.SCHEMA.encode():
                raise UsageError(f"{path} holds no results of lare2-rt", remedy="choose another name")
            for batch in file.iter_batches(_GROUP):
                for record in batch.to_pylist():
                    record["timings_ms"] = dict(record["timings_ms"])
                    record["bundle"]["path"] = decode_name(record["bundle"]["path"])
                    for name in ("source", "error"):
                        record[name] = None if record[name] is None else decode_name(record[name])
                    yield record
    except UsageError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        raise UsageError(
            f"{path} is not a Parquet file ({first_line(error)[:100]})", remedy="choose another name"
        ) from error


def _text(value: str | None) -> str | None:
    return None if value is None else encode_name(value)


def _schema(pa: Any) -> Any:  # noqa: ANN401 - pyarrow has no types
    text, number = pa.string(), pa.float64()
    types = {"string": text, "number": number, "integer": pa.int64(), "boolean": pa.bool_()}
    types |= {"array": pa.list_(number), "object": pa.map_(text, number)}

    def fields(above: str) -> list[tuple[str, Any]]:
        found = []
        for column in columns.COLUMNS:
            parent, _, name = column.path.rpartition(".")
            if parent == above:
                found.append((name, types[column.type] if column.attribute else pa.struct(fields(name))))
        return found

    return pa.schema(fields(""), metadata={"lare2_rt.schema": columns.SCHEMA})


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
