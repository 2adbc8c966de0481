"""In what order convolutions in tiles write the pixels of a picture: the same for all pictures of a size.

Where all do, sums of two pictures and norms need nothing moved.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .layers import Choice, Layer

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """Where every pixel of B pictures is written: in every strip the first pixel of all tiles, then the second.

    Attributes:
        tile: side of the tiles.
        strips: of each, the numbers [t] of its tiles, which are counted in raster order.
        place: int [B,h,w], the row of every pixel among all that are written. There are more of them than pixels where
            tiles do not fill the picture.
        blocks: how many rows of pixels stand one after the other, in each all pictures; 1 where pictures are apart.
    """

    tile: int
    strips: tuple[Indices, ...]
    place: Indices
    blocks: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many rows each strip has."""
        return tuple(len(tiles) * self.tile**2 for tiles in self.strips)


def order_of(layer: Layer, choice: Choice) -> Order:
    """Return the order that suits a layer.

    In strips, those tiles come first that reach outside: the others need no copy beside a row of zeros.
    """
    tile = choice.tile
    high, wide = (-(-size // tile) for size in (layer.height, layer.width))
    numbers = np.arange(layer.batch * high * wide).reshape(layer.batch, high, wide)
    strips = [numbers.reshape(-1)]
    if choice.strips > 1:
        most = -(-numbers.size // choice.strips)
        rim = np.ones((high, wide), bool)
        rim[1:-1, 1:-1] = False
        parts = [image[chosen] for image in numbers for chosen in (rim, ~rim)]
        strips = [strip for some in parts if some.size for strip in np.array_split(some, -(-some.size // most))]
    place = np.empty((numbers.size, tile**2), np.int64)
    begin = 0
    for tiles in strips:
        place[tiles] = begin + np.arange(len(tiles))[:, None] + np.arange(tile**2) * len(tiles)
        begin += place[tiles].size
    blocks = tile**2 if len(strips) == 1 and layer.batch > 1 else 1
    whole = place.reshape(layer.batch, high, wide, tile, tile).transpose(0, 1, 3, 2, 4)
    whole = whole.reshape(layer.batch, high * tile, wide * tile)
    return Order(tile, tuple(strips), np.ascontiguousarray(whole[:, : layer.height, : layer.width]), blocks)
