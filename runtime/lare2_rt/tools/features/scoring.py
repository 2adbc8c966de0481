"""From files to results, batch by batch, decoding ahead of the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...bundle.opening import Bundle
from ...engines.contract import OpenEngine
from ...errors import ImageError, no_memory
from ...host.integrity import sha256_of
from ...host.text import printable
from ...pixels.preprocess import Pixels, preprocess
from .layout import Row, failed_row
from .sources import Content
from .writer import Finished

_DECODERS = 2  # as in the detector: decoding is far cheaper than scoring


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A content after decoding: the file that gave it, and its pixels."""

    content: Content
    name: str
    pixels: Pixels


def score(contents: Sequence[Content], bundle: Bundle, engine: OpenEngine) -> Iterator[list[Finished | Row]]:
    """Yield the results of contents in their order, a list for each batch of the engine; a ``Row`` is a failure.

    Raises:
        EngineError: the engine failed; what was yielded stands.
    """
    batch = engine.info.batch
    waiting: deque[Future[_Loaded | Row]] = deque()
    rest = iter(contents)
    with ThreadPoolExecutor(_DECODERS, thread_name_prefix="lare2-decode") as pool:
        try:
            group: list[_Loaded | Row] = []
            while True:
                while len(waiting) < _DECODERS + batch and (content := next(rest, None)) is not None:
                    waiting.append(pool.submit(_load, content, bundle))
                if waiting:
                    group.append(waiting.popleft().result())
                ready = sum(isinstance(item, _Loaded) for item in group)
                if group and (ready in (0, batch) or not waiting):
                    yield _run(group, bundle, engine)
                    group = []
                if not waiting and not group:
                    return
        finally:
            for future in waiting:
                future.cancel()


def _load(content: Content, bundle: Bundle) -> _Loaded | Row:
    """Decode the first of the files that still has the content."""
    method = bundle.manifest.method
    error = ""
    for file in content.files:
        try:
            pixels = preprocess(
                file.file, bundle.manifest.policy, image_size=method.image_size, crop_size=method.crop_size
            )
            if sha256_of(Path(file.file)) == content.sha256:
                return _Loaded(content, file.name, pixels)
            error = error or "it changed since it was indexed; index again"
        except ImageError as failure:
            error = error or printable(str(failure))
        except MemoryError:
            error = error or str(no_memory())
        except OSError:
            error = error or "it was removed while it was read; index again"
    return failed_row(content.sha256, content.files[0].name, error)


def _run(group: list[_Loaded | Row], bundle: Bundle, engine: OpenEngine) -> list[Finished | Row]:
    """Run at most one batch of readable images, padded by repeating the last, among any number of failures."""
    loaded = [item for item in group if isinstance(item, _Loaded)]
    if not loaded:
        return [item for item in group if isinstance(item, Row)]
    padded = [item.pixels for item in loaded] + [loaded[-1].pixels] * (engine.info.batch - len(loaded))
    image = np.stack([pixels.image for pixels in padded])  # [B,S,S,3]
    crop = np.stack([pixels.crop for pixels in padded])  # [B,C,C,3]
    output = engine.run(image, crop)
    rule = bundle.manifest.rule
    results: list[Finished | Row] = []
    position = 0
    for item in group:
        if isinstance(item, Row):
            results.append(item)
            continue
        lare, embedding, logits = output.lare[position], output.embedding[position], output.logits[position]
        position += 1
        if not all(np.isfinite(array).all() for array in (lare, embedding, logits)):
            text = "the engine gave NaN or infinity for this image; report it with the file and the bundle id"
            results.append(failed_row(item.content.sha256, item.name, text))
            continue
        pair = (float(logits[0]), float(logits[1]))
        probability = rule.probability(logits)
        results.append(Finished(item.content.sha256, item.name, lare.copy(), embedding.copy(), pair, probability))
    return results
