"""Pictures as rows of channels ("tokens"), one row for each pixel, in whatever order the last layer left them.

Convolutions in tiles cut and join whole rows, and give the pixels tile by tile. Everything between two of them, norms
over all pixels and arithmetic on single ones, is the same in any order: so rows stay as they are, the next convolution
knows where each pixel lies, and a picture is brought into planes again only where somebody asks for them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .winograd_writer import Writer


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A value [B,P,C]: the P pixels of B pictures, in an order that is the same for all channels.

    Attributes:
        name: of the value.
        channels: C.
        place: int [B,h,w] or [B,N], the row of every pixel among the B·P; those of a picture are together.
        bias: float32 [C] that is still to be added to every row, or None. Norms take it in for nothing.
    """

    name: str
    channels: int
    place: NDArray[np.int64]
    bias: NDArray[np.float32] | None = None

    @property
    def batch(self) -> int:
        """B."""
        return len(self.place)

    @property
    def pixels(self) -> int:
        """P."""
        return int(self.place[0].size)

    def lies_like(self, other: Rows) -> bool:
        """Whether the rows of both are in the same order."""
        return np.array_equal(self.place, other.place)

    def lies_in_raster(self) -> bool:
        """Whether the rows lie as the pixels do."""
        return bool((np.diff(self.place.reshape(-1)) == 1).all())


def raster(name: str, batch: int, spatial: tuple[int, ...], channels: int) -> Rows:
    """Return rows that lie as the pixels do."""
    place = np.arange(batch * int(np.prod(spatial))).reshape(batch, *spatial)
    return Rows(name, channels, place)


def settled(writer: Writer, rows: Rows) -> Rows:
    """Return the same rows with nothing left to be added."""
    if rows.bias is None:
        return rows
    return replace(rows, name=writer.add("Add", [rows.name, writer.constant(rows.bias)]), bias=None)


def flat(writer: Writer, rows: Rows) -> str:
    """Return [B·P,C]."""
    return writer.shaped(rows.name, -1, rows.channels)


def ordered(writer: Writer, rows: Rows, place: NDArray[np.int64]) -> Rows:
    """Return the rows in another order, in which each pixel has a place."""
    if np.array_equal(rows.place, place):
        return rows
    index = np.empty((rows.batch, rows.pixels), np.int32)
    index.reshape(-1)[place] = rows.place
    name = writer.add("Gather", [flat(writer, rows), writer.constant(index)], axis=0)
    return replace(rows, name=name, place=place)


def rows_of_planes(writer: Writer, planes: str, shape: list[int]) -> Rows:
    """Return the rows of planes [B,C,h,w] or [B,C,N]."""
    batch, channels, *spatial = shape
    # In so many axes, and beside a convolution, it is folded into ONNX Runtime's own change of layout.
    last = writer.add("Transpose", [planes], perm=[0, *range(2, len(shape)), 1])
    rows = writer.shaped(last, batch, int(np.prod(spatial)), channels)
    return raster(rows, batch, tuple(spatial), channels)


def planes_of_rows(writer: Writer, rows: Rows, result: str) -> None:
    """Write the planes of rows under a name."""
    batch, *spatial = rows.place.shape
    place = raster("", batch, tuple(spatial), rows.channels).place
    name = settled(writer, ordered(writer, rows, place)).name
    last = writer.shaped(name, batch, *spatial, rows.channels)
    writer.add("Transpose", [last], result, perm=[0, len(spatial) + 1, *range(1, len(spatial) + 1)])


def added(writer: Writer, first: Rows, second: Rows) -> Rows:
    """Return the sum of two; what is still to be added to either is still to be added to it."""
    if second.lies_in_raster():
        # The sum lies like what comes out of a convolution in tiles: the next one's output will.
        first, second = second, first
    first = ordered(writer, first, second.place)
    biases = [rows.bias for rows in (first, second) if rows.bias is not None]
    bias = sum(biases[1:], biases[0]) if biases else None
    return replace(second, name=writer.add("Add", [first.name, second.name]), bias=bias)
