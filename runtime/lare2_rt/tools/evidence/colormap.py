"""Two perceptual colour maps as small tables.

Seventeen evenly spaced colours each of ``inferno`` and ``viridis`` of matplotlib (Nathaniel Smith and Stéfan van der
Walt, 2015, published under CC0), interpolated linearly between: lightness rises evenly, so a map reads the same in grey
and to colour-blind eyes. Linear pieces stay within 7 of 255 of the originals.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

ColourMap = Literal["inferno", "viridis"]
_STOPS: dict[ColourMap, str] = {
    "inferno": (
        "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 "
        "d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 fcffa4"
    ),
    "viridis": (
        "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c "
        "1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725"
    ),
}


def colours(fraction: NDArray[np.floating], name: ColourMap) -> NDArray[np.float32]:
    """Return float32 RGB [...,3] in 0..255 for fractions [...]; outside 0..1 the end colours."""
    stops = np.array([list(bytes.fromhex(stop)) for stop in _STOPS[name].split()], np.float32)
    place = np.linspace(0, 1, len(stops))
    clipped = np.clip(fraction, 0, 1)
    return np.stack([np.interp(clipped, place, stops[:, c]) for c in range(3)], axis=-1).astype(np.float32)
