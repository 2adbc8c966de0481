"""Pictures of what the detector saw of an image and made of it: a panel for itself, thumbnails for a report."""

from __future__ import annotations

import base64
import heapq
import io
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ...detection import Detection
from .drawing import COLOURS, FAINT, INK, decimals, draw_band, drawable, fitted, font, wrapped
from .maps import ATTENTION_COLOURS, LARE_COLOURS, ColourMap, Scale, Scales, bar, overlay, run_scales
from .record import GAP, TILE, Evidence, cell_size, evidence_of, pack, places, reduced, unpack, without_arrays

UInt8 = NDArray[np.uint8]
MARGIN, SPACE = 24, 28
WIDTH, HEIGHT = 2 * MARGIN + 3 * TILE + 2 * SPACE, 748
EDGE = 168  # pixels; shown at 112, so that they are sharp on dense screens too
MOST = 200  # of a report: about 5 MB
_PAPER, _EMPTY = (255, 255, 255), (238, 238, 238)
_TOP = 92  # of the three tiles
_NARROWEST = 24  # pixels: a picture of 20,000 × 3 would be a line that nobody sees


def render_panel(result: Detection, scales: Scales | None = None) -> Image.Image:
    """Return the panel of one result as an RGB image of ``WIDTH`` × ``HEIGHT`` pixels.

    Args:
        result: from a detector that was loaded with ``keep_views=True``.
        scales: the colour scales, the same for all panels that are to be compared (``run_scales``); default: those
            that suit this image alone.

    Raises:
        UsageError: the image failed or was scored without ``keep_views=True``, or Pillow has no FreeType.
    """
    evidence = evidence_of(result)
    return draw_panel(evidence, scales or run_scales([evidence.lare], [evidence.attention]), single=scales is None)


def draw_panel(evidence: Evidence, scales: Scales, *, single: bool = False) -> Image.Image:
    """Return the panel; ``single`` says that the scales are this image's own. Raises UsageError without FreeType."""
    panel = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
    draw = ImageDraw.Draw(panel)
    draw.text((MARGIN, 20), fitted(drawable(evidence.source), WIDTH - 2 * MARGIN, 22), font=font(22), fill=INK)
    size = shown_size(evidence)
    picture, lare = picture_tile(evidence, size), lare_tile(evidence, scales.lare, size)
    columns = [MARGIN + column * (TILE + SPACE) for column in range(3)]
    tiles = (picture, lare, attention_tile(evidence, scales.attention))
    for x, tile, words in zip(columns, tiles, _words(evidence), strict=True):
        draw.text((x, _TOP - 26), fitted(words, TILE, 17), font=font(17), fill=INK)
        draw.rectangle((x, _TOP, x + TILE - 1, _TOP + TILE - 1), fill=_EMPTY)
        image = Image.fromarray(tile)
        panel.paste(image, (x + (TILE - image.width) // 2, _TOP + (TILE - image.height) // 2))
    _outline_windows(draw, evidence, columns[0], picture.shape[1::-1])
    draw.text((columns[0], _TOP + TILE + 10), _what_is_outlined(evidence), font=font(14), fill=FAINT)
    _colour_bar(panel, columns[1], scales.lare, LARE_COLOURS, "squared noise error (noise variance = 1)")
    _colour_bar(panel, columns[2], scales.attention, ATTENTION_COLOURS, "times uniform attention")
    _verdict(draw, evidence)
    _footer(draw, evidence, single=single)
    return panel


def shown_size(evidence: Evidence, edge: int = TILE) -> tuple[int, int]:
    """Return (width, height) in pixels at which a picture fills a square of ``edge`` with its own aspect ratio."""
    height, width = evidence.preview.shape[:2]
    scale = edge / max(width, height)
    least = min(edge, _NARROWEST)
    return max(least, round(width * scale)), max(least, round(height * scale))


def picture_tile(evidence: Evidence, size: tuple[int, int]) -> UInt8:
    """Return the picture as uint8 RGB [H,W,3] of ``size`` (width, height)."""
    image = Image.fromarray(evidence.preview)
    # Tiny pictures are shown as the pixels that they are.
    smooth = Image.Resampling.NEAREST if size[0] >= 4 * image.width else Image.Resampling.LANCZOS
    return np.asarray(image if size == image.size else image.resize(size, smooth))


def lare_tile(evidence: Evidence, scale: Scale, size: tuple[int, int]) -> UInt8:
    """Return LaRE over the picture as uint8 RGB [H,W,3] of ``size`` (width, height)."""
    return overlay(picture_tile(evidence, size), evidence.lare, scale, LARE_COLOURS)


def attention_tile(evidence: Evidence, scale: Scale, edge: int = TILE) -> UInt8:
    """Return the windows of the CLIP branch under their attention as uint8 RGB, at most ``edge`` × ``edge`` pixels."""
    where = places(evidence.corners)
    cell = cell_size(evidence.corners) * edge // TILE
    gap = GAP * edge // TILE
    columns, rows = (max(place[axis] for place in where) + 1 for axis in (0, 1))
    mosaic = np.full((rows * (cell + gap) - gap, columns * (cell + gap) - gap, 3), 255, np.uint8)
    for (column, row), window, attention in zip(where, evidence.windows, evidence.attention, strict=True):
        image = Image.fromarray(window).resize((cell, cell), Image.Resampling.BICUBIC)
        x, y = column * (cell + gap), row * (cell + gap)
        mosaic[y : y + cell, x : x + cell] = overlay(np.asarray(image), attention, scale, ATTENTION_COLOURS)
    return mosaic


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
        heapq.heappush(self._heap, (*key, without_arrays(small), pack(small)))
        if len(self._heap) > self._most:
            heapq.heappop(self._heap)

    def draw(self, scales: Scales) -> dict[int, Thumbnails]:
        """Return the thumbnails by the number of the image."""
        drawn: dict[int, Thumbnails] = {}
        for _, negative, record, content in self._heap:
            evidence = unpack(record, content)
            size = shown_size(evidence, EDGE)
            attention = attention_tile(evidence, scales.attention, EDGE)
            tiles = (picture_tile(evidence, size), lare_tile(evidence, scales.lare, size), attention)
            picture, lare, seen = map(data_address, tiles)
            drawn[-negative] = Thumbnails(picture, lare, seen, size, (attention.shape[1], attention.shape[0]))
        return drawn


def data_address(picture: UInt8, *, form: str = "JPEG") -> str:
    """Return uint8 RGB [H,W,3] as a ``data:`` address."""
    stream = io.BytesIO()
    options = {"quality": 82} if form == "JPEG" else {"optimize": True}
    Image.fromarray(picture).save(stream, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _words(evidence: Evidence) -> tuple[str, str, str]:
    (width, height), count = evidence.size, len(evidence.corners)
    seen = "CLIP window" if count == 1 else f"{count} CLIP windows"
    return f"Picture, {width} x {height} pixels", "LaRE: where reconstruction fails", f"Attention in the {seen}"


def _what_is_outlined(evidence: Evidence) -> str:
    size = evidence.window_size
    if not evidence.turned_alike:
        return fitted(f"turned as the VAE saw it; CLIP saw {size} pixels of it upright", TILE, 14)
    windows = "" if len(evidence.corners) == 1 else "windows of "
    return f"outlined: the {windows}{size} pixels that CLIP saw"


def _outline_windows(draw: ImageDraw.ImageDraw, evidence: Evidence, x: int, shown: tuple[int, ...]) -> None:
    if not evidence.turned_alike:
        return
    x, y = x + (TILE - shown[0]) // 2, _TOP + (TILE - shown[1]) // 2
    for corner in reversed(evidence.corners):  # the centre one comes out on top
        ends: list[tuple[int, int]] = []
        for axis in (0, 1):
            scale = shown[axis] / evidence.size[axis]
            first = max(0, round(corner[axis] * scale))
            last = min(shown[axis] - 1, round((corner[axis] + evidence.window_size) * scale) - 1)
            ends.append((first, max(first, last)))
        (left, right), (top, bottom) = ends
        draw.rectangle((x + left, y + top, x + right, y + bottom), outline=(0, 0, 0), width=3)
        if right - left > 2 and bottom - top > 2:
            inner = (x + left + 1, y + top + 1, x + right - 1, y + bottom - 1)
            draw.rectangle(inner, outline=(255, 255, 255), width=1)


def _colour_bar(panel: Image.Image, x: int, scale: Scale, name: ColourMap, unit: str) -> None:
    draw, y = ImageDraw.Draw(panel), _TOP + TILE + 12
    panel.paste(Image.fromarray(bar(TILE, 14, name)), (x, y))
    values = (scale.low, (scale.low + scale.high) / 2, scale.high)
    for value, place, anchor in zip(values, (0, TILE // 2, TILE), ("la", "ma", "ra"), strict=True):
        draw.text((x + place, y + 19), f"{value:.3g}", font=font(14), fill=INK, anchor=anchor)
    draw.text((x, y + 38), unit, font=font(14), fill=FAINT)


def _verdict(draw: ImageDraw.ImageDraw, evidence: Evidence) -> None:
    y = _TOP + TILE + 80
    draw.rectangle((MARGIN, y + 2, MARGIN + 9, y + 29), fill=COLOURS[evidence.verdict])
    draw.text((MARGIN + 20, y), evidence.verdict, font=font(28), fill=INK)
    start = MARGIN + 20 + round(font(28).getlength(evidence.verdict)) + 18
    words = f"probability of being generated {decimals(evidence.probability)}"
    draw.text((start, y + 9), words, font=font(18), fill=INK)
    draw_band(draw, (MARGIN, y + 56, WIDTH - MARGIN, y + 80), rule=evidence.rule, probability=evidence.probability)


def _footer(draw: ImageDraw.ImageDraw, evidence: Evidence, *, single: bool) -> None:
    facts, y = evidence.provenance, _TOP + TILE + 196
    for note in (evidence.rule.note, evidence.rule.misfit(facts.crops)):
        for line in wrapped(drawable(f"Note: {note}"), WIDTH - 2 * MARGIN, 15) if note else ():
            draw.text((MARGIN, y), line, font=font(15), fill=INK)
            y += 20
    scale = "colours scaled to this image" if single else "one colour scale for all images of the run"
    words = (
        f"bundle {facts.bundle_name} {facts.bundle_id[:12]} on {facts.engine} {facts.engine_version} {facts.device} "
        f"{facts.precision}; mean LaRE {evidence.lare_mean:.4g}; {scale}"
    )
    draw.text((MARGIN, HEIGHT - 30), fitted(drawable(words), WIDTH - 2 * MARGIN, 14), font=font(14), fill=FAINT)


def _small(evidence: Evidence) -> Evidence:
    """Return the evidence with pictures no larger than thumbnails."""
    preview = evidence.preview
    if max(preview.shape[:2]) > EDGE:
        preview = picture_tile(evidence, shown_size(evidence, EDGE))
    return replace(evidence, preview=preview, windows=reduced(evidence.windows, EDGE))
