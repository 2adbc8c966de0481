"""Where the CLIP branch looks: one window in the centre, as the official code does, or a square grid of windows.

The grid spreads from edge to edge: n places along an axis of L pixels for windows of C pixels start at
floor((L − C)·i/(n − 1)), i = 0 … n − 1. With an odd n the middle one is the official centre window to the pixel. An
axis too short for different places has fewer of them, and equal windows are taken once.
"""

from __future__ import annotations

import math

from ..errors import UsageError

Corner = tuple[int, int]

# Ten by ten windows of 224 pixels cover a photograph of 5 megapixels; more of them only cost memory and time.
CROPS = tuple(n * n for n in range(1, 11))


def check_crops(crops: int) -> int:
    """Return the number of windows; raises UsageError unless it is one of ``CROPS``."""
    if crops not in CROPS:
        raise UsageError(
            f"the windows form a square grid, of which there is none with {crops}",
            remedy=f"choose one of {', '.join(map(str, CROPS))}",
        )
    return crops


def first_pixel(length: int, size: int) -> int:
    """Return where the official centre window starts along an axis; negative where the axis is shorter than it."""
    return (length - size) // 2 if length >= size else -((size - length) // 2)


def corners(width: int, height: int, size: int, crops: int) -> tuple[Corner, ...]:
    """Return (left, top) in pixels of the distinct windows: first the one nearest to the centre, the rest row by row.

    Raises:
        UsageError: ``crops`` is none of ``CROPS``.
    """
    side = math.isqrt(check_crops(crops))
    columns, rows = _starts(width, size, side), _starts(height, size, side)
    grid = [(left, top) for top in rows for left in columns]
    middle = (first_pixel(width, size), first_pixel(height, size))
    nearest = min(grid, key=lambda corner: (math.dist(corner, middle), corner))
    grid.remove(nearest)
    return (nearest, *grid)


def _starts(length: int, size: int, count: int) -> list[int]:
    if count == 1 or length <= size:
        return [first_pixel(length, size)]
    return sorted({(length - size) * i // (count - 1) for i in range(count)})
