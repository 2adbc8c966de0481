"""``lare2-rt extract``: LaRE maps into shards, with progress, and a sentence for every image that fails."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import EngineError, OutputError
from ..host.console import EXIT_FILES, Interrupted, ignore_interrupts, say
from ..host.progress import counting, hashing_progress
from .options import BundleFolder, EngineChoice, Root, Verify, located

if TYPE_CHECKING:
    from ..tools.features.extract import Extraction

_RESUME = "what is finished is kept: run the same command again to go on"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command; None means default."""

    data: Annotated[str, typer.Argument(metavar="DATA", help="Index from 'lare2-rt index', list, or folder of images.")]
    out: Annotated[str, typer.Option(help="Folder of the features; one that was begun is completed.")]
    embeddings: Annotated[
        bool | None,
        typer.Option("--embeddings/--no-embeddings", help="Keep CLIP embeddings too. Default: as the folder has it."),
    ] = None
    shard: Annotated[
        int | None, typer.Option(min=1, max=1 << 20, help="Rows of a shard. Default: as the folder has it, else 1024.")
    ] = None
    root: Root = None
    bundle: BundleFolder = None
    engine: EngineChoice
    verify: Verify = False


def run(options: Options) -> int:
    """Extract LaRE maps into shards, once per content; a run that was stopped goes on where it was.

    Exit code: 0 all extracted, 1 some images failed, 2 nothing could start, 130 interrupted.
    """
    from ..tools.features.extract import Extraction, ExtractOptions
    from ..tools.features.sources import sources_of

    with counting("reading") as step:
        sources = sources_of(options.data, root=options.root, threads=options.engine.threads, progress=step)
    wanted = ExtractOptions(
        bundle=located(options.bundle),
        **asdict(options.engine),
        verify=options.verify,
        embeddings=options.embeddings,
        shard=options.shard,
    )
    with hashing_progress() as hashed:
        extraction = Extraction.open(sources, options.out, wanted, progress=hashed, notify=say)
    with extraction:
        _announce(extraction)
        for failure in extraction.failures:
            say(f"{failure.path}: {failure.error}")
        return _extract(extraction, options.out)


def _extract(extraction: Extraction, out: str) -> int:
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


def _announce(extraction: Extraction) -> None:
    from ..bundle.locate import embedded_bundle

    bundle, info = extraction.bundle, extraction.engine.info
    manifest = bundle.manifest
    place = "embedded" if bundle.path == embedded_bundle() else bundle.path
    say(
        f"bundle {manifest.model.name} ({manifest.id[:12]}, {place}), LaRE {manifest.lare_id[:12]}, on "
        f"{info.name} {info.version} {info.device} {info.precision}, {info.threads} threads"
    )
