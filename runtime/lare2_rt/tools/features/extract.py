"""Extraction: a bundle on an engine, a list of files, a feature folder, and only what is missing in between."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from ...bundle.locate import locate_bundle
from ...bundle.manifest import Precision
from ...bundle.opening import Bundle, open_bundle
from ...engines.contract import EngineOptions, Notify, OpenEngine
from ...engines.scoring import not_finite, score_batch
from ...engines.selection import Rejected, open_engine
from ...errors import OutputError, UsageError
from ...host.integrity import Progress, sha256_of
from ...host.machine import thread_count
from ...host.text import printable
from ...pixels.ahead import Cancellation, Decoded, Decoder, batches
from ...results.parquet import arrow
from .layout import EngineBuild, FeatureSet, Row, failed_row, read_features
from .sources import Content, Sources, contents_of
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

    Files are decoded in processes, so that one that crashes or hangs a decoder costs its own map only.

    Attributes:
        bundle, engine: in use; rejected: engines that ``auto`` passed over.

    ::

    with Extraction.open(sources_of("photos"), "features") as extraction:
        for row in extraction.run():
            print(row.path, row.probability, row.error)
    """

    def __init__(
        self,
        sources: Sources,
        bundle: Bundle,
        engine: OpenEngine,
        *,
        rejected: tuple[Rejected, ...],
        decoder: Decoder,
        writer: FeatureWriter,
    ) -> None:
        """Use ``Extraction.open``."""
        self.bundle = bundle
        self.engine = engine
        self.rejected = rejected
        self._decoder = decoder
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
        notify: Notify | None = None,
    ) -> Extraction:
        """Open the bundle, the engine and the folder.

        Args:
            sources: from ``sources_of``.
            out: folder; new, empty, or with features of the same LaRE, bundle, engine and precision.
            options: default: the bundle and engine that ``Detector.load`` would take.
            progress: called with numbers of bytes while the bundle is hashed.
            notify: called with one line before anything that takes long, such as compiling an engine, and for what a
                user should know about the engine.

        Raises:
            BundleError, EngineError: as ``Detector.load``.
            UsageError: an option is out of range, or the folder is damaged.
            OutputError: the folder holds something else, or cannot be written.
        """
        chosen = options or ExtractOptions()
        folder = Path(out)
        threads = thread_count(chosen.threads)
        if chosen.shard is not None and not 1 <= chosen.shard <= 1 << 20:
            raise UsageError(
                f"rows of a shard must be 1 to {1 << 20}, not {chosen.shard}",
                remedy=f"leave it out for {DEFAULT_SHARD}",
            )
        if not folder.parent.is_dir():
            raise OutputError(f"the folder {folder.parent} does not exist", remedy="create it first")
        arrow()  # missing, it should not show at the end
        existing = read_features(folder)
        bundle = open_bundle(locate_bundle(chosen.bundle).path, verify=chosen.verify, progress=progress)
        engine_options = EngineOptions(
            threads=threads,
            precision=chosen.precision,
            batch=chosen.batch,
            cache=Path(chosen.cache) if chosen.cache is not None else None,
            notify=notify,
        )
        with ExitStack() as cleanup:
            decoder = Decoder(bundle.manifest.decoding(), isolate=True)
            cleanup.callback(decoder.close)
            engine, rejected = open_engine(chosen.engine, bundle, engine_options)
            cleanup.callback(engine.close)
            wanted = _wanted(bundle, engine, chosen, existing=existing)
            writer = open_writer(folder, wanted.model_copy(update={"index_sha256": sources.index_sha256}))
            cleanup.callback(writer.close)
            extraction = cls(sources, bundle, engine, rejected=rejected, decoder=decoder, writer=writer)
            cleanup.pop_all()
        return extraction

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
            for results in self._results():
                if storing is not None:
                    yield from self._stored(*storing)
                finished = [result for result in results if isinstance(result, Finished)]
                storing = results, disk.submit(self._writer.append, finished)
            if storing is not None:
                yield from self._stored(*storing)
        self._writer.finish(self._failures)

    def _results(self) -> Iterator[_Results]:
        """Yield what is missing in its order, a list for each batch of the engine; a ``Row`` is a failure."""
        batch, rule = self.engine.info.batch, self.bundle.manifest.rule
        with closing(batches(self._missing, self._attempt, size=batch)) as groups:
            for group in groups:
                images = [decoded.pixels for _, decoded in group if decoded.pixels is not None]
                scores = iter(score_batch(self.engine, images, batch)[0] if images else ())
                results: _Results = []
                for content, decoded in group:
                    score = next(scores) if decoded.pixels is not None else None
                    if score is None or not score.finite:
                        error = decoded.error or str(not_finite())
                        results.append(failed_row(content.sha256, decoded.name, error))
                        continue
                    logits = (float(score.logits[0]), float(score.logits[1]))
                    facts = (score.lare, score.embedding, logits, rule.probability(score.logits))
                    results.append(Finished(content.sha256, decoded.name, *facts))
                yield results

    def _attempt(self, content: Content, cancellation: Cancellation) -> Decoded:
        """Decode the first of the files that still has the content; the error is that of the first file."""
        errors = []
        for file in content.files:
            decoded = self._decoder.attempt(file.file, cancellation)
            try:
                if decoded.error is not None:
                    errors.append(printable(decoded.error))
                elif sha256_of(Path(file.file)) == content.sha256:
                    return replace(decoded, name=file.name)
                else:
                    errors.append("it changed since it was indexed; index again")
            except OSError:
                errors.append("it was removed while it was read; index again")
        return Decoded(content.files[0].name, None, error=errors[0])

    def _stored(self, results: _Results, writing: Future[list[Row]]) -> Iterator[Row]:
        """Yield a row for each result once the batch is durable."""
        rows = iter(writing.result())
        for result in results:
            if isinstance(result, Row):
                self._failures.append(result)
            yield result if isinstance(result, Row) else next(rows)

    def close(self) -> None:
        """Release engine, processes and folder; a run that was not finished goes on when it is opened again."""
        self.engine.close()
        self._decoder.close()
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
