"""Everything that is shown of one image, small enough to be put aside until the run's scale is known."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...detection import DecisionRule, Detection, Provenance, Verdict
from ...errors import UsageError
from ...pixels.crop_grid import Corner
from ...pixels.packing import join_arrays, split_arrays
from .maps import attention_map, lare_map

UInt8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]
TILE = 384  # pixels along an edge of a picture in a panel
GAP = 4  # between the windows of a mosaic


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is shown of one image.

    Attributes:
        source, verdict, probability, lare_mean, rule, provenance: as in ``Detection``.
        size: (width, height) in pixels of the picture; corners, turned_alike: as in ``preprocess.View``.
        window_size: edge in pixels of a window at native resolution.
        preview: uint8 [h,w,3] RGB, the picture as the VAE branch has it turned.
        windows: uint8 [N,c,c,3] RGB, what the CLIP branch saw, scaled down where there are several.
        lare: float32 [h,w], see ``maps.lare_map``; attention: float32 [N,g,g], see ``maps.attention_map``.
    """

    source: str
    verdict: Verdict
    probability: float
    lare_mean: float
    rule: DecisionRule
    provenance: Provenance
    size: tuple[int, int]
    corners: tuple[Corner, ...]
    turned_alike: bool
    window_size: int
    preview: UInt8
    windows: UInt8
    lare: Float32
    attention: Float32


def evidence_of(result: Detection) -> Evidence:
    """Return what can be shown of a result; raises UsageError where it failed or lacks its view (``keep_views``)."""
    lare, attention, view = lare_map(result), attention_map(result), result.view
    if view is None or result.verdict is None or result.probability is None:
        words = f"{result.source} was scored without its picture"
        raise UsageError(words, remedy="load the detector with keep_views=True")
    return Evidence(
        source=result.source,
        verdict=result.verdict,
        probability=result.probability,
        lare_mean=float(lare.mean(dtype=np.float64)),
        rule=result.rule,
        provenance=result.provenance,
        size=view.size,
        corners=view.corners,
        turned_alike=view.turned_alike,
        window_size=view.windows.shape[1],
        preview=view.preview,
        windows=view.windows if len(view.windows) == 1 else reduced(view.windows, cell_size(view.corners)),
        lare=lare,
        attention=attention,
    )


def places(corners: tuple[Corner, ...]) -> list[tuple[int, int]]:
    """Return (column, row) of each window in its grid."""
    lefts, tops = (sorted({corner[axis] for corner in corners}) for axis in (0, 1))
    return [(lefts.index(left), tops.index(top)) for left, top in corners]


def cell_size(corners: tuple[Corner, ...]) -> int:
    """Return the edge in pixels of a window in a mosaic as large as ``TILE``."""
    most = max(max(place) for place in places(corners)) + 1
    return (TILE - GAP * (most - 1)) // most


def pack(evidence: Evidence) -> bytes:
    """Return the arrays, compressed without loss; ``unpack`` needs the rest from ``without_arrays``."""
    return zlib.compress(join_arrays([evidence.preview, evidence.windows, evidence.lare, evidence.attention]), 1)


def without_arrays(evidence: Evidence) -> Evidence:
    """Return the record with empty arrays: a few hundred bytes."""
    nothing, none = np.zeros(0, np.uint8), np.zeros(0, np.float32)
    return replace(evidence, preview=nothing, windows=nothing, lare=none, attention=none)


def unpack(evidence: Evidence, content: bytes) -> Evidence:
    """Return the record with the arrays that ``pack`` put away."""
    (preview, windows, lare, attention), _ = split_arrays(zlib.decompress(content))
    return replace(evidence, preview=preview, windows=windows, lare=lare, attention=attention)


def reduced(windows: UInt8, size: int) -> UInt8:
    """Return windows uint8 [N,c,c,3] with edges of at most ``size`` pixels."""
    if windows.shape[1] <= size:
        return windows
    small = [Image.fromarray(window).resize((size, size), Image.Resampling.LANCZOS) for window in windows]
    return np.stack([np.asarray(window) for window in small])
