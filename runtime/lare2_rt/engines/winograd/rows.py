"""Pictures as rows of channels ("tokens"), one row for each pixel, in whatever order the last layer left them.

Convolutions in tiles cut and join whole rows, and give the pixels tile by tile. Everything between two of them, norms
over all pixels and arithmetic on single ones, is the same in any order: so rows stay as they are, the next convolution
knows where each pixel lies, and a picture is brought into planes again only where somebody asks for them. All pictures
of a size are written in the same order: then sums of two and norms need nothing moved.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .layers import Choice, Layer
from .writer import Writer

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A value [K,B,n,C]: the K·n pixels of B pictures, in one order for all channels, whole or in pieces along n.

    Of a large picture the pieces are what a convolution's strips left. Going through one after the other, arithmetic
    reads from the cache what it has just written.

    Attributes:
        names: of the pieces; there is one, or B and K are 1.
        sizes: n of every piece.
        channels: C.
        place: int [B,h,w] or [B,N], the row of every pixel among the K·B·n.
        blocks: K, what stands before the pictures: convolutions in tiles write the first pixel of all tiles of all
            pictures, then the second.
        bias: float32 [C] that is still to be added to every row, or None. Norms take it in for nothing.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    channels: int
    place: Indices
    blocks: int = 1
    bias: NDArray[np.float32] | None = None

    @property
    def batch(self) -> int:
        """B."""
        return len(self.place)

    def lies_in_raster(self) -> bool:
        """Whether the rows lie as the pixels do."""
        return bool((np.diff(self.place.reshape(-1)) == 1).all())


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


def raster_place(batch: int, spatial: tuple[int, ...]) -> Indices:
    """Return [B,...]: the rows that lie as the pixels do."""
    return np.arange(batch * int(np.prod(spatial))).reshape(batch, *spatial)


def mapped(writer: Writer, operator: str, *operands: Rows | str) -> Rows:
    """Return rows after an operator on single numbers; operands are rows that lie like each other, and constants."""
    rows = next(operand for operand in operands if isinstance(operand, Rows))
    count = len(rows.names)
    inputs = zip(*(other.names if isinstance(other, Rows) else (other,) * count for other in operands), strict=True)
    return replace(rows, names=tuple(writer.add(operator, some) for some in inputs), bias=None)


def settled(writer: Writer, rows: Rows) -> Rows:
    """Return the same rows with nothing left to be added."""
    return rows if rows.bias is None else mapped(writer, "Add", rows, writer.constant(rows.bias))


def bias_through(matrix: NDArray[np.float64], rows: Rows, bias: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a linear layer's bias [O] with what is still to be added to its input, through its weights [O,C]."""
    through = 0 if rows.bias is None else matrix @ rows.bias
    return (bias.astype(np.float64) + through).astype(np.float32)


def joined(writer: Writer, rows: Rows) -> Rows:
    """Return the same rows in one piece."""
    if len(rows.names) == 1:
        return rows
    return replace(rows, names=(writer.add("Concat", rows.names, axis=2),), sizes=(sum(rows.sizes),))


def flat(writer: Writer, rows: Rows) -> str:
    """Return [K·B·n,C]."""
    return writer.shaped(joined(writer, rows).names[0], -1, rows.channels)


def ordered(writer: Writer, rows: Rows, target: Rows) -> Rows:
    """Return the rows in the order and the pieces of others."""
    alike = rows.blocks == target.blocks and rows.sizes == target.sizes
    if alike and np.array_equal(rows.place, target.place):
        return rows
    index = np.empty((target.blocks, rows.batch, sum(target.sizes)), np.int32)
    index.reshape(-1)[target.place] = rows.place
    parts = np.split(index, np.cumsum(target.sizes)[:-1], axis=2)
    pixels = flat(writer, rows)
    names = tuple(writer.add("Gather", [pixels, writer.constant(part)], axis=0) for part in parts)
    return replace(target, names=names, channels=rows.channels, bias=rows.bias)


def rows_of_planes(writer: Writer, planes: str, shape: list[int]) -> Rows:
    """Return the rows of planes [B,C,h,w] or [B,C,N]."""
    batch, channels, *spatial = shape
    last = writer.add("Transpose", [planes], perm=[0, *range(2, len(shape)), 1])
    pixels = int(np.prod(spatial))
    name = writer.shaped(last, 1, batch, pixels, channels)
    return Rows((name,), (pixels,), channels, raster_place(batch, tuple(spatial)))


def planes_of_rows(writer: Writer, rows: Rows, result: str) -> None:
    """Write the planes of rows under a name."""
    batch, *spatial = rows.place.shape
    target = Rows((), (int(np.prod(spatial)),), rows.channels, raster_place(batch, tuple(spatial)))
    name = ordered(writer, settled(writer, rows), target).names[0]
    last = writer.shaped(name, batch, *spatial, rows.channels)
    writer.add("Transpose", [last], result, perm=[0, len(spatial) + 1, *range(1, len(spatial) + 1)])


def added(writer: Writer, first: Rows, second: Rows) -> Rows:
    """Return the sum of two; what is still to be added to either is still to be added to it."""
    if second.lies_in_raster():
        # The sum lies like what comes out of a convolution in tiles: the next one's output will.
        first, second = second, first
    first = ordered(writer, first, second)
    biases = [rows.bias for rows in (first, second) if rows.bias is not None]
    return replace(mapped(writer, "Add", first, second), bias=sum(biases[1:], biases[0]) if biases else None)
