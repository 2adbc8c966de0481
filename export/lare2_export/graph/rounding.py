"""What half precision does to a graph, computed on a CPU.

ONNX Runtime's CPU has few half-precision kernels: it casts up, computes in float32, and removes the casts between
neighbours, so that an overflow never shows. Here every half-precision value of a graph is computed by a float32 kernel
and then rounded to half and back; what is too large for half becomes infinity, as it would on a GPU. (A GPU adds a
product's terms in another order, in float32 too, so results agree to rounding and not in bits.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lare2_rt.engines.onnxruntime.engine import PROVIDER, session_settings

from ..parity.half import HALF, SINGLE
from .onnx_export import add_output

LARGEST = 65504.0  # of float16
_MAGNITUDE = "magnitude of "
Arrays = dict[str, NDArray[Any]]


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
    import onnxruntime

    model = ir.load(graph)
    for probe in probes:
        add_output(model, probe)
    outputs = tuple(str(value.name) for value in model.graph.outputs)
    nodes = round_values(model)
    settings = session_settings(threads)
    # Nothing may be fused or folded: a fused kernel would not round in between.
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
    content = ir.to_proto(model).SerializeToString()
    return Rounded(onnxruntime.InferenceSession(content, settings, providers=[PROVIDER]), outputs, nodes)


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
