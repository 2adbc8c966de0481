"""The 3×3 convolutions of a graph that can be computed in tiles, and how one of them may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper


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

    Strips keep what lies between the transforms in the cache where a picture is large.
    """

    tile: int
    strips: int = 1

    def divides(self, layer: Layer) -> bool:
        """Whether tiles fill the picture and nothing else."""
        return layer.height % self.tile == layer.width % self.tile == 0

    def weight_bytes(self, layer: Layer) -> int:
        """Size of the transformed weights."""
        return 4 * (self.tile + 2) ** 2 * layer.inputs * layer.outputs


def layers_of(model: onnx.ModelProto) -> dict[str, Layer]:
    """Return every convolution that can be rewritten, by the name of its output."""
    shapes = shapes_of(model)
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type != "Conv" or len(weights.get(node.input[1], ())) != 4 or len(node.input) != 3:
            continue
        outputs, inputs, *kernel = weights[node.input[1]]
        shape = shapes.get(node.input[0], [])
        if kernel == [3, 3] and is_plain(node, border=1) and len(shape) == 4 and 0 not in shape:
            found[node.output[0]] = Layer(shape[0], inputs, outputs, *shape[2:])
    return found


def is_plain(node: onnx.NodeProto, border: int) -> bool:
    """Whether a convolution has stride 1, one group and this border on all sides."""
    attributes = attributes_of(node)
    plain = {"strides": [1, 1], "dilations": [1, 1], "group": 1}
    pads, automatic = list(attributes.get("pads", [0] * 4)), attributes.get("auto_pad", b"NOTSET")
    fits = pads == [border] * 4 and automatic == b"NOTSET"
    return fits and all(attributes.get(name, value) == value for name, value in plain.items())


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node by their names."""
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def shapes_of(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Return the shapes of all values that are no weights; a size that is not known is 0."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in values}
