"""Writing results: a table for people, JSON, JSON Lines and CSV for programs. File names are hostile in all of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

from ..detection import Detection
from ..host.text import printable, spreadsheet_safe

if TYPE_CHECKING:
    from rich.table import Table

Format = Literal["table", "json", "jsonl", "csv", "parquet"]
_SUFFIXES: dict[str, Format] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "table",
}
CSV_COLUMNS = (
    "source",
    "verdict",
    "probability",
    "logit_real",
    "logit_generated",
    "lare_mean",
    "error",
    "calibration",
    "bundle_name",
    "bundle_id",
    "engine",
    "engine_version",
    "precision",
    "total_ms",
    "real_below",
    "generated_from",
    "crops",
    "note",
)


class Writer(Protocol):
    """Receives results one by one; ``end`` completes the document."""

    def add(self, result: Detection) -> None:
        """Write one result."""

    def end(self) -> None:
        """Complete the document."""


def format_for(suffix: str) -> Format | None:
    """Return the format that a file suffix such as ``.csv`` stands for, or None."""
    return _SUFFIXES.get(suffix.lower())


def writer_for(form: Format, stream: IO[str], *, colour: bool = False, head: bool = True) -> Writer:
    """Return a writer of ``form`` onto a text stream.

    Args:
        form: any but ``parquet``, which is no text: see ``parquet_writer``.
        stream: takes the document.
        colour: only matters to the table.
        head: whether CSV begins with its headings; False to go on with a document.
    """
    if form == "table":
        return _Table(stream, colour=colour)
    if form == "csv":
        return _Csv(stream, head=head)
    return _Json(stream) if form == "json" else _JsonLines(stream)


def parquet_writer(stream: IO[bytes]) -> Writer:
    """Return a writer of Parquet onto a binary stream; raises UsageError without pyarrow."""
    return _Parquet(stream)


def json_line(record: dict[str, Any]) -> str:
    """Return one line of JSON Lines; ASCII escapes every control character and lone surrogate, so any name survives."""
    return json.dumps(record, ensure_ascii=True, allow_nan=False) + "\n"


class _JsonLines:
    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def add(self, result: Detection) -> None:
        self._stream.write(json_line(result.as_dict()))
        self._stream.flush()

    def end(self) -> None:
        self._stream.flush()


class _Json:
    """One array of records."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._count = 0

    def add(self, result: Detection) -> None:
        self._stream.write("[\n" if self._count == 0 else ",\n")
        self._stream.write(json.dumps(result.as_dict(), ensure_ascii=True, allow_nan=False, indent=2))
        self._count += 1

    def end(self) -> None:
        self._stream.write("\n]\n" if self._count else "[]\n")
        self._stream.flush()


class _Csv:
    def __init__(self, stream: IO[str], *, head: bool) -> None:
        self._stream = stream
        self._csv = csv.writer(stream, lineterminator="\n")
        if head:
            self._csv.writerow(CSV_COLUMNS)

    def add(self, result: Detection) -> None:
        real, generated = result.logits or (None, None)
        provenance = result.provenance
        self._csv.writerow(
            [
                spreadsheet_safe(result.source),
                result.verdict,
                result.probability,
                real,
                generated,
                result.lare_mean,
                spreadsheet_safe(result.error or ""),
                result.rule.calibration,
                provenance.bundle_name,
                provenance.bundle_id,
                provenance.engine,
                provenance.engine_version,
                provenance.precision,
                round(result.timings["total"], 3) if "total" in result.timings else None,
                result.rule.real_below,
                result.rule.generated_from,
                provenance.crops,
                result.rule.note,
            ]
        )
        self._stream.flush()

    def end(self) -> None:
        self._stream.flush()


class _Parquet:
    def __init__(self, stream: IO[bytes]) -> None:
        from .parquet import ParquetRecords  # pyarrow is an extra

        self._records = ParquetRecords(stream)

    def add(self, result: Detection) -> None:
        self._records.add(result.as_dict())

    def end(self) -> None:
        self._records.end()


class _Table:
    def __init__(self, stream: IO[str], *, colour: bool) -> None:
        self._stream = stream
        self._colour = colour
        self._rows: list[tuple[str, ...]] = []

    def add(self, result: Detection) -> None:
        # Only the shown words are kept: a record holds two maps, and columns need every row before the first is drawn.
        name = printable(result.source)
        if result.error is not None:
            self._rows.append((name, "failed", "", "", ""))
            return
        milliseconds = result.timings.get("total", 0)
        numbers = (f"{result.probability:.4f}", f"{result.lare_mean:.4f}", f"{milliseconds:.0f}")
        self._rows.append((name, result.verdict or "", *numbers))

    def end(self) -> None:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("image", overflow="fold")
        table.add_column("verdict", no_wrap=True)
        table.add_column("probability", justify="right", no_wrap=True)
        table.add_column("LaRE", justify="right", no_wrap=True)
        table.add_column("ms", justify="right", no_wrap=True)
        styles = {"generated": "bold red", "real": "bold green", "unsure": "yellow", "failed": "red"}
        for name, verdict, *numbers in self._rows:
            # Text, not str: square brackets in a name are no markup.
            table.add_row(Text(name), Text(verdict, styles.get(verdict, "")), *numbers)
        print_tables((table,), self._stream, colour=self._colour)


def print_tables(tables: Iterable[Table], stream: IO[str], *, colour: bool) -> None:
    """Print rich tables: to a terminal's width with colours, else in full width without trailing blanks."""
    from rich.console import Console

    if colour:
        console = Console(file=stream, highlight=False, emoji=False)
        for table in tables:
            console.print(table)
    else:
        # Away from a terminal nothing may be wrapped to an invented width, nor coloured because FORCE_COLOR is set.
        console = Console(
            file=stream, width=10_000, highlight=False, emoji=False, force_terminal=False, color_system=None
        )
        for table in tables:
            with console.capture() as capture:
                console.print(table)
            stream.writelines(line.rstrip() + "\n" for line in capture.get().splitlines())
    stream.flush()
