"""Half precision by construction: what is computed in float16, what stays float32, and the proof of both in the graph.

TensorRT 11 takes a network's types as they are written and inserts no cast, so the graph has to be right by itself.
"""

from __future__ import annotations

import onnx_ir as ir

from ..build.staging import BuildError

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
# Weights and arithmetic. Norms are single operators whose kernels keep their sums in float32.
_IN_HALF = frozenset({"Conv", "MatMul", "Gemm", "GroupNormalization", "LayerNormalization", "Gelu", "AveragePool"})
# Sums of exponentials.
_IN_SINGLE = frozenset({"Softmax", "Exp"})
# Decomposed norms square their input, which overflows from 256 upwards; shape arithmetic keeps engines from fusing.
_NEVER = frozenset({"InstanceNormalization", "Shape", "ConstantOfShape", "NonZero", "Where"})
_NEVER_IN_HALF = frozenset({"Sqrt", "Pow", "Reciprocal"})


def soften(model: ir.Model) -> None:
    """Put every half-precision Softmax between casts, so that its sums of exponentials are float32, in place."""
    for node in list(model.graph):
        if node.op_type != "Softmax" or node.inputs[0] is None or node.inputs[0].dtype != HALF:
            continue
        source, result = node.inputs[0], node.outputs[0]
        up = ir.node("Cast", [source], {"to": SINGLE}, name=f"{node.name}/up")
        up.outputs[0].dtype, up.outputs[0].shape = SINGLE, source.shape
        down = ir.node("Cast", [result], {"to": HALF}, name=f"{node.name}/down")
        down.outputs[0].dtype, down.outputs[0].shape = HALF, result.shape
        for user, index in list(result.uses()):
            if user is not down:
                user.replace_input_with(index, down.outputs[0])
        node.replace_input_with(0, up.outputs[0])
        result.dtype = SINGLE
        model.graph.insert_before(node, up)
        model.graph.insert_after(node, down)


def check_half(model: ir.Model, name: str) -> None:
    """Raise BuildError unless a graph's arithmetic is half precision, with float32 exactly where it is meant."""
    for node in model.graph.all_nodes():
        types = {value.dtype for value in node.inputs if value is not None and value.dtype in (HALF, SINGLE)}
        produced = node.outputs[0].dtype
        if node.op_type in _NEVER or (node.op_type in _NEVER_IN_HALF and produced == HALF):
            _refuse(name, node, "has no place in a half-precision graph")
        if node.op_type in _IN_SINGLE and produced != SINGLE:
            _refuse(name, node, "must be computed in float32")
        # The pooling of LaRE and the arithmetic around the networks have no layer of their own.
        if node.op_type in _IN_HALF and produced != HALF and not _around_networks(node):
            _refuse(name, node, "must be computed in half precision")
        if len(types) > 1 and node.op_type not in ("Cast", "Resize"):
            _refuse(name, node, "mixes element types, which a strongly typed network refuses")
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype not in (SINGLE, ir.DataType.UINT8):
            raise BuildError(f"{name} in half precision has {value.name} as {value.dtype}; report it")


def _around_networks(node: ir.Node) -> bool:
    return (node.name or "").startswith(("graph/", "pool/"))


def _refuse(name: str, node: ir.Node, why: str) -> None:
    raise BuildError(f"{name} in half precision: {node.name} ({node.op_type}) {why}; build with --no-half")
