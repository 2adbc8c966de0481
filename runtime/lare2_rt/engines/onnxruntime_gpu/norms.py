"""Write GroupNormalization as InstanceNormalization, for ONNX Runtime's CUDA provider. Runs in a child process.

Arguments: name of the ONNX file, in the current folder, and where the new one goes. Weights stay in the data file of
the graph, to which the new one refers by its name.

ONNX Runtime has no kernel for GroupNormalization and expands it, with the shape of the input taken at run time. What
computes with shapes runs on the CPU, so the graph could neither keep off the CPU nor be captured into a CUDA graph.
Here the shapes are constants: the groups of an image become the channels of an instance norm.

Whoever changes what is written raises ``revision`` in ``engine.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...host.child import written_or_said


def rewrite(model: onnx.ModelProto) -> int:
    """Replace every GroupNormalization of a graph with fixed shapes in place; returns their number."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = {value.name: value.type.tensor_type for value in (*inferred.input, *inferred.value_info)}
    graph, nodes = model.graph, []
    count = 0
    for node in graph.node:
        if node.op_type != "GroupNormalization":
            nodes.append(node)
            continue
        count += 1
        nodes += _instance_norm(graph, node, values[node.input[0]])
    del graph.node[:]
    graph.node.extend(nodes)
    return count


def _instance_norm(graph: onnx.GraphProto, node: onnx.NodeProto, tensor: onnx.TypeProto.Tensor) -> list[onnx.NodeProto]:
    """Return what computes a norm of [B,C,...]: [B,G,the rest] normalised, shaped back, scaled and shifted."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    shape = [size.dim_value for size in tensor.shape.dim]
    if len(shape) < 3 or 0 in shape:
        raise ValueError(f"{node.name} normalises {node.input[0]}, which has no fixed shape [B,C,...]")
    groups, epsilon = attributes["num_groups"], attributes.get("epsilon", 1e-5)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    name = node.name or node.output[0]

    def constant(part: str, content: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(content, f"{name}/{part}"))
        return f"{name}/{part}"

    def step(operator: str, inputs: list[str], output: str, **options: Any) -> onnx.NodeProto:  # noqa: ANN401 - as onnx has it
        return helper.make_node(operator, inputs, [output], name=f"{name}/{operator.lower()} {output}", **options)

    grouped, normal, shaped, scaled = (f"{name}/{part}" for part in ("grouped", "normal", "shaped", "scaled"))
    ones, zeros = constant("ones", np.ones(groups, dtype)), constant("zeros", np.zeros(groups, dtype))
    to_groups = constant("to_groups", np.array([shape[0], groups, -1], np.int64))
    back = constant("back", np.array(shape, np.int64))
    channels = constant("channels", np.array([shape[1], *[1] * (len(shape) - 2)], np.int64))
    factor, offset = f"{name}/factor", f"{name}/offset"
    return [
        step("Reshape", [node.input[0], to_groups], grouped),
        step("InstanceNormalization", [grouped, ones, zeros], normal, epsilon=epsilon),
        step("Reshape", [normal, back], shaped),
        step("Reshape", [node.input[1], channels], factor),
        step("Reshape", [node.input[2], channels], offset),
        step("Mul", [shaped, factor], scaled),
        step("Add", [scaled, offset], node.output[0]),
    ]


def write(source: str, target: Path) -> None:
    """Rewrite the graph in ``source`` into ``target``."""
    model = onnx.load(source, load_external_data=False)
    rewrite(model)
    target.write_bytes(model.SerializeToString(deterministic=True))


def main(source: str, target: str) -> None:
    """Rewrite, as a child of the engine."""
    written_or_said(lambda: write(source, Path(target)))
