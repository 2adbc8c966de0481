"""The quality setting of a JPEG, from its quantisation tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

UNKNOWN_QUALITY = -1
# Annex K of the JPEG standard (ITU-T T.81), table K.1: what libjpeg scales for luminance. Natural order.
_LUMINANCE = np.array(
    (
        (16, 11, 10, 16, 24, 40, 51, 61),
        (12, 12, 14, 19, 26, 58, 60, 55),
        (14, 13, 16, 24, 40, 57, 69, 56),
        (14, 17, 22, 29, 51, 87, 80, 62),
        (18, 22, 37, 56, 68, 109, 103, 77),
        (24, 35, 55, 64, 81, 104, 113, 92),
        (49, 64, 78, 87, 103, 121, 120, 101),
        (72, 92, 95, 98, 112, 100, 103, 99),
    ),
    dtype=np.int64,
).ravel()


def _scaled() -> NDArray[np.int64]:
    """Return int64 [100,64]: the luminance tables of libjpeg's qualities 1..100 (its jpeg_set_quality, baseline)."""
    quality = np.arange(1, 101)
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.clip((_LUMINANCE * scale[:, None] + 50) // 100, 1, 255)


_LOG_TABLES = np.log(_scaled())


def estimate_quality(tables: Mapping[int, Sequence[int]] | None) -> int:
    """Return the libjpeg quality, 1..100, whose luminance table is nearest to that of an image; -1 without one.

    Exact for what libjpeg, libjpeg-turbo and Pillow wrote with a quality; for encoders with tables of their own
    (cameras, Photoshop) the setting of about the same coarseness. Nearest is by the mean absolute ratio, as coarse
    steps at high frequencies would outvote all others in a difference.
    """
    table = None if tables is None else tables.get(0)
    if table is None or len(table) != 64 or min(table) < 1:
        return UNKNOWN_QUALITY
    distance = np.abs(_LOG_TABLES - np.log(np.asarray(table, dtype=np.float64))).mean(axis=1)
    return int(distance.argmin()) + 1
