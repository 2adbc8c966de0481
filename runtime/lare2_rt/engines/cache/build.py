"""What engines share that compile: one cached entry per component, made by a script in a process of its own.

A process of its own, because compilers print, leak and take several times the memory of what they make, and because one
that the system kills for that must not take the user's program with it.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...bundle.manifest import ComponentName, Variant
from ...bundle.opening import Bundle
from ...errors import EngineError
from ...host.child import Child, how_it_ended, raise_if_not_written
from ...host.integrity import digest_of
from ..contract import EngineInfo, EngineOptions, Notify
from .cache import CompiledCache
from .entry import Entry, Recipe, read_entry

Build = Callable[[Variant, Path], None]
Facts = Mapping[str, str | int] | Callable[[Variant], Mapping[str, str | int]]


@dataclass(frozen=True, slots=True)
class CompiledChain:
    """The cached entries of all components, held until ``close``."""

    entries: Mapping[ComponentName, Entry]

    @property
    def digest(self) -> str:
        """sha256 in hex over the files of all components."""
        return digest_of({name: entry.digest for name, entry in self.entries.items()})

    def close(self) -> None:
        """Let the entries go."""
        for entry in self.entries.values():
            entry.close()


def compile_chain(
    bundle: Bundle,
    variants: Mapping[ComponentName, Variant],
    options: EngineOptions,
    *,
    info: EngineInfo,
    facts: Facts,
    build: Build,
) -> CompiledChain:
    """Return every component compiled, from the cache where it is there.

    Args:
        info: name, version and precision of the engine.
        facts: what decides the compiled files beside the ONNX files, engine, version and precision; of each variant
            where it is a function.
        build: compiles one variant into an empty folder; raises EngineError or OSError.

    Raises:
        EngineError: a component cannot be compiled or kept.
    """
    cache = CompiledCache(options.cache)
    entries: dict[ComponentName, Entry] = {}
    try:
        for name, variant in variants.items():
            recipe = _recipe(bundle, name, variant, info, facts)
            entries[name] = cache.open(recipe, lambda folder, v=variant: build(v, folder), notify=options.notify)  # type: ignore[misc]
    except BaseException:
        CompiledChain(entries).close()
        raise
    return CompiledChain(entries)


def made_elsewhere(
    bundle: Bundle, variants: Mapping[ComponentName, Variant], options: EngineOptions, *, info: EngineInfo, facts: Facts
) -> dict[str, Any] | None:
    """Return the entry of one of these graphs that was made with another version of the library or for another GPU.

    None where there is none, or where one that fits is there too.
    """
    folder = CompiledCache(options.cache).folder
    recipes = [_recipe(bundle, name, variant, info, facts) for name, variant in variants.items()]
    if not folder.is_dir() or any((folder / recipe.key).is_dir() for recipe in recipes):
        return None
    ours = {recipe.facts["onnx"]: recipe for recipe in recipes}
    for path in sorted(folder.iterdir()):
        raw = read_entry(path) if path.is_dir() else None
        if raw is None or raw["engine"] != info.name or not isinstance(raw.get("facts"), dict):
            continue
        recipe = ours.get(raw["facts"].get("onnx"))
        if recipe is not None and (
            raw["version"] != recipe.version
            or any(raw["facts"].get(name) != recipe.facts[name] for name in ("gpu", "capability"))
        ):
            return raw
    return None


def _recipe(bundle: Bundle, name: str, variant: Variant, info: EngineInfo, facts: Facts) -> Recipe:
    files = [bundle.manifest.files[file] for file in (variant.graph, *variant.files)]
    return Recipe(
        info.name,
        info.version,
        f"{bundle.manifest.model.name} {name} batch {variant.batch}",
        {
            "onnx": " ".join(entry.sha256 for entry in files),
            "precision": variant.precision,
            **(facts(variant) if callable(facts) else facts),
        },
        sum(entry.size for entry in files),
    )


@contextlib.contextmanager
def onnx_files(bundle: Bundle, variant: Variant, folder: Path) -> Iterator[None]:
    """Let a variant's ONNX files stand in ``folder`` for a ``with`` block.

    Compilers find them there under plain names, whatever the path of the bundle looks like. Raises OSError.
    """
    names = (variant.graph, *variant.files)
    for name in names:
        try:
            (folder / name).symlink_to((bundle.path / name).resolve())
        except (OSError, NotImplementedError):  # file systems and users without links
            shutil.copyfile(bundle.path / name, folder / name)
    yield
    for name in names:
        (folder / name).unlink()


def run_script(
    module: str,
    arguments: Sequence[str | Path],
    *,
    doing: str,
    remedy: str,
    cwd: Path | None = None,
    notify: Notify = lambda line: None,
) -> None:
    """Run ``main`` of a module in a process of its own, in the folder ``cwd`` or this process's.

    Args:
        doing: what the engine cannot do where that fails; remedy: what helps then.
        notify: called with each line that it prints.

    Raises:
        OSError: it could not write its result.
        EngineError: it failed.
    """
    try:
        child = Child(module, *arguments, cwd=cwd, text=True)
    except OSError as error:
        raise EngineError(f"cannot {doing}: no Python process can be started ({error})", remedy=remedy) from error
    last = ""
    try:
        for line in filter(None, map(str.strip, child.stdout)):
            last = line
            if not line.isdecimal():
                notify(line)
        code, said = child.wait(), child.last_line()
    finally:
        child.close()
    raise_if_not_written(code, last)
    if code:
        why = (said or "it gave no reason") if code > 0 else f"its process was {how_it_ended(code)}"
        if code == -signal.SIGKILL:
            why += ", as it may need more memory than there is"
        raise EngineError(f"cannot {doing}: {why}", remedy=remedy)
