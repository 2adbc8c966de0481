"""Procedural pictures for parity runs and self-checks: cheap, the same everywhere, of the kinds that photographs hold.

They may never change: every bundle carries what the reference gave on them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def procedural_pictures(height: int = 300, width: int = 340) -> list[NDArray[np.uint8]]:
    """Return four uint8 RGB pictures [H,W,3]: smooth shading, fine noise, shaded hard edges, and all three mixed.

    No picture has large areas of one value: there float32 sums round the same way a hundred thousand times, and torch's
    own GroupNorm is 4e-5 away from the float64 result, so a comparison with it would measure torch.
    """
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    smooth = np.stack([x / width, y / height, (x + y) / (width + height)], axis=2)
    # A linear congruential sequence instead of a library's generator: its values can never change.
    state = np.arange(height * width * 3, dtype=np.uint64) * np.uint64(6364136223846793005) + np.uint64(
        1442695040888963407
    )
    state ^= state >> np.uint64(29)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    noise = ((state >> np.uint64(40)).astype(np.float64) / 2**24).reshape(height, width, 3)
    circles = np.hypot(x - width / 3, y - height / 2) % 60 < 30
    edges = np.where(circles[:, :, None], [0.9, 0.3, 0.2], [0.1, 0.2, 0.6])
    edges = 0.8 * edges + 0.2 * smooth
    mixed = 0.5 * smooth + 0.35 * edges + 0.15 * noise
    return [np.round(picture * 255).astype(np.uint8) for picture in (smooth, noise, edges, mixed)]
