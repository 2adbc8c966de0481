"""The public surface: load a bundle once, then ask it about images."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image

from .bundle.locate import locate_bundle
from .bundle.manifest import Precision
from .bundle.opening import Bundle, open_bundle
from .detection import DecisionRule, Detection, Provenance, failed, scored
from .engines.contract import EngineOptions, Notify, OpenEngine
from .engines.scoring import check_windows, score_batch
from .engines.selection import Rejected, open_engine
from .errors import EngineError, ImageError, UsageError, no_memory
from .host.integrity import Progress
from .host.machine import available_threads
from .pixels.crop_grid import check_crops
from .pixels.decode import DEFAULT_LIMITS, ImageSource, source_name
from .pixels.limits import Limits, megapixels
from .pixels.pool import Errand, IsolatedDecoder
from .pixels.preprocess import Pixels
from .pixels.worker import DecodeTask

_DECODERS = 2  # decoding is far cheaper than scoring; two threads keep ahead without holding many pictures


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

    def __init__(
        self,
        bundle: Bundle,
        engine: OpenEngine,
        *,
        info: DetectorInfo,
        task: DecodeTask,
        isolated: IsolatedDecoder | None = None,
    ) -> None:
        self._bundle = bundle
        self._task = task
        self._isolated = isolated
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
            limits: of one file; default: ``Limits()``.
            isolate: decode paths, bytes and file objects in processes of their own, which costs two of them and about
                a millisecond a file. Only there the limit of seconds is kept, and a decoder that crashes costs one
                file. False decodes in threads of this process.
            crops: windows of the CLIP branch whose logits are averaged, one of ``windows.CROPS``; default: the number
                that the bundle was calibrated with, which is 1, the official centre window, unless it says otherwise.
            keep_views: let results carry what the branches saw (``Detection.view``, 0.6 MB each with one window), from
                which ``lare2_rt.evidence`` draws.

        Raises:
            BundleError, EngineError, UsageError: with the remedy in the text.
        """
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, not {threads}")
        if crops is not None:
            check_crops(crops)
        limits = limits or DEFAULT_LIMITS
        if limits.max_pixels > DEFAULT_LIMITS.max_pixels and not isolate:
            most = megapixels(DEFAULT_LIMITS.max_pixels)
            raise UsageError(f"more than {most} are decoded in processes of their own only: allow that with isolate")
        located = locate_bundle(bundle)
        opened = open_bundle(located.path, verify=verify, progress=progress)
        rule = opened.manifest.rule.with_threshold(threshold)
        options = EngineOptions(
            threads=threads or available_threads(),
            precision=precision,
            batch=batch,
            cache=Path(cache) if cache is not None else None,
            notify=notify,
            cuda_graph=cuda_graph,
        )
        crops = rule.crops if crops is None else crops
        method = opened.manifest.method
        task = DecodeTask(
            opened.manifest.policy, method.image_size, method.crop_size, limits, crops=crops, view=keep_views
        )
        isolated = IsolatedDecoder(task, processes=_DECODERS) if isolate else None
        try:
            running, rejected = open_engine(engine, opened, options)
            try:
                check_windows(running, crops)
            except EngineError:
                running.close()
                raise
        except BaseException:
            if isolated is not None:
                isolated.close()
            raise
        info = DetectorInfo(_provenance(opened, running, located.origin, crops), rule, rejected)
        return cls(opened, running, info=info, task=task, isolated=isolated)

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
        pixels = self._pixels(source, Errand())
        decode = (time.perf_counter() - begin) * 1e3
        result = self._score([(source_name(source), pixels, decode)])[0]
        if result.error is not None:
            raise EngineError(result.error)
        return result

    def detect_many(self, sources: Iterable[ImageSource]) -> Generator[Detection, None, None]:
        """Score images in order, decoding ahead of the engine; an image that fails yields a record with ``error`` set.

        The last batch is padded, which changes no result.

        Raises:
            EngineError: the engine failed, or no process for decoding can be started; images already yielded stand.
        """
        errand = Errand()
        batch = self._info.provenance.batch
        pending: deque[Future[_Decoded]] = deque()
        iterator = iter(sources)
        with ThreadPoolExecutor(_DECODERS, thread_name_prefix="lare2-decode") as pool:
            try:
                exhausted = False
                group: list[_Decoded] = []
                while True:
                    while not exhausted and len(pending) < _DECODERS + batch:
                        try:
                            pending.append(pool.submit(self._decode, next(iterator), errand))
                        except StopIteration:
                            exhausted = True
                    if pending:
                        group.append(pending.popleft().result())
                    ready = sum(item.pixels is not None for item in group)
                    # Failures that wait behind no readable image are told at once.
                    if ready in (0, batch) or (not pending and exhausted):
                        yield from self._score_group(group)
                        group = []
                        if not pending and exhausted:
                            return
            finally:
                for future in pending:
                    future.cancel()
                errand.stop()  # else leaving the block would wait for a decoder that may be stuck

    def warmup(self) -> None:
        """Run the engine once on black pixels, so that the first image does not pay for lazy initialisation."""
        method = self._bundle.manifest.method
        black = Pixels(
            np.zeros((method.image_size, method.image_size, 3), np.uint8),
            np.zeros((method.crop_size, method.crop_size, 3), np.uint8),
        )
        self._score([("<warmup>", black, 0.0)])

    def close(self) -> None:
        """Release the engine; later calls raise EngineError."""
        with self._turn:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
        if self._isolated is not None:
            self._isolated.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pixels(self, source: ImageSource, errand: Errand) -> Pixels:
        if self._isolated is not None and not isinstance(source, (Image.Image, np.ndarray)):
            return self._isolated.decode(source, errand=errand)
        return self._task.decode(source)

    def _decode(self, source: ImageSource, errand: Errand) -> _Decoded:
        name = source_name(source)
        begin = time.perf_counter()
        try:
            pixels = self._pixels(source, errand)
        except ImageError as error:
            return _Decoded(name, None, 0.0, str(error))
        except MemoryError:
            return _Decoded(name, None, 0.0, str(no_memory()))
        return _Decoded(name, pixels, (time.perf_counter() - begin) * 1e3, None)

    def _score_group(self, group: list[_Decoded]) -> Iterator[Detection]:
        """Yield the records of a group in its order: at most one batch of readable images, any number of bad ones."""
        items = [(item.name, item.pixels, item.milliseconds) for item in group if item.pixels is not None]
        results = iter(self._score(items) if items else [])
        for item in group:
            if item.error is not None:
                yield failed(item.name, item.error, provenance=self._info.provenance, rule=self._info.rule)
            else:
                yield next(results)

    def _score(self, items: list[tuple[str, Pixels, float]]) -> list[Detection]:
        """Run one batch of at most ``batch`` images, padded by repeating the last."""
        provenance, rule = self._info.provenance, self._info.rule
        with self._turn:
            if self._engine is None:
                raise EngineError("the detector is closed", remedy="load it again with Detector.load()")
            begin = time.perf_counter()
            scores, phases = score_batch(self._engine, [pixels for _, pixels, _ in items], provenance.batch)
            engine_time = (time.perf_counter() - begin) * 1e3
        records = []
        for (name, pixels, decode), score in zip(items, scores, strict=True):
            if not score.finite:
                text = "the engine gave NaN or infinity for this image; report it with the file and the bundle id"
                records.append(failed(name, text, provenance=provenance, rule=rule))
                continue
            records.append(
                scored(
                    name,
                    score.logits,
                    lare=score.lare,
                    attention=score.attention,
                    provenance=provenance,
                    rule=rule,
                    timings={"decode": decode, **phases, "total": decode + engine_time},
                    view=pixels.view,
                )
            )
        return records


@dataclass(frozen=True, slots=True)
class _Decoded:
    """One image after decoding: pixels, or the sentence that says why not."""

    name: str
    pixels: Pixels | None
    milliseconds: float
    error: str | None


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
