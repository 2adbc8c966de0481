"""Results as Parquet: the records of JSON Lines as nested columns, written and read a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .. import columns
from ..errors import UsageError, first_line
from ..host.text import decode_name, encode_name
from .arrow import arrow

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
