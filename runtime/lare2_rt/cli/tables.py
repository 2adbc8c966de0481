"""Tables and documents of the commands on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from ..host.text import printable
from ..results.writers import print_tables


def facts(values: Mapping[str, object]) -> Table:
    """Return a table of names and values."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        table.add_row(name, Text(printable(str(value))))
    return table


def listing(headings: Iterable[str], rows: Iterable[Iterable[str | Text]], *, right: Collection[str] = ()) -> Table:
    """Return a table with headings; the columns ``right`` hold numbers. Cells are no markup, whatever they hold."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        number = heading in right
        table.add_column(heading, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row))
    return table


def show(*parts: Table | str) -> None:
    """Print tables and lines."""
    for part in parts:
        if isinstance(part, str):
            sys.stdout.write(part + "\n")
        else:
            print_tables((part,), sys.stdout, colour=sys.stdout.isatty())


def show_json(document: object, *, sort_keys: bool = False) -> None:
    """Print a document; ASCII escapes every control character and lone surrogate, so that any file name survives."""
    sys.stdout.write(json.dumps(document, allow_nan=False, indent=2, sort_keys=sort_keys) + "\n")
