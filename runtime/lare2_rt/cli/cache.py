"""``lare2-rt cache``: what engines compiled for this machine."""

from __future__ import annotations

import json
import sys
import time

from rich import box
from rich.table import Table
from rich.text import Text

from ..engines.cache.cache import CachedEngine, CompiledCache
from ..engines.measurements import Records
from ..engines.registry import entry_of
from ..host.console import say
from ..host.text import printable
from ..results.writers import print_tables


def show(engine: str | None, *, as_json: bool) -> None:
    """Print the entries of the cache; raises EngineError where there is no such engine."""
    _check(engine)
    cache = CompiledCache()
    entries = [entry for entry in cache.entries() if engine in (None, entry.engine)]
    if as_json:
        json.dump(_document(cache, entries), sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("engine", "version", "model", "size", "last used", "key"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "size" else "left")
    for entry in entries:
        used = "now" if entry.in_use else time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        name = (entry.engine, entry.version, entry.label) if entry.engine else ("damaged", "", "")
        facts = (*name, f"{entry.size / 1e6:.1f} MB", used, entry.key[:12])
        table.add_row(*(Text(printable(fact)) for fact in facts))
    print_tables((table,), sys.stdout, colour=sys.stdout.isatty())
    total = sum(entry.size for entry in entries)
    say(f"{len(entries)} compiled, {total / 1e6:.1f} MB, in {cache.folder}, which may hold {cache.limit / 1e9:g} GB")


def clear(engine: str | None) -> None:
    """Remove entries and records, and say how many. Raises EngineError or OutputError."""
    _check(engine)
    gone, kept = CompiledCache().clear(engine)
    measured = Records().clear(engine)
    say(
        f"removed {len(gone)} compiled engines ({sum(entry.size for entry in gone) / 1e6:.1f} MB) and {measured} "
        "measurements"
    )
    if kept:
        say(f"{len(kept)} stay because they are in use; try again when no other lare2-rt runs")


def _check(engine: str | None) -> None:
    if engine is not None:
        entry_of(engine)


def _document(cache: CompiledCache, entries: list[CachedEngine]) -> dict[str, object]:
    return {
        "schema": "lare2-rt/cache/1",
        "folder": str(cache.folder),
        "limit": cache.limit,
        "entries": [
            {
                "key": entry.key,
                "engine": entry.engine or None,
                "version": entry.version or None,
                "model": entry.label or None,
                "size": entry.size,
                "used": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entry.used)),
                "in_use": entry.in_use,
            }
            for entry in entries
        ],
    }
