"""One picture that shows what the detector saw of an image, and what it made of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ...detection import Detection
from .band import COLOURS, FAINT, INK, decimals, draw_band
from .colormap import ColourMap
from .maps import ATTENTION_COLOURS, LARE_COLOURS, bar, overlay
from .record import GAP, TILE, Evidence, cell_size, evidence_of, places
from .scale import Scale, Scales, run_scales
from .text import drawable, fitted, font, wrapped

UInt8 = NDArray[np.uint8]
MARGIN, SPACE = 24, 28
WIDTH, HEIGHT = 2 * MARGIN + 3 * TILE + 2 * SPACE, 748
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
    draw.text(
        (MARGIN, 20),
        fitted(drawable(evidence.source), WIDTH - 2 * MARGIN, 22),
        font=font(22),
        fill=INK,
    )
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


def _words(evidence: Evidence) -> tuple[str, str, str]:
    width, height = evidence.size
    count = len(evidence.corners)
    seen = "CLIP window" if count == 1 else f"{count} CLIP windows"
    return (
        f"Picture, {width} x {height} pixels",
        "LaRE: where reconstruction fails",
        f"Attention in the {seen}",
    )


def _what_is_outlined(evidence: Evidence) -> str:
    size = evidence.window_size
    if not evidence.turned_alike:
        return fitted(f"turned as the VAE saw it; CLIP saw {size} pixels of it upright", TILE, 14)
    if len(evidence.corners) == 1:
        return f"outlined: the {size} pixels that CLIP saw"
    return f"outlined: the windows of {size} pixels that CLIP saw"


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
        box = (x + left, y + top, x + right, y + bottom)
        draw.rectangle(box, outline=(0, 0, 0), width=3)
        inner = (box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1)
        if inner[2] > inner[0] and inner[3] > inner[1]:
            draw.rectangle(inner, outline=(255, 255, 255), width=1)


def _colour_bar(panel: Image.Image, x: int, scale: Scale, name: ColourMap, unit: str) -> None:
    draw, y = ImageDraw.Draw(panel), _TOP + TILE + 12
    panel.paste(Image.fromarray(bar(TILE, 14, name)), (x, y))
    for value, place, anchor in ((scale.low, 0, "la"), ((scale.low + scale.high) / 2, TILE // 2, "ma")):
        draw.text((x + place, y + 19), f"{value:.3g}", font=font(14), fill=INK, anchor=anchor)
    draw.text((x + TILE, y + 19), f"{scale.high:.3g}", font=font(14), fill=INK, anchor="ra")
    draw.text((x, y + 38), unit, font=font(14), fill=FAINT)


def _verdict(draw: ImageDraw.ImageDraw, evidence: Evidence) -> None:
    y = _TOP + TILE + 80
    draw.rectangle((MARGIN, y + 2, MARGIN + 9, y + 29), fill=COLOURS[evidence.verdict])
    draw.text((MARGIN + 20, y), evidence.verdict, font=font(28), fill=INK)
    start = MARGIN + 20 + round(font(28).getlength(evidence.verdict)) + 18
    words = f"probability of being generated {decimals(evidence.probability)}"
    draw.text((start, y + 9), words, font=font(18), fill=INK)
    band = (MARGIN, y + 56, WIDTH - MARGIN, y + 80)
    draw_band(draw, band, rule=evidence.rule, probability=evidence.probability)


def _footer(draw: ImageDraw.ImageDraw, evidence: Evidence, *, single: bool) -> None:
    facts, y = evidence.provenance, _TOP + TILE + 196
    misfit = evidence.rule.misfit(facts.crops)
    for note in (evidence.rule.note, misfit):
        for line in wrapped(drawable(f"Note: {note}"), WIDTH - 2 * MARGIN, 15) if note else ():
            draw.text((MARGIN, y), line, font=font(15), fill=INK)
            y += 20
    scale = "colours scaled to this image" if single else "one colour scale for all images of the run"
    words = (
        f"bundle {facts.bundle_name} {facts.bundle_id[:12]} on {facts.engine} {facts.engine_version} {facts.device} "
        f"{facts.precision}; mean LaRE {evidence.lare_mean:.4g}; {scale}"
    )
    draw.text((MARGIN, HEIGHT - 30), fitted(drawable(words), WIDTH - 2 * MARGIN, 14), font=font(14), fill=FAINT)
