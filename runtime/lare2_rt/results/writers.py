"""Writing results: a table for people, JSON, JSON Lines and CSV for programs. File names are hostile in all of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

from ..columns import csv_columns, csv_row
from ..detection import Detection
from ..host.text import printable

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


class Writer(Protocol):
    """Receives results one by one; ``end`` completes the document."""

    def add(self, result: Detection) -> None:
        """Write one result."""

    def end(self) -> None:
        """Complete the document."""


def format_for(suffix: str) -> Format | None:
    """Return the format that a file suffix such as ``.csv`` stands for, or None."""
    return _SUFFIXES.get(suffix.lower())


def writer_for(form: Format, stream: IO[str], *, colour: bool = False, columns: Sequence[str] | None = None) -> Writer:
    """Return a writer of ``form`` onto a text stream.

    Args:
        form: any but ``parquet``, which is no text: see ``parquet_writer``.
        stream: takes the document.
        colour: only matters to the table.
        columns: headings of a CSV document to go on with; None to begin one.
    """
    if form == "table":
        return _Table(stream, colour=colour)
    if form == "csv":
        return _Csv(stream, columns)
    return _Json(stream) if form == "json" else _JsonLines(stream)


def parquet_writer(stream: IO[bytes]) -> Writer:
    """Return a writer of Parquet onto a binary stream; raises UsageError without pyarrow."""
    return _Parquet(stream)


def json_line(record: dict[str, Any]) -> str:
    """Return one line of JSON Lines; ASCII escapes every control character and lone surrogate, so any name survives."""
    return json.dumps(record, ensure_ascii=True, allow_nan=False) + "\n"


class _Text:
    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def end(self) -> None:
        self._stream.flush()


class _JsonLines(_Text):
    def add(self, result: Detection) -> None:
        self._stream.write(json_line(result.as_dict()))
        self._stream.flush()


class _Json(_Text):
    """One array of records."""

    _count = 0

    def add(self, result: Detection) -> None:
        self._stream.write("[\n" if self._count == 0 else ",\n")
        self._stream.write(json.dumps(result.as_dict(), ensure_ascii=True, allow_nan=False, indent=2))
        self._count += 1

    def end(self) -> None:
        self._stream.write("\n]\n" if self._count else "[]\n")
        super().end()


class _Csv(_Text):
    def __init__(self, stream: IO[str], columns: Sequence[str] | None) -> None:
        super().__init__(stream)
        self._csv = csv.DictWriter(stream, columns or csv_columns(), extrasaction="ignore", lineterminator="\n")
        if columns is None:
            self._csv.writeheader()

    def add(self, result: Detection) -> None:
        self._csv.writerow(csv_row(result.as_dict()))
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
        for name in ("probability", "LaRE", "ms"):
            table.add_column(name, justify="right", no_wrap=True)
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
