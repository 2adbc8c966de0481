"""Extraction: a bundle on an engine, a list of files, a feature folder, and only what is missing in between."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ...bundle.locate import locate_bundle
from ...bundle.manifest import Precision
from ...bundle.opening import Bundle, open_bundle
from ...engines.contract import EngineOptions, OpenEngine
from ...engines.selection import open_engine
from ...errors import OutputError, UsageError
from ...host.integrity import Progress
from ...host.machine import available_threads
from ...results.arrow import arrow
from .layout import EngineBuild, FeatureSet, Row, read_features
from .scoring import score
from .sources import Sources, contents_of
from .writer import FeatureWriter, Finished, open_writer

_Results = list[Finished | Row]
DEFAULT_SHARD = 1024  # 16 MiB of SD 1.5's maps


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """What to extract and with what; None means default.

    Attributes:
        bundle, engine, precision, batch, threads, cache, verify: as ``Detector.load`` takes them.
        embeddings: keep CLIP's attention-pooled embeddings too; None: as an existing folder has it, else no.
        shard: rows of a shard; None: as an existing folder has it, else 1024.
    """

    bundle: str | os.PathLike[str] | None = None
    engine: str = "auto"
    precision: Precision | None = None
    batch: int | None = None
    threads: int | None = None
    cache: str | os.PathLike[str] | None = None
    verify: bool = False
    embeddings: bool | None = None
    shard: int | None = None


class Extraction:
    """One run into one folder. ``run`` yields a row for each content that was missing; one with ``error`` failed.

    ::

    with Extraction.open(sources_of("photos"), "features") as extraction:
        for row in extraction.run():
            print(row.path, row.probability, row.error)
    """

    def __init__(self, sources: Sources, bundle: Bundle, engine: OpenEngine, *, writer: FeatureWriter) -> None:
        """Use ``Extraction.open``."""
        self.bundle = bundle
        self.engine = engine
        self._writer = writer
        contents, self._failures = contents_of(sources.files)
        known = writer.finished
        self._missing = [content for content in contents if content.sha256 not in known]
        self._known = len(contents) - len(self._missing)

    @classmethod
    def open(
        cls,
        sources: Sources,
        out: str | os.PathLike[str],
        options: ExtractOptions | None = None,
        *,
        progress: Progress | None = None,
    ) -> Extraction:
        """Open the bundle, the engine and the folder.

        Args:
            sources: from ``sources_of``.
            out: folder; new, empty, or with features of the same LaRE, bundle, engine and precision.
            options: default: the bundle and engine that ``Detector.load`` would take.
            progress: called with numbers of bytes while the bundle is hashed.

        Raises:
            BundleError, EngineError: as ``Detector.load``.
            UsageError: an option is out of range, or the folder is damaged.
            OutputError: the folder holds something else, or cannot be written.
        """
        chosen = options or ExtractOptions()
        folder = Path(out)
        if chosen.threads is not None and chosen.threads < 1:
            raise UsageError(f"threads must be at least 1, not {chosen.threads}")
        if chosen.shard is not None and not 1 <= chosen.shard <= 1 << 20:
            raise UsageError(f"rows of a shard must be 1 to {1 << 20}, not {chosen.shard}")
        if not folder.parent.is_dir():
            raise OutputError(f"the folder {folder.parent} does not exist", remedy="create it first")
        arrow()  # missing, it should not show at the end
        existing = read_features(folder)
        bundle = open_bundle(locate_bundle(chosen.bundle).path, verify=chosen.verify, progress=progress)
        engine_options = EngineOptions(
            threads=chosen.threads or available_threads(),
            precision=chosen.precision,
            batch=chosen.batch,
            cache=Path(chosen.cache) if chosen.cache is not None else None,
        )
        engine, _ = open_engine(chosen.engine, bundle, engine_options)
        try:
            wanted = _wanted(bundle, engine, chosen, existing=existing)
            wanted = wanted.model_copy(update={"index_sha256": sources.index_sha256})
            return cls(sources, bundle, engine, writer=open_writer(folder, wanted))
        except BaseException:
            engine.close()
            raise

    @property
    def features(self) -> FeatureSet:
        """What the folder holds."""
        return self._writer.features

    @property
    def known(self) -> int:
        """Number of contents that an earlier run extracted."""
        return self._known

    @property
    def missing(self) -> int:
        """Number of contents that ``run`` will try."""
        return len(self._missing)

    @property
    def failures(self) -> tuple[Row, ...]:
        """Files and contents without a map so far: first those that could not be read at all."""
        return tuple(self._failures)

    def run(self) -> Generator[Row, None, None]:
        """Extract what is missing, in the order of the sources; the folder is complete when the last row was taken.

        Raises:
            EngineError: the engine failed; what is finished is kept.
            OutputError: the folder cannot be written; what is finished is kept.
        """
        # The disk takes a batch while the engine works on the next one; leaving the block waits for it.
        with ThreadPoolExecutor(1, thread_name_prefix="lare2-store") as disk:
            storing: tuple[_Results, Future[list[Row]]] | None = None
            for results in score(self._missing, self.bundle, self.engine):
                if storing is not None:
                    yield from self._stored(*storing)
                finished = [result for result in results if isinstance(result, Finished)]
                storing = results, disk.submit(self._writer.append, finished)
            if storing is not None:
                yield from self._stored(*storing)
        self._writer.finish(self._failures)

    def _stored(self, results: _Results, writing: Future[list[Row]]) -> Iterator[Row]:
        """Yield a row for each result once the batch is durable."""
        rows = iter(writing.result())
        for result in results:
            if isinstance(result, Row):
                self._failures.append(result)
            yield result if isinstance(result, Row) else next(rows)

    def close(self) -> None:
        """Release engine and folder; a run that was not finished goes on when it is opened again."""
        self.engine.close()
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _wanted(bundle: Bundle, engine: OpenEngine, options: ExtractOptions, *, existing: FeatureSet | None) -> FeatureSet:
    """Describe what this run makes; what is left open follows an existing folder."""
    info, manifest = engine.info, bundle.manifest
    embeddings = options.embeddings
    if embeddings is None:
        embeddings = existing is not None and existing.embedding is not None
    head = next(iter(manifest.components["clip_backbone"]))
    width = next(output.shape[1] for output in head.outputs if output.name == "embedding")
    return FeatureSet(
        lare_id=manifest.lare_id,
        bundle_id=manifest.id,
        bundle_name=manifest.model.name,
        engine=info.name,
        device=info.device,
        precision=info.precision,
        builds=(EngineBuild(version=info.version, threads=info.threads),),
        shape=manifest.method.latent_shape,
        embedding=width if embeddings else None,
        shard=options.shard or (existing.shard if existing is not None else DEFAULT_SHARD),
        index_sha256=None,
    )
