"""Small pictures for a report: the image, LaRE over it and the attention, as data inside the page."""

from __future__ import annotations

import base64
import heapq
import io
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .panel import attention_tile, lare_tile, picture_tile, shown_size
from .record import Evidence, pack, reduced, unpack, without_arrays
from .scale import Scales

EDGE = 168  # pixels; shown at 112, so that they are sharp on dense screens too
MOST = 200  # of a report: about 5 MB


@dataclass(frozen=True, slots=True)
class Thumbnails:
    """Three JPEG files as ``data:`` addresses, with the width and height of the first two in pixels."""

    picture: str
    lare: str
    attention: str
    size: tuple[int, int]
    attention_size: tuple[int, int]


class MostLikely:
    """Keeps what the thumbnails of the ``MOST`` images with the highest probability need; of equal ones the first."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._heap: list[tuple[float, int, Evidence, bytes]] = []

    def add(self, index: int, evidence: Evidence) -> None:
        """Consider the image number ``index`` of the run."""
        key = (evidence.probability, -index)
        if len(self._heap) == self._most and (not self._most or key <= self._heap[0][:2]):
            return
        small = _small(evidence)
        item = (*key, without_arrays(small), pack(small))
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, item)
        else:
            heapq.heapreplace(self._heap, item)

    def draw(self, scales: Scales) -> dict[int, Thumbnails]:
        """Return the thumbnails by the number of the image."""
        drawn: dict[int, Thumbnails] = {}
        for _, negative, record, content in self._heap:
            evidence = unpack(record, content)
            size = shown_size(evidence, EDGE)
            attention = attention_tile(evidence, scales.attention, EDGE)
            drawn[-negative] = Thumbnails(
                data_address(picture_tile(evidence, size)),
                data_address(lare_tile(evidence, scales.lare, size)),
                data_address(attention),
                size,
                (attention.shape[1], attention.shape[0]),
            )
        return drawn


def data_address(picture: NDArray[np.uint8], *, form: str = "JPEG") -> str:
    """Return uint8 RGB [H,W,3] as a ``data:`` address."""
    stream = io.BytesIO()
    options = {"quality": 82} if form == "JPEG" else {"optimize": True}
    Image.fromarray(picture).save(stream, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _small(evidence: Evidence) -> Evidence:
    """Return the evidence with pictures no larger than thumbnails."""
    preview = evidence.preview
    if max(preview.shape[:2]) > EDGE:
        preview = picture_tile(evidence, shown_size(evidence, EDGE))
    return replace(evidence, preview=preview, windows=reduced(evidence.windows, EDGE))
