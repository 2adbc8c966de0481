"""A results file in the making that survives a kill: what it holds, and what is still to be done.

It is written line by line under another name, ``NAME.partial``, as JSON Lines or CSV, and gets its name when it is
complete. A kill can cut its last line at most, which is cut off then and its image scored again.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..columns import SCHEMA, csv_columns
from ..detection import DecisionRule, Provenance
from ..errors import UsageError
from ..host.text import spreadsheet_safe
from .parquet import MAGIC, read_records
from .writers import json_line

Lines = Literal["jsonl", "csv"]
Identity = tuple[str | None, ...]
T = TypeVar("T")
_NEEDED = {"source", "verdict", "error"}
_ASPECTS = ("bundle", "engine", "precision", "lower threshold", "upper threshold", "crops")


@dataclass(slots=True)
class Earlier:
    """What a file holds already.

    Attributes:
        sources: how often each source has a result, as its name stands in the file.
        verdicts: of each result, None where the image failed.
        end: bytes up to the end of the last whole line.
        identity: what made the results, see ``identity_of``; None where there are none.
        columns: headings of a CSV file; those of an older version are fewer.
    """

    sources: Counter[str] = field(default_factory=Counter)
    verdicts: list[str | None] = field(default_factory=list)
    end: int = 0
    identity: Identity | None = None
    columns: tuple[str, ...] = ()

    def missing(self, sources: Iterable[T], name: Callable[[T], str]) -> list[T]:
        """Return the sources without a result, in order; one that is given twice needs two."""
        left, missing = self.sources.copy(), []
        for source in sources:
            if left[name(source)] > 0:
                left[name(source)] -= 1
            else:
                missing.append(source)
        return missing

    def check(self, wanted: Identity, path: Path) -> None:
        """Raise UsageError where other results would be mixed with these."""
        different = [
            f"{name}: {old[:12] or 'none'} there, {new[:12] or 'none'} now"
            for name, old, new in zip(_ASPECTS, self.identity or wanted, wanted, strict=True)
            if old is not None and new is not None and old != new
        ]
        if different:
            raise UsageError(
                f"{path} was begun with something else ({'; '.join(different)})",
                remedy="go on with the same, or remove it to begin anew",
            )


def identity_of(provenance: Provenance, rule: DecisionRule) -> Identity:
    """Return what the results of one file have in common; the rest may change, and each record names its own."""
    thresholds = rule.real_below, rule.generated_from
    return _identity(provenance.bundle_id, provenance.engine, provenance.precision, *thresholds, provenance.crops)


def shown_name(source: str, form: Lines) -> str:
    """Return how a source's name stands in a file."""
    return spreadsheet_safe(source) if form == "csv" else source


def read_earlier(path: Path, form: Lines) -> Earlier:
    """Read a file, complete or in the making, a line at a time.

    Raises:
        UsageError: it holds something else, or is damaged in its midst.
        OSError: it cannot be read.
    """
    earlier = Earlier()
    for number, line in enumerate(lines_of(path), 1):
        if not line.endswith(b"\n"):
            break  # cut by a kill
        if form == "csv" and number == 1:
            earlier.columns = _csv_head(line, path)
        else:
            try:
                source, verdict, identity = _csv_row(line, earlier.columns) if form == "csv" else _record(line)
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UsageError(
                    f"line {number} of {path} is not a lare2-rt result",
                    remedy="fix or delete that line, or choose another name",
                ) from None
            earlier.sources[source] += 1
            earlier.verdicts.append(verdict)
            earlier.identity = earlier.identity or identity
        earlier.end += len(line)
    return earlier


def lines_of(path: Path) -> Iterator[bytes]:
    """Yield the lines of a complete file, of a Parquet file those that would make it; raises OSError or UsageError."""
    if is_parquet(path):
        for record in read_records(path):
            yield json_line(record).encode()
        return
    with path.open("rb") as stream:
        yield from stream


def is_parquet(path: Path) -> bool:
    """Tell by its first bytes; raises OSError."""
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def relation(partial: Path, complete: Iterable[bytes]) -> Literal["shorter", "longer", "other"]:
    """Tell whether a file in the making is the beginning of a complete one's lines, goes on from them, or neither."""
    with partial.open("rb") as stream:
        for line in complete:
            ours = stream.readline()
            if ours != line:
                return "shorter" if line.startswith(ours) and not stream.read(1) else "other"
    return "longer"


def _record(line: bytes) -> tuple[str, str | None, Identity]:
    record: dict[str, Any] = json.loads(line)
    if record["schema"] != SCHEMA:
        raise ValueError("another schema")
    engine, decision = record["engine"], record["decision"]
    thresholds = decision["real_below"], decision["generated_from"]
    crops = record.get("crops") or 1  # none: from before there was a choice
    identity = _identity(record["bundle"]["id"], engine["name"], engine["precision"], *thresholds, crops)
    return str(record["source"]), None if record["error"] is not None else str(record["verdict"]), identity


def _csv_head(line: bytes, path: Path) -> tuple[str, ...]:
    found = tuple(line.decode(errors="replace").rstrip("\n").split(","))
    if not _NEEDED <= set(found) <= set(csv_columns()) or len(set(found)) != len(found):
        raise UsageError(
            f"{path} does not have the columns of lare2-rt's CSV files", remedy="remove it, or choose another name"
        )
    return found


def _csv_row(line: bytes, columns: tuple[str, ...]) -> tuple[str, str | None, Identity]:
    (cells,) = csv.reader(io.StringIO(line.decode(), newline=""))
    row = dict(zip(columns, cells, strict=True))
    names = ("bundle_id", "engine", "precision", "real_below", "generated_from")
    crops = row.get("crops", "1")  # from before there was a choice
    return row["source"], None if row["error"] else row["verdict"], (*(row.get(name) for name in names), crops)


def _identity(*values: str | float | None) -> tuple[str, ...]:
    return tuple("" if value is None else str(value) for value in values)
