"""Rewrite an ONNX graph for the engine ``winograd``: 3×3 convolutions in tiles, and what lies between them on rows.

Node after node: a chosen convolution becomes matrix products (``conv.py``) whose output lies as rows of channels
(``rows.py``). What can go on with rows does: group norms (``norms.py``), arithmetic, 1×1 convolutions, joining by
channels. Everything else gets its planes as before.

Whoever changes what is written raises ``REVISION`` in ``engine.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

from .conv import Convolution
from .layers import Choice, Layer, attributes_of, is_plain, layers_of, shapes_of
from .norms import GroupNorm, normalised, norms_of
from .rows import (
    Order,
    Rows,
    added,
    bias_through,
    joined,
    mapped,
    order_of,
    ordered,
    planes_of_rows,
    rows_of_planes,
    settled,
)
from .writer import ReadWeight, StoreWeight, Writer

_ONE_BY_ONE = ("Relu", "Sigmoid")  # of one value, each pixel and channel by itself


def rewrite(
    model: onnx.ModelProto,
    choices: Mapping[Layer, Choice],
    *,
    weight_of: ReadWeight | None = None,
    store: StoreWeight | None = None,
) -> int:
    """Rewrite every convolution whose shape has a choice, in place; returns how many. Without one nothing changes.

    Args:
        weight_of: returns a stored weight by its name; default: it is inside the model.
        store: keeps a new weight under a name and returns what stands for it; default: inside the model too.
    """
    if weight_of is None:
        inside = {tensor.name: tensor for tensor in model.graph.initializer}

        def weight_of(name: str) -> np.ndarray:
            return numpy_helper.to_array(inside[name])

    if store is None:

        def store(name: str, array: np.ndarray) -> onnx.TensorProto:
            return numpy_helper.from_array(array, name)

    layers = {name: layer for name, layer in layers_of(model).items() if layer in choices}
    if layers:
        _Rewriting(model, layers, choices, Writer(weight_of, store)).run()
    return len(layers)


class _Rewriting:
    def __init__(
        self, model: onnx.ModelProto, layers: Mapping[str, Layer], choices: Mapping[Layer, Choice], writer: Writer
    ) -> None:
        self._model, self._layers, self._choices, self._writer = model, layers, choices, writer
        self._shapes = shapes_of(model)
        self._weights = {tensor.name for tensor in model.graph.initializer}
        self._norms = norms_of(model, self._shapes, writer.weight_of)
        self._orders = _orders((layer, choices[layer]) for layer in layers.values())
        self._outputs = {value.name for value in model.graph.output}
        self._rows: dict[str, Rows] = {}
        self._planes = {value.name for value in model.graph.input} | self._weights | {""}

    def run(self) -> None:
        inside_norms = {name for norm in self._norms.values() for name in norm.inner}
        for node in self._model.graph.node:
            if node.output[0] in inside_norms:
                continue
            self._writer.begin(node)
            rows = self._on_rows(node)
            if rows is not None:
                self._rows[node.output[0]] = rows
                if node.output[0] in self._outputs:
                    self._as_planes(node.output[0])
            else:
                for name in node.input:
                    self._as_planes(name)
                self._writer.keep()
                self._planes.update(node.output)
        self._writer.finish(self._model)

    def _on_rows(self, node: onnx.NodeProto) -> Rows | None:
        """Write a node for rows and return its output, or return None where it needs planes."""
        name = node.output[0]
        if name in self._norms:
            return self._norm(self._norms[name])
        if name in self._layers:
            source, layer = self._as_rows(node.input[0]), self._layers[name]
            order = self._orders.get((layer.batch, layer.height, layer.width))
            return Convolution(self._writer, source, node, layer, self._choices[layer]).rows(order)
        if not any(value in self._rows for value in node.input):
            return None
        handlers = {"Conv": self._product, "Add": self._sum, "Mul": self._sum, "Concat": self._joined}
        handlers |= dict.fromkeys(_ONE_BY_ONE, self._unary)
        handler = handlers.get(node.op_type)
        return handler(node) if handler else None

    def _norm(self, norm: GroupNorm) -> Rows:
        return normalised(self._writer, self._as_rows(norm.source), norm)

    def _unary(self, node: onnx.NodeProto) -> Rows:
        return mapped(self._writer, node.op_type, self._settled(node.input[0]))

    def _sum(self, node: onnx.NodeProto) -> Rows | None:
        """A sum or product of two pictures of one shape."""
        shapes = [self._shapes.get(name) for name in node.input]
        if shapes[0] != shapes[1] or len(shapes[0] or ()) < 3 or self._weights.intersection(node.input):
            return None
        first, second = (self._as_rows(name) for name in node.input)
        if node.op_type == "Add":
            return added(self._writer, first, second)
        first, second = (self._settled(name) for name in node.input)
        return mapped(self._writer, "Mul", first, ordered(self._writer, second, first))

    def _product(self, node: onnx.NodeProto) -> Rows | None:
        """A 1×1 convolution: a product of rows."""
        weight = self._writer.weight_of(node.input[1]) if node.input[1] in self._weights else np.empty(0)
        if len(node.input) != 3 or weight.shape[2:] != (1, 1) or not is_plain(node, border=0):
            return None
        rows = self._as_rows(node.input[0])
        matrix = weight[:, :, 0, 0]
        name = self._writer.weight(f"{node.output[0]}.winograd.weights", np.ascontiguousarray(matrix.T))
        names = tuple(self._writer.add("MatMul", [piece, name]) for piece in rows.names)
        bias = bias_through(matrix.astype(np.float64), rows, self._writer.weight_of(node.input[2]))
        return replace(rows, names=names, channels=len(weight), bias=bias)

    def _joined(self, node: onnx.NodeProto) -> Rows | None:
        """Pictures joined by their channels."""
        shapes = [self._shapes.get(name, []) for name in node.input]
        if attributes_of(node)["axis"] != 1 or any(len(shape) != 4 for shape in shapes):
            return None
        first, *others = (joined(self._writer, self._settled(name)) for name in node.input)
        parts = [first, *(ordered(self._writer, rows, first) for rows in others)]
        name = self._writer.add("Concat", [rows.names[0] for rows in parts], axis=3)
        return replace(first, names=(name,), channels=sum(rows.channels for rows in parts))

    def _settled(self, name: str) -> Rows:
        """Return the rows of a value, all added, for everybody who asks from now on."""
        self._rows[name] = settled(self._writer, self._as_rows(name))
        return self._rows[name]

    def _as_rows(self, name: str) -> Rows:
        if name not in self._rows:
            self._rows[name] = rows_of_planes(self._writer, name, self._shapes[name])
        return self._rows[name]

    def _as_planes(self, name: str) -> None:
        if name not in self._planes:
            planes_of_rows(self._writer, self._rows[name], name)
            self._planes.add(name)


def _orders(chosen: Iterable[tuple[Layer, Choice]]) -> dict[tuple[int, int, int], Order]:
    """Return the order of all pictures of a size [B,h,w]: that of the largest tiles and of most strips."""
    best: dict[tuple[int, int, int], tuple[Layer, Choice]] = {}
    for layer, choice in chosen:
        size = (layer.batch, layer.height, layer.width)
        rank = (choice.tile, choice.strips)
        if choice.divides(layer) and (size not in best or rank > (best[size][1].tile, best[size][1].strips)):
            best[size] = (layer, choice)
    return {size: order_of(*pair) for size, pair in best.items()}
