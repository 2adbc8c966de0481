"""The JSON schema of a result and the tables of docs/output.md, made of the table of columns."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from lare2_rt import columns

SCHEMA_FILE = "docs/schema/detection-1.schema.json"
_WORDS = {"string": "text", "integer": "whole number", "boolean": "true or false", "array": "two numbers"}
_SCORED = ("verdict", "probability", "logits", "lare_mean")  # null if and only if there is an error


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the record."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:lare2-rt:detection:1",
        "title": "One result of lare2-rt infer",
        "description": "Fields are only ever added, so readers must ignore those they do not know.",
        **_object(""),
    }
    types = {name: {"type": schema["properties"][name].get("type", ["string"])[0]} for name in _SCORED}
    schema["if"] = {"properties": {"error": {"type": "null"}}}
    schema["then"] = {"properties": {**types, "timings_ms": {"required": ["decode", "total"]}}}
    schema["else"] = {"properties": {name: {"type": "null"} for name in _SCORED}}
    return schema


def schema_text() -> str:
    """Return the content of the committed file."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def record_table() -> str:
    """Return the table of the fields of the record."""
    rows = []
    for column in columns.COLUMNS:
        words = "object of numbers" if "additionalProperties" in column.kind else _WORDS.get(column.type, column.type)
        null = " or null" if column.null else ""
        rows.append(f"| `{column.path}` | {words}{null} | {_meaning(column)} |")
    return "\n".join(("| field | type | meaning |", "|---|---|---|", *rows))


def csv_table() -> str:
    """Return the table of the columns of CSV."""
    rows = []
    for _, heading, column, item in sorted(columns.cells(), key=lambda cell: cell[0]):
        part = "" if item is None else f"{('first', 'second')[item]} of " if isinstance(item, int) else f"`{item}` of "
        rows.append(f"| `{heading}` | {part}`{column.path}` |")
    return "\n".join(("| column | field of the record |", "|---|---|", *rows))


def _object(above: str) -> dict[str, Any]:
    parts = {}
    for column in columns.COLUMNS:
        parent, _, name = column.path.rpartition(".")
        if parent == above:
            part = dict(column.kind) if column.attribute else _object(name)
            for key in ("type", "enum") if column.null else ():
                if key in part:
                    part[key] = [part[key], "null"] if key == "type" else [*part[key], None]
            parts[name] = {**part, "description": _meaning(column)}
    return {"type": "object", "additionalProperties": True, "required": list(parts), "properties": parts}


def _meaning(column: columns.Column) -> str:
    return f"{column.meaning}; null {column.null}" if column.null else column.meaning


TABLES: dict[str, Callable[[], str]] = {"record": record_table, "csv": csv_table}
