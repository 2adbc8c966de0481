"""``lare2-rt cache``: what engines compiled for this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ..host.console import say

if TYPE_CHECKING:
    from ..engines.cache.cache import CachedEngine, CompiledCache


@dataclass(frozen=True, kw_only=True)
class ClearOptions:
    """The options of ``cache clear``."""

    engine: Annotated[str | None, typer.Option(help="Only what this engine compiled and measured. Default: all.")] = (
        None
    )

    def check(self) -> None:
        """Raise EngineError where there is no such engine."""
        from ..engines.registry import entry_of

        if self.engine is not None:
            entry_of(self.engine)


@dataclass(frozen=True, kw_only=True)
class ListOptions(ClearOptions):
    """The options of ``cache ls``."""

    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False


def list_entries(options: ListOptions) -> None:
    """Show compiled engines: size, last use, and whether somebody is using them."""
    from ..engines.cache.cache import CompiledCache
    from .tables import listing, show, show_json

    options.check()
    cache = CompiledCache()
    entries = [entry for entry in cache.entries() if options.engine in (None, entry.engine)]
    if options.as_json:
        show_json(_document(cache, entries))
        return
    show(listing(("engine", "version", "model", "size", "last used", "key"), map(_row, entries), right=("size",)))
    total = sum(entry.size for entry in entries)
    say(f"{len(entries)} compiled, {total / 1e6:.1f} MB, in {cache.folder}, which may hold {cache.limit / 1e9:g} GB")


def clear(options: ClearOptions) -> None:
    """Remove compiled engines and what was measured with them; what is in use stays."""
    from ..engines.cache.cache import CompiledCache
    from ..engines.measurements import Records

    options.check()
    gone, kept = CompiledCache().clear(options.engine)
    measured = Records().clear(options.engine)
    say(
        f"removed {len(gone)} compiled engines ({sum(entry.size for entry in gone) / 1e6:.1f} MB) and {measured} "
        "measurements"
    )
    if kept:
        say(f"{len(kept)} stay because they are in use; try again when no other lare2-rt runs")


def _row(entry: CachedEngine) -> tuple[str, ...]:
    used = "now" if entry.in_use else time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
    name = (entry.engine, entry.version, entry.label) if entry.engine else ("damaged", "", "")
    return *name, f"{entry.size / 1e6:.1f} MB", used, entry.key[:12]


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
