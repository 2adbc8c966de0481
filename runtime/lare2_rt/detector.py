"""The public surface: load a bundle once, then ask it about images."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from .bundle.locate import locate_bundle
from .bundle.manifest import Precision
from .bundle.opening import Bundle, open_bundle
from .detection import DecisionRule, Detection, Provenance, failed, scored
from .engines.contract import EngineOptions, Notify, OpenEngine
from .engines.scoring import Scores, check_windows, not_finite, score_batch
from .engines.selection import Rejected, open_engine
from .errors import EngineError
from .host.integrity import Progress
from .host.machine import thread_count
from .pixels.ahead import Decoded, Decoder, batches
from .pixels.crop_grid import check_crops
from .pixels.decode import DEFAULT_LIMITS, ImageSource, source_name
from .pixels.limits import Limits
from .pixels.preprocess import Pixels


@dataclass(frozen=True, slots=True)
class DetectorInfo:
    """What a detector is made of: the bundle and engine, the rule, and the engines that were passed over."""

    provenance: Provenance
    rule: DecisionRule
    rejected: tuple[Rejected, ...]

    @property
    def misfit(self) -> str | None:
        """One line where the rule was calibrated with another number of windows than are used; else None."""
        return self.rule.misfit(self.provenance.crops)


class Detector:
    """Scores images with one bundle on one engine. Safe to share between threads; calls to the engine take turns.

    Use ``Detector.load`` and, ideally, a ``with`` block:

        with Detector.load() as detector:
            print(detector.detect("photo.jpg").probability)
    """

    def __init__(self, bundle: Bundle, engine: OpenEngine, *, info: DetectorInfo, decoder: Decoder) -> None:
        self._bundle = bundle
        self._decoder = decoder
        self._engine: OpenEngine | None = engine
        self._info = info
        self._turn = threading.Lock()

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str] | None = None,
        *,
        engine: str = "auto",
        precision: Precision | None = None,
        batch: int | None = None,
        threads: int | None = None,
        threshold: float | None = None,
        cache: str | os.PathLike[str] | None = None,
        verify: bool = False,
        progress: Progress | None = None,
        notify: Notify | None = None,
        cuda_graph: bool = True,
        limits: Limits | None = None,
        isolate: bool = False,
        crops: int | None = None,
        keep_views: bool = False,
    ) -> Detector:
        """Open a bundle on an engine.

        Args:
            bundle: folder; default: ``LARE2_BUNDLE``, ``./engines``, else the embedded one.
            engine: a name, or ``auto`` for the fastest by the measurements of ``lare2-rt bench`` on this machine, else
                the first that can be used. A named engine never falls back.
            precision: ``fp32`` or ``fp16``; default: the engine's.
            batch: images per engine call, one of the bundle's sizes; default: the engine's. All results of one
                detector come from this one graph, so they do not depend on how images are grouped.
            threads: CPU threads; default: what affinity and container quota allow.
            threshold: probability from which the verdict is ``generated``; default: the bundle's calibrated rule.
            cache: folder for compiled engines and what was measured with them; default: ``LARE2_CACHE``, else the
                user's cache.
            verify: hash every file of the bundle again.
            progress: called with numbers of bytes while the bundle is hashed.
            notify: called with one line before anything that takes long, such as compiling an engine, and for what a
                user should know about the engine.
            cuda_graph: whether a GPU engine replays one captured graph; False launches every kernel anew.
            limits: of one file; default: ``Limits()``. More pixels or other seconds than that need ``isolate``.
            isolate: decode paths, bytes and file objects in processes, which costs two of them and about a millisecond
                a file. Only there the limit of seconds is kept, and a decoder that crashes costs one file. False
                decodes in threads of this process.
            crops: windows of the CLIP branch whose logits are averaged, one of ``crop_grid.CROPS``; default: the
                number that the bundle was calibrated with, which is 1, the official centre window, unless it says
                otherwise.
            keep_views: let results carry what the branches saw (``Detection.view``, 0.6 MB each with one window), from
                which ``render_panel`` draws.

        Raises:
            BundleError, EngineError, UsageError: with the remedy in the text.
        """
        if crops is not None:
            check_crops(crops)
        threads = thread_count(threads)
        limits = limits or DEFAULT_LIMITS
        if not isolate:
            limits.check_without_processes()
        located = locate_bundle(bundle)
        opened = open_bundle(located.path, verify=verify, progress=progress)
        rule = opened.manifest.rule.with_threshold(threshold)
        options = EngineOptions(
            threads=threads,
            precision=precision,
            batch=batch,
            cache=Path(cache) if cache is not None else None,
            notify=notify,
            cuda_graph=cuda_graph,
        )
        crops = rule.crops if crops is None else crops
        with ExitStack() as cleanup:
            # First, so that the processes get ready while the engine does.
            decoder = Decoder(opened.manifest.decoding(limits, crops=crops, view=keep_views), isolate=isolate)
            cleanup.callback(decoder.close)
            running, rejected = open_engine(engine, opened, options)
            cleanup.callback(running.close)
            check_windows(running, crops)
            cleanup.pop_all()
        info = DetectorInfo(_provenance(opened, running, located.origin, crops), rule, rejected)
        return cls(opened, running, info=info, decoder=decoder)

    @property
    def info(self) -> DetectorInfo:
        """Bundle, engine, rule and rejected engines."""
        return self._info

    @property
    def bundle(self) -> Bundle:
        """The bundle in use."""
        return self._bundle

    def detect(self, source: ImageSource) -> Detection:
        """Score one image: path, encoded bytes, binary file object, Pillow image, or uint8 RGB array [H,W,3].

        Raises:
            ImageError: the image cannot be read or is refused.
            EngineError: the engine failed or the detector is closed.
        """
        begin = time.perf_counter()
        pixels = self._decoder.decode(source)
        decoded = Decoded(source_name(source), pixels, (time.perf_counter() - begin) * 1e3)
        (result,) = self._scored([decoded])
        if result.error is not None:
            raise not_finite()
        return result

    def detect_many(self, sources: Iterable[ImageSource]) -> Generator[Detection, None, None]:
        """Score images in order, decoding ahead of the engine; an image that fails yields a record with ``error`` set.

        The last batch is padded, which changes no result.

        Raises:
            EngineError: the engine failed, or no process for decoding can be started; images already yielded stand.
        """
        with closing(batches(sources, self._decoder.attempt, size=self._info.provenance.batch)) as groups:
            for group in groups:
                yield from self._scored([decoded for _, decoded in group])

    def warmup(self) -> None:
        """Run the engine once on black pixels, so that the first image does not pay for lazy initialisation."""
        method = self._bundle.manifest.method
        black = Pixels(
            np.zeros((method.image_size, method.image_size, 3), np.uint8),
            np.zeros((method.crop_size, method.crop_size, 3), np.uint8),
        )
        self._scored([Decoded("<warmup>", black)])

    def close(self) -> None:
        """Release the engine; later calls raise EngineError."""
        with self._turn:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
        self._decoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _scored(self, group: Sequence[Decoded]) -> list[Detection]:
        """Return the records of a group in its order: at most one batch of readable images, any number of bad ones."""
        provenance, rule = self._info.provenance, self._info.rule
        scores, phases, engine_time = self._run([item.pixels for item in group if item.pixels is not None])
        results = iter(scores)
        records = []
        for item in group:
            score = next(results) if item.pixels is not None else None
            if score is None or not score.finite:
                error = item.error or str(not_finite())
                records.append(failed(item.name, error, provenance=provenance, rule=rule))
                continue
            records.append(
                scored(
                    item.name,
                    score.logits,
                    lare=score.lare,
                    attention=score.attention,
                    provenance=provenance,
                    rule=rule,
                    timings={"decode": item.milliseconds, **phases, "total": item.milliseconds + engine_time},
                    view=item.pixels.view if item.pixels is not None else None,
                )
            )
        return records

    def _run(self, images: Sequence[Pixels]) -> tuple[list[Scores], dict[str, float], float]:
        """Return the scores of at most one batch, and milliseconds by phase and in all. Calls take turns."""
        if not images:
            return [], {}, 0.0
        with self._turn:
            if self._engine is None:
                raise EngineError("the detector is closed", remedy="load it again with Detector.load()")
            begin = time.perf_counter()
            scores, phases = score_batch(self._engine, images, self._info.provenance.batch)
            return scores, phases, (time.perf_counter() - begin) * 1e3


def _provenance(bundle: Bundle, engine: OpenEngine, origin: str, crops: int) -> Provenance:
    info = engine.info
    shown = "embedded" if origin == "embedded" else str(bundle.path.resolve())
    return Provenance(
        bundle_name=bundle.manifest.model.name,
        bundle_id=bundle.manifest.id,
        bundle_path=shown,
        engine=info.name,
        engine_version=info.version,
        device=info.device,
        precision=info.precision,
        batch=info.batch,
        threads=info.threads,
        build_key=info.build_key,
        crops=crops,
    )
