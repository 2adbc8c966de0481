"""Winograd's convolution as a rewrite of an ONNX graph: 3×3 convolutions become matrix products, on any engine.

A tile of m×m outputs needs (m+2)² multiplications for each pair of channels instead of 9·m²: 2.25 times fewer for
F(2×2), 4 times for F(4×4). With the transforms of Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks"
(CVPR 2016), Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A. Here, with pixels as rows of channels ("tokens"), one convolution is

    Gather   the (m+2)² pixels of every tile; tiles overlap, and what lies outside is a row of zeros
    MatMul   with Bᵀ⊗Bᵀ: the input transform of all tiles and channels in one product
    MatMul   (m+2)² products of tiles×channels by channels×outputs: where the multiplications are
    MatMul   with Aᵀ⊗Aᵀ: the output transform
    Gather   the pixels back into their order

Gathering moves whole rows of channels, so the transforms cost little more than reading and writing memory. The weights
are transformed once, when the graph is rewritten: left to an engine's folding of constants, all steps of all layers
would be in memory together.

Whoever changes what is written raises ``REVISION`` in ``winograd.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

ReadWeight = Callable[[str], NDArray[np.float32]]
StoreWeight = Callable[[str, NDArray[np.float32]], onnx.TensorProto]
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


@dataclass(frozen=True, slots=True, order=True)
class Layer:
    """Shape of a 3×3 convolution with stride 1 and a border of 1."""

    batch: int
    inputs: int
    outputs: int
    height: int
    width: int

    @property
    def weight_bytes(self) -> int:
        """Size of the weights as they are stored."""
        return 4 * 9 * self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Choice:
    """How a layer is computed: tiles of ``tile``×``tile`` outputs, in ``strips`` that pass one after the other.

    Strips keep what lies between the transforms in the cache where a picture is large. With ``apart`` the products are
    nodes of their own, whose weights ONNX Runtime packs once instead of in every run: worth more than the copies that
    it takes where there are few tiles.
    """

    tile: int
    strips: int = 1
    apart: bool = False

    def weight_bytes(self, layer: Layer) -> int:
        """Size of the transformed weights."""
        return 4 * (self.tile + 2) ** 2 * layer.inputs * layer.outputs


def transforms(tile: int) -> Transforms:
    """Return Bᵀ [a,a], G [a,3] and Aᵀ [m,a] for tiles of m×m, a = m + 2."""
    source, kernel, target = (np.array(matrix, np.float64) for matrix in _TRANSFORMS[tile])
    return source, kernel, target


def layers_of(model: onnx.ModelProto) -> dict[str, Layer]:
    """Return every convolution that can be rewritten, by the name of its output."""
    shapes = _shapes(model)
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type != "Conv" or len(weights.get(node.input[1], ())) != 4 or len(node.input) != 3:
            continue
        outputs, inputs, *kernel = weights[node.input[1]]
        if kernel == [3, 3] and _is_plain(node):
            batch, _, height, width = shapes[node.input[0]]
            found[node.output[0]] = Layer(batch, inputs, outputs, height, width)
    return found


def transformed(weight: NDArray[np.float32], tile: int) -> Iterator[NDArray[np.float32]]:
    """Yield the (m+2)² matrices [C,O] of (G⊗G)·g for a weight [O,C,3,3], each rounded once from float64."""
    kernel = np.kron(*[transforms(tile)[1]] * 2)  # [a²,9]
    outputs, inputs = weight.shape[:2]
    taps = np.ascontiguousarray(weight.reshape(outputs, inputs, 9).transpose(2, 1, 0), np.float64).reshape(9, -1)
    for start in range(0, len(kernel), _ROWS_AT_ONCE):
        for matrix in kernel[start : start + _ROWS_AT_ONCE] @ taps:
            yield matrix.astype(np.float32).reshape(inputs, outputs)


def rewrite(
    model: onnx.ModelProto,
    choices: Mapping[Layer, Choice],
    *,
    weight_of: ReadWeight | None = None,
    store: StoreWeight | None = None,
) -> int:
    """Rewrite every convolution whose shape has a choice, in place; returns how many.

    Args:
        weight_of: returns a stored weight by its name; default: it is inside the model.
        store: keeps a transformed weight under a name and returns what stands for it; default: inside the model too.
    """
    if weight_of is None:
        inside = {tensor.name: tensor for tensor in model.graph.initializer}

        def weight_of(name: str) -> NDArray[np.float32]:
            return numpy_helper.to_array(inside[name])

    if store is None:

        def store(name: str, array: NDArray[np.float32]) -> onnx.TensorProto:
            return numpy_helper.from_array(array, name)

    layers = layers_of(model)
    nodes: list[onnx.NodeProto] = []
    constants = _Constants()
    count = 0
    for node in model.graph.node:
        layer = layers.get(node.output[0])
        if layer is None or layer not in choices:
            nodes.append(node)
            continue
        nodes.extend(_Rewriting(node, layer, choices[layer], constants, weight_of, store).nodes())
        count += 1
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*constants.small(), *constants.tensors])
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return count


def _is_plain(node: onnx.NodeProto) -> bool:
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    plain = {"strides": [1, 1], "dilations": [1, 1], "group": 1}
    border = list(attributes.get("pads", [])) == [1, 1, 1, 1] and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
    return border and all(attributes.get(name, value) == value for name, value in plain.items())


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in values}


class _Constants:
    """What rewritten layers read: weights, and small constants that are stored once each whatever layers use them."""

    def __init__(self) -> None:
        self.tensors: list[onnx.TensorProto] = []
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def add(self, array: NDArray[np.float32] | NDArray[np.int32] | NDArray[np.int64]) -> str:
        key = (array.dtype.str, array.shape, array.tobytes())
        return self._names.setdefault(key, f"winograd.{len(self._names)}")

    def small(self) -> Iterator[onnx.TensorProto]:
        for (dtype, shape, content), name in self._names.items():
            yield numpy_helper.from_array(np.frombuffer(content, dtype).reshape(shape), name)


class _Rewriting:
    """One convolution; nodes keep the name of the layer, as every node of a graph does."""

    def __init__(
        self,
        node: onnx.NodeProto,
        layer: Layer,
        choice: Choice,
        constants: _Constants,
        weight_of: ReadWeight,
        store: StoreWeight,
    ) -> None:
        self._node, self._layer, self._choice, self._constants = node, layer, choice, constants
        self._weight_of, self._store = weight_of, store
        self._made: list[onnx.NodeProto] = []
        self._rows, self._columns = (-(-size // choice.tile) for size in (layer.height, layer.width))
        self._tiles = layer.batch * self._rows * self._columns

    def nodes(self) -> list[onnx.NodeProto]:
        layer, choice = self._layer, self._choice
        tokens = self._tokens()
        weights = self._weights()
        places = self._places()
        step = -(-self._tiles // choice.strips)
        strips = [self._strip(tokens, weights, places[:, at : at + step]) for at in range(0, self._tiles, step)]
        whole = strips[0] if len(strips) == 1 else self._add("Concat", strips, axis=1)  # [m²,tiles,O]
        rows = self._shaped(whole, choice.tile**2 * self._tiles, layer.outputs)
        pixels = self._add("Gather", [rows, self._constants.add(self._order())], axis=0)  # [N,h·w,O]
        biased = self._add("Add", [pixels, self._node.input[2]])
        planes = self._add("Transpose", [biased], perm=[0, 2, 1])
        self._shaped(planes, layer.batch, layer.outputs, layer.height, layer.width, result=self._node.output[0])
        return self._made

    def _tokens(self) -> str:
        """Return [N·h·w+1,C]: a row for every pixel and one of zeros."""
        layer = self._layer
        flat = self._shaped(self._node.input[0], layer.batch, layer.inputs, layer.height * layer.width)
        rows = self._shaped(self._add("Transpose", [flat], perm=[0, 2, 1]), -1, layer.inputs)
        zeros = self._constants.add(np.zeros((1, layer.inputs), np.float32))
        return self._add("Concat", [rows, zeros], axis=0)

    def _weights(self) -> list[str]:
        """Return [a²,C,O], or a² times [C,O] apart, from the stored [O,C,3,3]."""
        # By the layer's output and not by the stored weights, which two layers may share.
        name = f"{self._node.output[0]}.winograd.weights"
        parts = transformed(self._weight_of(self._node.input[1]), self._choice.tile)
        if self._choice.apart:
            stored = [self._store(f"{name}.{row}", part) for row, part in enumerate(parts)]
        else:
            stored = [self._store(name, np.stack(list(parts)))]
        self._constants.tensors.extend(stored)
        return [tensor.name for tensor in stored]

    def _strip(self, tokens: str, weights: list[str], places: NDArray[np.int32]) -> str:
        """Return [m²,t,O] for t tiles."""
        layer, (source, _, target) = self._layer, transforms(self._choice.tile)
        area, tiles = places.shape
        gathered = self._add("Gather", [tokens, self._constants.add(places)], axis=0)  # [a²,t,C]
        before = self._constants.add(np.kron(source, source).astype(np.float32))
        inner = self._add("MatMul", [before, self._shaped(gathered, area, tiles * layer.inputs)])
        product = self._products(inner, weights, tiles)
        after = self._constants.add(np.kron(target, target).astype(np.float32))
        result = self._add("MatMul", [after, self._shaped(product, area, tiles * layer.outputs)])
        return self._shaped(result, -1, tiles, layer.outputs)

    def _products(self, inner: str, weights: list[str], tiles: int) -> str:
        """Return a² products of [t,C] and [C,O], one below the other."""
        inputs = self._layer.inputs
        if len(weights) == 1:
            return self._add("MatMul", [self._shaped(inner, -1, tiles, inputs), weights[0]])
        parts = [self._shaped(part, tiles, inputs) for part in self._split(inner)]
        products = [self._add("MatMul", list(pair)) for pair in zip(parts, weights, strict=True)]
        return self._add("Concat", products, axis=0)

    def _places(self) -> NDArray[np.int32]:
        """Return [a²,tiles]: the row of each pixel of each tile, the row of zeros outside of the picture."""
        layer, tile = self._layer, self._choice.tile
        side = tile + 2
        y = np.arange(self._rows)[:, None] * tile - 1 + np.arange(side)  # [rows,a]
        x = np.arange(self._columns)[:, None] * tile - 1 + np.arange(side)
        y, x = y.T[:, None, None, :, None], x.T[None, :, None, None, :]  # [a,1,1,rows,1], [1,a,1,1,columns]
        image = np.arange(layer.batch)[None, None, :, None, None]
        inside = (y >= 0) & (y < layer.height) & (x >= 0) & (x < layer.width)
        place = (image * layer.height + y) * layer.width + x
        outside = layer.batch * layer.height * layer.width
        return np.where(inside, place, outside).reshape(side * side, self._tiles).astype(np.int32)

    def _order(self) -> NDArray[np.int32]:
        """Return [N,h·w]: the row of each pixel among [m²·tiles] results."""
        layer, tile = self._layer, self._choice.tile
        y, x = np.arange(layer.height)[None, :, None], np.arange(layer.width)[None, None, :]
        image = np.arange(layer.batch)[:, None, None]
        within = (y % tile) * tile + x % tile
        place = (image * self._rows + y // tile) * self._columns + x // tile
        return (within * self._tiles + place).reshape(layer.batch, -1).astype(np.int32)

    def _split(self, value: str) -> list[str]:
        """Return the a² rows of a value."""
        count = (self._choice.tile + 2) ** 2
        name = f"{self._node.output[0]}.winograd.{len(self._made)}"
        rows = [f"{name}.{row}" for row in range(count)]
        self._made.append(helper.make_node("Split", [value], rows, self._label("Split"), axis=0, num_outputs=count))
        return rows

    def _shaped(self, value: str, *shape: int, result: str | None = None) -> str:
        return self._add("Reshape", [value, self._constants.add(np.array(shape, np.int64))], result=result)

    def _add(
        self,
        operator: str,
        inputs: list[str],
        result: str | None = None,
        **attributes: Any,  # noqa: ANN401 - as onnx has it
    ) -> str:
        name = result or f"{self._node.output[0]}.winograd.{len(self._made)}"
        self._made.append(helper.make_node(operator, inputs, [name], self._label(operator), **attributes))
        return name

    def _label(self, operator: str) -> str:
        """Return a name that no other node has, within the layer as names of nodes are."""
        layer, _, own = self._node.name.rpartition("/")
        return f"{layer}/{operator}.winograd.{own}.{len(self._made)}"
