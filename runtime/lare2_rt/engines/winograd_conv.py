"""One 3×3 convolution in tiles, as matrix products over rows of channels.

    Gather   the a² = (m+2)² pixels of every tile; tiles overlap, and what lies outside is a row of zeros
    MatMul   with Bᵀ⊗Bᵀ: the input transform, tile by tile
    MatMul   a² products of tiles×channels by channels×outputs: where the multiplications are
    MatMul   with Aᵀ⊗Aᵀ: the output transform, tile by tile

Gathering moves whole rows of channels, so the transforms cost little more than reading and writing memory. What belongs
to a tile lies together, in and out; the products in the middle take their rows from one tile after the other, which
``FusedMatMul`` of ONNX Runtime does without moving them.

The weights are transformed once, when the graph is rewritten: left to an engine's folding of constants, all steps of
all layers would be in memory together.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray

from .winograd_layers import Choice, Layer
from .winograd_rows import Rows, flat, raster_place
from .winograd_transforms import transformed, transforms
from .winograd_writer import Writer

_OUTSIDE = -1


def convolved(writer: Writer, rows: Rows, node: onnx.NodeProto, layer: Layer, choice: Choice) -> Rows:
    """Return the output of a convolution; ``rows`` has nothing left to be added."""
    return _Convolution(writer, rows, node, layer, choice).rows()


class _Convolution:
    def __init__(self, writer: Writer, source: Rows, node: onnx.NodeProto, layer: Layer, choice: Choice) -> None:
        self._writer, self._source, self._node = writer, source, node
        self._layer, self._choice = layer, choice
        self._high, self._wide = (-(-size // choice.tile) for size in (layer.height, layer.width))

    def rows(self) -> Rows:
        writer, layer, choice = self._writer, self._layer, self._choice
        weights, places = self._weights(), self._places()
        pixels = flat(writer, self._source)
        strips = list(self._strips(places))
        results = [self._strip(pixels, weights, places[tiles]) for tiles in strips]
        place = self._order(np.concatenate(strips))
        bias = np.ascontiguousarray(writer.weight_of(self._node.input[2]))
        outputs, size = layer.outputs, layer.height * layer.width
        if layer.batch == 1 and layer.height % choice.tile == layer.width % choice.tile == 0:
            sizes = tuple(len(tiles) * choice.tile**2 for tiles in strips)
            names = tuple(writer.shaped(part, 1, n, outputs) for part, n in zip(results, sizes, strict=True))
            return Rows(names, sizes, outputs, place, bias)
        whole = results[0] if len(results) == 1 else writer.add("Concat", results, axis=0)  # [tiles,m²,O]
        if layer.height % choice.tile or layer.width % choice.tile:
            # Some rows are of no pixel.
            index = writer.constant(place.reshape(layer.batch, -1).astype(np.int32))
            whole = writer.add("Gather", [writer.shaped(whole, -1, outputs), index], axis=0)
            place = raster_place(layer.batch, (layer.height, layer.width))
        return Rows((writer.shaped(whole, layer.batch, size, outputs),), (size,), outputs, place, bias)

    def _weights(self) -> list[str]:
        """Return [a²,C,O], or a² times [C,O] apart, from the stored [O,C,3,3]."""
        # By the layer's output and not by the stored weights, which two layers may share.
        name = f"{self._node.output[0]}.winograd.weights"
        parts = transformed(self._writer.weight_of(self._node.input[1]), self._choice.tile)
        if self._choice.apart:
            return [self._writer.weight(f"{name}.{row}", part) for row, part in enumerate(parts)]
        return [self._writer.weight(name, np.stack(list(parts)))]

    def _strips(self, places: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Yield the tiles of each strip: all, or picture by picture those that reach outside and then the others."""
        tiles = np.arange(len(places))
        if self._choice.strips == 1:
            yield tiles
            return
        most = -(-len(places) // self._choice.strips)
        reaches_out = (places == _OUTSIDE).any(axis=1)
        for image in tiles.reshape(self._layer.batch, -1):
            for some in (image[reaches_out[image]], image[~reaches_out[image]]):
                yield from (part for part in np.array_split(some, max(1, -(-len(some) // most))) if len(part))

    def _strip(self, pixels: str, weights: list[str], places: NDArray[np.int64]) -> str:
        """Return [t,m²,O] for t tiles."""
        writer, (source, _, target) = self._writer, transforms(self._choice.tile)
        before = writer.constant(np.kron(source, source).astype(np.float32))
        tiles, area = places.shape
        if self._choice.apart:
            gathered = writer.shaped(self._gathered(pixels, places.T), area, tiles * self._layer.inputs)
            inner = writer.shaped(writer.add("MatMul", [before, gathered]), area, tiles, self._layer.inputs)
            pairs = zip(writer.split(inner, len(weights)), weights, strict=True)
            product = writer.add("Concat", [writer.add("MatMul", pair) for pair in pairs], axis=0)
        else:
            inner = writer.add("MatMul", [before, self._gathered(pixels, places)])  # [t,a²,C]
            product = writer.products(inner, weights[0], (area, tiles, self._layer.outputs), moved="A")
        after = writer.constant(np.kron(target, target).astype(np.float32)[None])
        shape = (tiles, self._choice.tile**2, self._layer.outputs)
        return writer.products(after, product, shape, moved="B")  # of [a²,t,O]

    def _gathered(self, pixels: str, places: NDArray[np.int64]) -> str:
        """Return the rows at these places, [...,C]."""
        writer = self._writer
        if (places == _OUTSIDE).any():
            # Of a large picture a strip's rows are few: only those are copied to lie beside a row of zeros.
            used = np.unique(places[places != _OUTSIDE])
            if self._choice.strips > 1:
                pixels = writer.add("Gather", [pixels, writer.constant(used.astype(np.int32))], axis=0)
                places = np.where(places == _OUTSIDE, len(used), np.searchsorted(used, places))
            else:
                places = np.where(places == _OUTSIDE, self._source.place.size, places)
            zeros = writer.constant(np.zeros((1, self._layer.inputs), np.float32))
            pixels = writer.add("Concat", [pixels, zeros], axis=0)
        return writer.add("Gather", [pixels, writer.constant(places.astype(np.int32))], axis=0)

    def _places(self) -> NDArray[np.int64]:
        """Return [tiles,a²]: the row of each pixel of each tile, or that it lies outside of the picture."""
        layer, tile = self._layer, self._choice.tile
        side = np.arange(tile + 2)
        y = (np.arange(self._high)[:, None] * tile - 1 + side)[None, :, None, :, None]  # [1,high,1,a,1]
        x = (np.arange(self._wide)[:, None] * tile - 1 + side)[None, None, :, None, :]  # [1,1,wide,1,a]
        image = np.arange(layer.batch)[:, None, None, None, None]
        inside = (y >= 0) & (y < layer.height) & (x >= 0) & (x < layer.width)
        place = self._source.place[image, y.clip(0, layer.height - 1), x.clip(0, layer.width - 1)]
        return np.where(inside, place, _OUTSIDE).reshape(-1, side.size**2)

    def _order(self, tiles: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return [B,h,w]: the row of each pixel among [tiles·m²] results of tiles in this order."""
        layer, tile = self._layer, self._choice.tile
        position = np.empty(len(tiles), np.int64)
        position[tiles] = np.arange(len(tiles))
        y, x = np.arange(layer.height)[None, :, None], np.arange(layer.width)[None, None, :]
        image = np.arange(layer.batch)[:, None, None]
        own: NDArray[np.int64] = position[(image * self._high + y // tile) * self._wide + x // tile]
        return own * tile**2 + (y % tile) * tile + x % tile
