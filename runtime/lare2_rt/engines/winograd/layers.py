"""The 3×3 convolutions of a graph, and how each is computed: by a rule that was measured once, in a budget of memory.

``python -m benchmarks.throughput --profile`` times every shape of SD 1.5 in every way; docs/cpu.md has the table. It is
a rule and not a measurement of every machine, because a bundle must give the same bits when it is compiled again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper

# Smaller pictures have so few tiles that reading F(4×4)'s weights takes as long as multiplying with F(2×2)'s.
_SMALLEST_FOR_LARGE_TILES = 16
# From this side on what lies between the transforms passes through the caches in strips of so many bytes.
_STRIPS_FROM, _STRIP_BYTES = 128, 7_000_000


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


def choose(layers: Mapping[Layer, int], *, tiles: tuple[int, ...], budget: int, channels: int) -> dict[Layer, Choice]:
    """Return the choice of every layer, given with how often it occurs, that is not computed directly.

    The layers that save most multiplications for a byte come first, and take the larger tile where that is still within
    the budget.

    Args:
        tiles: sizes that may be chosen.
        budget: bytes that the transformed weights may take more than the stored ones.
        channels: layers with fewer, coming in or going out, are left alone.
    """
    steps = []
    for layer, count in layers.items():
        for choice in candidates(layer, tiles) if min(layer.inputs, layer.outputs) >= channels else ():
            saved = count * (_direct(layer) - _multiplications(layer, choice))
            cost = count * (choice.weight_bytes(layer) - layer.weight_bytes)
            steps.append((saved / cost, saved, cost, layer, choice))
    chosen: dict[Layer, Choice] = {}
    spent: dict[Layer, tuple[int, int]] = {}
    for _, saved, cost, layer, choice in sorted(steps, key=lambda step: (-step[0], step[3])):
        before, paid = spent.get(layer, (0, 0))
        if saved > before and sum(value for _, value in spent.values()) - paid + cost <= budget:
            chosen[layer], spent[layer] = choice, (saved, cost)
    return chosen


def candidates(layer: Layer, tiles: tuple[int, ...]) -> list[Choice]:
    """Return what is faster than a direct convolution for a layer, one choice for each size of tile."""
    side = min(layer.height, layer.width)
    return [arranged(layer, tile) for tile in tiles if side >= (tile if tile == 2 else _SMALLEST_FOR_LARGE_TILES)]


def arranged(layer: Layer, tile: int) -> Choice:
    """Return the fastest way to compute a layer with a size of tile."""
    return Choice(tile, strips_of(layer, tile) if min(layer.height, layer.width) >= _STRIPS_FROM else 1)


def strips_of(layer: Layer, tile: int) -> int:
    """Return into how many strips a layer falls such that each fits into caches."""
    between = 4 * (tile + 2) ** 2 * _tiles(layer, tile) * (layer.inputs + layer.outputs)
    return -(-between // _STRIP_BYTES)


def _tiles(layer: Layer, tile: int) -> int:
    return layer.batch * -(-layer.height // tile) * -(-layer.width // tile)


def _direct(layer: Layer) -> int:
    return 9 * layer.inputs * layer.outputs * layer.batch * layer.height * layer.width


def _multiplications(layer: Layer, choice: Choice) -> int:
    return (choice.tile + 2) ** 2 * layer.inputs * layer.outputs * _tiles(layer, choice.tile)
