"""One 3×3 convolution in tiles, as matrix products over rows of channels.

After Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016): a tile of m×m outputs is
Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A, of (m+2)² multiplications for each pair of channels instead of 9·m²: 2.25 times fewer for
F(2×2), 4 times for F(4×4).

    Gather   the a² pixels of every tile; tiles overlap, and what lies outside is a row of zeros
    MatMul   with Bᵀ⊗Bᵀ: the input transform of all tiles at once
    MatMul   a² products of tiles×channels by channels×outputs: where the multiplications are
    MatMul   with Aᵀ⊗Aᵀ: the output transform

Gathering moves whole rows of channels, so the transforms cost little more than reading and writing memory. All values
are [a²,tiles,channels]: to the transforms that is one large matrix, to the products it is a² of them.

The weights are transformed once, when the graph is rewritten: left to an engine's folding of constants, all steps of
all layers would be in memory together.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray

from .layers import Choice, Layer
from .rows import Indices, Order, Rows, bias_through, flat, order_of, raster_place
from .writer import Writer

Transforms = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]

_TRANSFORMS: dict[int, tuple[list[list[float]], list[list[float]], list[list[float]]]] = {
    2: (
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
        [[1, 1, 1, 0], [0, 1, -1, -1]],
    ),
    4: (
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    ),
}
# Of a weight's transform: some in one product, not all, which would take eight times the memory of the weight.
_ROWS_AT_ONCE = 6
_OUTSIDE = -1


def transforms(tile: int) -> Transforms:
    """Return Bᵀ [a,a], G [a,3] and Aᵀ [m,a] for tiles of m×m, a = m + 2."""
    source, kernel, target = (np.array(matrix, np.float64) for matrix in _TRANSFORMS[tile])
    return source, kernel, target


def transformed(weight: NDArray[np.float32], tile: int) -> Iterator[NDArray[np.float32]]:
    """Yield the (m+2)² matrices [C,O] of (G⊗G)·g for a weight [O,C,3,3], each rounded once from float64."""
    kernel = np.kron(*[transforms(tile)[1]] * 2)  # [a²,9]
    outputs, inputs = weight.shape[:2]
    taps = np.ascontiguousarray(weight.reshape(outputs, inputs, 9).transpose(2, 1, 0), np.float64).reshape(9, -1)
    for start in range(0, len(kernel), _ROWS_AT_ONCE):
        for matrix in kernel[start : start + _ROWS_AT_ONCE] @ taps:
            yield matrix.astype(np.float32).reshape(inputs, outputs)


class Convolution:
    """A convolution of rows. What is still to be added to them need not be: outside stands its negative, not zero."""

    def __init__(self, writer: Writer, source: Rows, node: onnx.NodeProto, layer: Layer, choice: Choice) -> None:
        self._writer, self._source, self._node = writer, source, node
        self._layer, self._choice = layer, choice
        self._kernel = writer.weight_of(node.input[1])

    def rows(self, wanted: Order | None = None) -> Rows:
        """Write it; returns its output, in the wanted order where its tiles fit, else in one of its own."""
        writer, layer, choice = self._writer, self._layer, self._choice
        order = wanted if wanted is not None and wanted.tile == choice.tile else order_of(layer, choice)
        weight, places = self._weight(), self._places()
        pixels = flat(writer, self._source)
        results = [self._strip(pixels, weight, places[tiles], len(order.strips)) for tiles in order.strips]
        if layer.batch == 1 and choice.divides(layer):
            names = tuple(writer.shaped(part, 1, 1, -1, layer.outputs) for part in results)
            return Rows(names, order.sizes, layer.outputs, order.place, bias=self._bias())
        whole = results[0] if len(results) == 1 else writer.add("Concat", results, axis=0)
        size, place, blocks = layer.height * layer.width, order.place, order.blocks
        if choice.divides(layer):
            whole = writer.shaped(whole, blocks, layer.batch, -1, layer.outputs)
        else:
            # Some rows are of no pixel.
            index = writer.constant(place.reshape(1, layer.batch, size).astype(np.int32))
            whole = writer.add("Gather", [whole, index], axis=0)
            place, blocks = raster_place(layer.batch, (layer.height, layer.width)), 1
        return Rows((whole,), (size // blocks,), layer.outputs, place, blocks, self._bias())

    def _bias(self) -> NDArray[np.float32]:
        """Return what is still to be added, with what the source's adds through the weights."""
        sums = self._kernel.sum((2, 3), dtype=np.float64)
        return bias_through(sums, self._source, self._writer.weight_of(self._node.input[2]))

    def _weight(self) -> str:
        """Return [a²,C,O] from the stored [O,C,3,3]."""
        # By the layer's output and not by the stored weights, which two layers may share.
        name = f"{self._node.output[0]}.winograd.weights"
        return self._writer.weight(name, np.stack(list(transformed(self._kernel, self._choice.tile))))

    def _strip(self, pixels: str, weight: str, places: Indices, strips: int) -> str:
        """Return the rows [m²·t,O] of t tiles."""
        writer, layer = self._writer, self._layer
        source, _, target = transforms(self._choice.tile)
        before, after = (writer.constant(np.kron(part, part).astype(np.float32)) for part in (source, target))
        tiles, area = places.shape
        gathered = writer.shaped(self._gathered(pixels, places.T, strips), area, tiles * layer.inputs)
        inner = writer.shaped(writer.add("MatMul", [before, gathered]), area, tiles, layer.inputs)
        product = writer.shaped(writer.add("MatMul", [inner, weight]), area, tiles * layer.outputs)
        return writer.shaped(writer.add("MatMul", [after, product]), -1, layer.outputs)

    def _gathered(self, pixels: str, places: Indices, strips: int) -> str:
        """Return the rows at these places of one of so many strips, [...,C]."""
        writer = self._writer
        if (places == _OUTSIDE).any():
            # Of a large picture a strip's rows are few: only those are copied to lie beside a row of zeros.
            if strips == 1:
                places = np.where(places == _OUTSIDE, self._source.place.size, places)
            else:
                used = np.unique(places[places != _OUTSIDE])
                pixels = writer.add("Gather", [pixels, writer.constant(used.astype(np.int32))], axis=0)
                places = np.where(places == _OUTSIDE, len(used), np.searchsorted(used, places))
            bias = self._source.bias
            nothing = np.zeros(self._layer.inputs, np.float32) if bias is None else -bias
            pixels = writer.add("Concat", [pixels, writer.constant(nothing[None])], axis=0)
        return writer.add("Gather", [pixels, writer.constant(places.astype(np.int32))], axis=0)

    def _places(self) -> Indices:
        """Return [tiles,a²]: the row of each pixel of each tile, or that it lies outside of the picture."""
        layer, tile, place = self._layer, self._choice.tile, self._source.place
        side = np.arange(tile + 2)
        high, wide = (np.arange(-(-size // tile)) * tile for size in (layer.height, layer.width))
        y = (high[:, None] - 1 + side)[None, :, None, :, None]  # [1,high,1,a,1]
        x = (wide[:, None] - 1 + side)[None, None, :, None, :]  # [1,1,wide,1,a]
        image = np.arange(layer.batch)[:, None, None, None, None]
        inside = (y >= 0) & (y < layer.height) & (x >= 0) & (x < layer.width)
        found = place[image, y.clip(0, layer.height - 1), x.clip(0, layer.width - 1)]
        return np.where(inside, found, _OUTSIDE).reshape(-1, side.size**2)
