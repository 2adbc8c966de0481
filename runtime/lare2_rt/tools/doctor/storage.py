"""The bundle that would be used, and the cache."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ...bundle.locate import embedded_bundle, locate_bundle
from ...bundle.opening import open_bundle
from ...engines.cache.cache import CachedEngine, CompiledCache
from ...engines.registry import ENGINES
from ...errors import Lare2Error
from ...host.atomic import reason
from ...host.integrity import cache_folder
from .finding import Finding, broken

_LEAST_DISK = 500_000_000  # bytes; an engine compiled from the full-size model takes more, and says so itself


def check_bundle(named: str | None) -> Iterator[Finding]:
    """Yield whether the chosen bundle is whole and decides, and whether the embedded one is."""
    located = locate_bundle(named)
    origin = {"named": "named by --bundle", "embedded": "embedded"}.get(located.origin, f"from {located.origin}")
    yield from _one_bundle(located.path, "in use", origin)
    if located.origin != "embedded":
        yield from _one_bundle(embedded_bundle(), "embedded", "embedded")


def _one_bundle(path: Path, name: str, origin: str) -> Iterator[Finding]:
    try:
        bundle = open_bundle(path)
    except Lare2Error as error:
        remedy = error.remedy or "report it"
        if origin == "embedded":
            remedy = "pip install --force-reinstall --no-deps lare2-rt"
        elif origin == "from LARE2_BUNDLE":
            remedy += "; or set LARE2_BUNDLE to another bundle, or unset it for the embedded one"
        yield Finding("bundle", name, "bad", f"{error.problem} ({origin})", remedy)
        return
    manifest = bundle.manifest
    facts = {"id": manifest.id, "name": manifest.model.name, "origin": origin}
    yield Finding("bundle", name, "ok", f"{bundle.label} is whole ({origin})", facts=facts)
    reservation = manifest.rule.reservation
    if name == "in use" and reservation is not None:
        yield Finding("bundle", "verdicts", "warn", *reservation, {"calibration": manifest.rule.calibration})


def check_cache() -> Iterator[Finding]:
    """Yield whether the cache can be written, what it holds, and what of that is of no use any more."""
    folder = cache_folder()
    yield _writable(folder)
    yield from _hashes(folder / "hashes.json")
    try:
        cache = CompiledCache()
        entries = cache.entries()
    except Lare2Error as error:
        yield broken("cache", "limit", error)
        return
    except OSError as error:
        remedy = "check its access rights, or set LARE2_CACHE to another folder"
        yield Finding("cache", "compiled", "bad", f"cannot be listed: {reason(error)}", remedy)
        return
    total = sum(entry.size for entry in entries)
    facts = {"entries": len(entries), "bytes": total, "limit_bytes": cache.limit}
    text = f"{len(entries)} engines, {total / 1e6:.1f} MB of {cache.limit / 1e9:g} GB"
    yield Finding("cache", "compiled", "ok", text, facts=facts)
    yield from _owner(cache.folder)
    yield from _stale(entries)


def _writable(folder: Path) -> Finding:
    """Really write, where the folder is or would be made: access rights alone know nothing of full or broken disks."""
    place = folder
    while not os.path.lexists(place) and place.parent != place:
        place = place.parent
    remedy = "check its access rights, or set LARE2_CACHE to a folder that you can write"
    try:
        with tempfile.TemporaryFile(dir=place) as handle:
            handle.write(b"x" * 4096)
            handle.flush()
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Finding("cache", "folder", "bad", f"{folder} cannot be written: {reason(error)}", remedy)
    facts = {"free_bytes": free, "exists": place == folder}
    text = f"{folder} can be written, {free / 1e9:.1f} GB free"
    if free < _LEAST_DISK:
        remedy = "free some space, or set LARE2_CACHE to a folder on another disk; 'lare2-rt cache clear' frees its own"
        return Finding("cache", "folder", "bad", f"the disk is full: {text}", remedy, facts)
    return Finding("cache", "folder", "ok", text, facts=facts)


def _hashes(path: Path) -> Iterator[Finding]:
    try:
        json.loads(path.read_bytes())
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError):
        text = "hashes.json is damaged, so bundles are hashed anew each time"
        yield Finding("cache", "hashes", "warn", text, f"remove {path}")


def _owner(folder: Path) -> Iterator[Finding]:
    if not folder.is_dir() or not hasattr(os, "geteuid"):
        return
    status = folder.stat()
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        text, remedy = f"other users can write to {folder} and so put code there", f"chmod 700 {folder}"
        yield Finding("cache", "owner", "bad", text, f"{remedy}, or set LARE2_CACHE to a folder of your own")


def _stale(entries: list[CachedEngine]) -> Iterator[Finding]:
    damaged = [entry for entry in entries if not entry.engine]
    if damaged:
        text = f"{len(damaged)} compiled engines are damaged; they are compiled again when needed"
        yield Finding("cache", "damaged", "warn", text, "lare2-rt cache clear")
    versions = {engine.name: engine.version for engine in ENGINES}
    old = [entry for entry in entries if entry.engine and entry.version != versions.get(entry.engine)]
    if old:
        names = sorted({f"{entry.engine} {entry.version}" for entry in old})
        size = sum(entry.size for entry in old) / 1e6
        text = f"{len(old)} compiled engines ({size:.1f} MB) are of versions not installed here: {', '.join(names)}"
        commands = " && ".join(f"lare2-rt cache clear --engine {name}" for name in sorted({e.engine for e in old}))
        yield Finding("cache", "stale", "warn", text, commands)
