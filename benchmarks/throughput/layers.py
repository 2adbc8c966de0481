"""Every shape of 3×3 convolution of a graph, timed directly and in all ways that engine ``winograd`` could take."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lare2_rt.engines.openvino.library import openvino_core, settings_for
from lare2_rt.engines.winograd.layers import Choice, Layer, strips_of
from lare2_rt.engines.winograd.rewrite import rewrite

TILES = (2, 4)
_FEWEST_CHANNELS = 16  # the first and the last layer of a network have 3 or 4: nothing to win there
_OPSET, _IR = 20, 10

Time = Callable[[onnx.ModelProto], float]


@dataclass(frozen=True, slots=True)
class Measured:
    """One shape of layer: how often a graph has it, the seconds of its direct convolution, and those of each choice."""

    layer: Layer
    count: int
    direct: float
    choices: Mapping[Choice, float]

    def facts(self, chosen: Choice | None) -> dict[str, object]:
        """Return everything as plain data."""
        times = [{**asdict(choice), "seconds": seconds} for choice, seconds in self.choices.items()]
        return {
            "layer": asdict(self.layer),
            "count": self.count,
            "direct": self.direct,
            "choices": times,
            "chosen": None if chosen is None else asdict(chosen),
        }


def variations(layer: Layer) -> list[Choice]:
    """Return what is measured for a layer: each tile, whole and in strips."""
    found = []
    if min(layer.inputs, layer.outputs) >= _FEWEST_CHANNELS:
        for tile in TILES:
            found.append(Choice(tile))
            if (strips := strips_of(layer, tile)) > 1:
                found.append(Choice(tile, strips))
    return found


def measure(layers: Mapping[Layer, int], seconds_of: Time) -> list[Measured]:
    """Time every shape of layer, given with how often it occurs, directly and in every way."""
    found = []
    for layer, count in sorted(layers.items()):
        options = variations(layer)
        if not options:
            continue
        untouched = single(layer)
        direct = seconds_of(untouched)
        times = {}
        for choice in options:
            model = onnx.ModelProto()
            model.CopyFrom(untouched)
            rewrite(model, {layer: choice})
            times[choice] = seconds_of(model)
        found.append(Measured(layer, count, direct, times))
    return found


def single(layer: Layer) -> onnx.ModelProto:
    """Return a graph of one convolution of this shape with seeded weights."""
    generator = np.random.default_rng(0)
    weights = generator.random((layer.outputs, layer.inputs, 3, 3), np.float32) - np.float32(0.5)
    bias = np.zeros(layer.outputs, np.float32)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "layer/Conv", pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [layer.batch, channels, layer.height, layer.width])
        for name, channels in (("x", layer.inputs), ("y", layer.outputs))
    ]
    constants = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph([node], "layer", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)


def clock(threads: int, repeats: int) -> Time:
    """Return a function that runs a graph in OpenVINO on noise and returns the least seconds of a run."""
    core = openvino_core()

    def seconds_of(model: onnx.ModelProto) -> float:
        graph = core.read_model(model.SerializeToString())
        compiled = core.compile_model(graph, "CPU", settings_for(threads))
        shape = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
        inputs = {"x": np.random.default_rng(1).standard_normal(shape, np.float32)}
        request = compiled.create_infer_request()
        request.infer(inputs)
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            request.infer(inputs, share_inputs=True, share_outputs=True)
            times.append(time.perf_counter() - begin)
        return min(times)

    return seconds_of


_BLOCK = re.compile(
    r"(?:^|\.)((?:(?:down|up)_blocks\.\d+|mid_block)\.(?:resnets|attentions|downsamplers|upsamplers)\.\d+"
    r"|conv_in|conv_norm_out|conv_out)(?:[./]|$)"
)
_ORDER = ("conv_in", "down_blocks", "mid_block", "up_blocks", "conv_norm_out", "conv_out")
# onnxruntime's own nodes around a convolution: what comes in is reordered for the next, what goes out for the last.
_FOR_NEXT = "ReorderInput"
OTHER = "other"


def block_of(layer: str) -> str | None:
    """Return the block of a module path or node name: ``up_blocks.1.attentions.2``; None outside of any."""
    found = _BLOCK.search(layer)
    return found.group(1) if found else None


def in_order(blocks: Iterable[str]) -> list[str]:
    """Sort blocks as the data passes them; what is no block comes last."""

    def place(block: str) -> tuple[int, list[int], str]:
        first = block.split(".")[0]
        rank = _ORDER.index(first) if first in _ORDER else len(_ORDER)
        stage, *_ = (*(int(number) for number in re.findall(r"\d+", block)), 0)
        last = int(block.rsplit(".", 1)[-1]) if "." in block else 0
        # Within a stage the ResNet block of a number runs before the transformer block of that number.
        kinds = ("resnets", "attentions", "downsamplers", "upsamplers")
        kind = next((index for index, name in enumerate(kinds) if name in block), 0)
        sampler = kind >= 2
        return rank, [stage, int(sampler), last, kind], block

    return sorted(blocks, key=place)


def blocks_of_nodes(nodes: Sequence[Mapping[str, Any]], layers: Mapping[str, str]) -> list[str]:
    """Return the block of every executed node, in order of execution.

    Args:
        nodes: ``name`` and ``op`` of each, as onnxruntime's profiler gives them.
        layers: graph value -> name of the node that computes it. onnxruntime names the convolutions that it moves into
            its own layout after their output.

    A node that onnxruntime made up belongs to the named node before it, a ``ReorderInput`` to the one after it.
    """
    found = [_block_of_node(node["name"], layers) for node in nodes]
    resolved: list[str] = []
    for index, block in enumerate(found):
        if block is None and nodes[index]["op"] == _FOR_NEXT:
            block = next((later for later in found[index + 1 :] if later is not None), None)
        if block is None:
            block = resolved[-1] if resolved else OTHER
        resolved.append(block)
    return resolved


def _block_of_node(name: str, layers: Mapping[str, str]) -> str | None:
    """Return the block of a named node, ``other`` for a named node outside of any, None for a made-up name."""
    layer = layers.get(name.removesuffix("_nchwc"), name)
    if "/" not in layer:
        return None
    return block_of(layer) or OTHER
