"""Half precision: what a graph computes in float16 and what stays float32, the proof of both, and rounding on a CPU.

TensorRT 11 takes a network's types as they are written and inserts no cast, so the graph has to be right by itself.

ONNX Runtime's CPU has few half-precision kernels: it casts up, computes in float32, and removes the casts between
neighbours, so that an overflow never shows. ``open_rounded`` has every half-precision value of a graph computed by a
float32 kernel and then rounded to half and back; what is too large for half becomes infinity, as it would on a GPU. (A
GPU adds a product's terms in another order, in float32 too, so results agree to rounding and not in bits.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lare2_rt.engines.onnxruntime.engine import PROVIDER, session_settings

from ..build.staging import BuildError
from .onnx_export import add_output

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
# Weights and arithmetic. Norms are single operators whose kernels keep their sums in float32.
_IN_HALF = frozenset({"Conv", "MatMul", "Gemm", "GroupNormalization", "LayerNormalization", "Gelu", "AveragePool"})
# Sums of exponentials.
_IN_SINGLE = frozenset({"Softmax", "Exp"})
# Decomposed norms square their input, which overflows from 256 upwards; shape arithmetic keeps engines from fusing.
_NEVER = frozenset({"InstanceNormalization", "Shape", "ConstantOfShape", "NonZero", "Where"})
_NEVER_IN_HALF = frozenset({"Sqrt", "Pow", "Reciprocal"})
LARGEST = 65504.0  # of float16
_MAGNITUDE = "magnitude of "
Arrays = dict[str, NDArray[Any]]


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
        if node.op_type in _IN_HALF and produced != HALF and not (node.name or "").startswith(("graph/", "pool/")):
            _refuse(name, node, "must be computed in half precision")
        if len(types) > 1 and node.op_type not in ("Cast", "Resize"):
            _refuse(name, node, "mixes element types, which a strongly typed network refuses")
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype not in (SINGLE, ir.DataType.UINT8):
            raise BuildError(
                f"{name} in half precision has {value.name} as {value.dtype}",
                remedy="build with --no-half and report it",
            )


def _refuse(name: str, node: ir.Node, why: str) -> None:
    raise BuildError(f"{name} in half precision: {node.name} ({node.op_type}) {why}", remedy="build with --no-half")


@dataclass(frozen=True, slots=True)
class Rounded:
    """A session of a rounded graph.

    ``outputs`` are the names of the graph's outputs and probes; magnitudes of every half-precision value are further
    outputs, named after the node that computes it.
    """

    session: Any
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]

    def run(self, inputs: Arrays) -> tuple[Arrays, NDArray[np.float32]]:
        """Return the outputs by name and, for each of ``nodes``, the largest magnitude before rounding (float32)."""
        results = self.session.run([*self.outputs, *(_MAGNITUDE + name for name in self.nodes)], inputs)
        count = len(self.outputs)
        return dict(zip(self.outputs, results[:count], strict=True)), np.array(results[count:], np.float32)


def open_rounded(graph: Path, *, probes: tuple[str, ...] = (), threads: int) -> Rounded:
    """Open a half-precision graph with every value rounded; ``probes`` are inner float32 values to return as well."""
    from onnxruntime import GraphOptimizationLevel

    model = ir.load(graph)
    for probe in probes:
        add_output(model, probe)
    outputs = tuple(str(value.name) for value in model.graph.outputs)
    nodes = round_values(model)
    settings = session_settings(threads)
    # Nothing may be fused or folded: a fused kernel would not round in between.
    settings.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
    return Rounded(open_in_memory(model, graph.parent, settings), outputs, nodes)


def open_in_memory(model: ir.Model, folder: Path, settings: Any) -> Any:  # noqa: ANN401 - onnxruntime is untyped
    """Open a changed graph whose weights lie in ``folder``: a bundle may be read-only, and in use by others."""
    import onnxruntime

    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    content = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(content, settings, providers=[PROVIDER])


def round_values(model: ir.Model) -> tuple[str, ...]:
    """Make every half-precision value of a graph float32 and rounded, in place; return the nodes that compute them.

    Each of those nodes gets an output with the largest magnitude of its result.
    """
    graph = model.graph
    original = list(graph)
    for value in list(graph.initializers.values()):
        if value.dtype == HALF:
            _cast_up(graph, value, before=original[0])
    names = []
    for node in original:
        halves = [value for value in node.outputs if value.dtype == HALF]
        if node.op_type == "Cast":
            for value in halves:
                _cast_up(graph, value, after=node)
            continue
        for index, value in enumerate(halves):
            names.append(f"{node.name}" + (f"[{index}]" if len(halves) > 1 else ""))
            _round(graph, node, value, names[-1])
    return tuple(names)


def _cast_up(graph: ir.Graph, value: ir.Value, *, after: ir.Node | None = None, before: ir.Node | None = None) -> None:
    """Let every user of a half-precision value take it as float32."""
    users = list(value.uses())
    up = ir.node("Cast", [value], {"to": SINGLE}, name=f"{value.name} up")
    up.outputs[0].dtype, up.outputs[0].shape = SINGLE, value.shape
    for user, index in users:
        user.replace_input_with(index, up.outputs[0])
    if after is not None:
        graph.insert_after(after, up)
    elif before is not None:
        graph.insert_before(before, up)


def _round(graph: ir.Graph, node: ir.Node, result: ir.Value, name: str) -> None:
    """Round a result of a node to half and back, and report its largest magnitude before that."""
    users = list(result.uses())
    result.dtype = SINGLE
    down = ir.node("Cast", [result], {"to": HALF}, name=f"{name} down")
    up = ir.node("Cast", [down.outputs[0]], {"to": SINGLE}, name=f"{name} rounded")
    down.outputs[0].dtype, up.outputs[0].dtype = HALF, SINGLE
    down.outputs[0].shape = up.outputs[0].shape = result.shape
    for user, index in users:
        user.replace_input_with(index, up.outputs[0])
    size = ir.node("Abs", [result], name=f"{name} abs")
    largest = ir.node("ReduceMax", [size.outputs[0]], {"keepdims": 0}, name=f"{name} max")
    largest.outputs[0].name = _MAGNITUDE + name
    largest.outputs[0].dtype, largest.outputs[0].shape = SINGLE, ir.Shape([])
    graph.insert_after(node, [down, up, size, largest])
    graph.outputs.append(largest.outputs[0])
