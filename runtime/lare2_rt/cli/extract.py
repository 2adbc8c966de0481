"""``lare2-rt extract``: LaRE maps into shards, with progress, and a sentence for every image that fails."""

from __future__ import annotations

import contextlib
import time
import warnings

from ..bundle.locate import embedded_bundle, locate_bundle
from ..bundle.opening import Bundle
from ..engines.contract import OpenEngine
from ..errors import EngineError, OutputError
from ..host.console import EXIT_FILES, Interrupted, ignore_interrupts, say, say_if_restored
from ..host.progress import counting, hashing_progress
from ..tools.features.extract import Extraction, ExtractOptions
from ..tools.features.sources import sources_of

_RESUME = "what is finished is kept: run the same command again to go on"


def run(data: str, out: str, options: ExtractOptions, *, root: str | None) -> int:
    """Extract everything that is missing; return the exit code. Raises Lare2Error before the first image."""
    # The decoder answers in sentences; Pillow's warnings about sizes and damaged metadata would come on top.
    warnings.filterwarnings("ignore", module=r"PIL\b")
    with counting("reading") as step:
        sources = sources_of(data, root=root, threads=options.threads, progress=step)
    say_if_restored(locate_bundle(options.bundle))
    with hashing_progress() as hashed:
        extraction = Extraction.open(sources, out, options, progress=hashed)
    with extraction:
        _announce(extraction.bundle, extraction.engine)
        for failure in extraction.failures:
            say(f"{failure.path}: {failure.error}")
        return _run(extraction, out)


def _run(extraction: Extraction, out: str) -> int:
    done = failed = 0
    begin = time.perf_counter()
    try:
        with counting("extracting") as step, contextlib.closing(extraction.run()) as rows:
            for row in rows:
                done += 1
                failed += bool(row.error)
                if row.error:
                    say(f"{row.path}: {row.error}")
                step(done, extraction.missing)
    except KeyboardInterrupt as error:
        ignore_interrupts()  # all that is left to do takes a moment
        ending = Interrupted(error)
        say(f"{ending} after {done} of {extraction.missing} images; {_RESUME}")
        return ending.code
    except EngineError as error:
        say(f"stopped after {done} of {extraction.missing} images: {error}; {_RESUME}")
        return EXIT_FILES
    except OutputError as error:  # says itself how to go on
        say(f"stopped after {done} of {extraction.missing} images: {error}")
        return EXIT_FILES
    seconds = time.perf_counter() - begin
    rate = f", {(done - failed) / seconds:.1f} images/s" if done > failed else ""
    say(
        f"{out}: {extraction.features.count} maps; now {done - failed} extracted{rate}, {extraction.known} were there, "
        f"{len(extraction.failures)} failed"
    )
    return EXIT_FILES if extraction.failures else 0


def _announce(bundle: Bundle, engine: OpenEngine) -> None:
    info, manifest = engine.info, bundle.manifest
    place = "embedded" if bundle.path == embedded_bundle() else bundle.path
    say(
        f"bundle {manifest.model.name} ({manifest.id[:12]}, {place}), LaRE {manifest.lare_id[:12]}, on "
        f"{info.name} {info.version} {info.device} {info.precision}, {info.threads} threads"
    )
