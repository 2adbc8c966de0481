"""Split one ONNX graph into stages. Run as a script, in the folder of the file, by ``staged.py``.

Arguments: name of the ONNX file and the folder for the result: ``NN.onnx`` for every stage, in the order in which they
run, and ``stages.json`` with the kind of each, the bytes of its constants, its inputs and its outputs. Weights stay in
the data file of the graph, to which the stages refer by its name.

Exported nodes bear the name of the layer that they come from, which is what decides where one stage ends: a node that
lies in a transformer block (of the UNet, or the attention of the VAE's middle) is ``attention``, any other is ``conv``.
A node without a layer goes with the next one that has a layer.

Whoever changes what is written raises ``REVISION`` in ``stages.py``.
"""

import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnx

from lare2_rt.script import run_to_end

Kind = Literal["attention", "conv"]
_ATTENTION = re.compile(r"(^|\.)attentions\.\d+[./]")
_NO_LAYER = "graph/"


@dataclass(slots=True)
class Stage:
    """Nodes of one kind that follow one another, with the values that come in and go out."""

    kind: Kind
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def kinds_of(names: Sequence[str]) -> list[Kind]:
    """Return the kind of every node, by its name and, where that names no layer, by the names that follow."""
    kinds: list[Kind] = []
    following: Kind = "conv"
    for name in reversed(names):
        if not name.startswith(_NO_LAYER):
            following = "attention" if _ATTENTION.search(name) else "conv"
        kinds.append(following)
    return kinds[::-1]


def split(graph: onnx.GraphProto) -> list[Stage]:
    """Return the stages of a graph whose nodes stand in the order in which they run."""
    stages: list[Stage] = []
    for node, kind in zip(graph.node, kinds_of([node.name for node in graph.node]), strict=True):
        if not stages or stages[-1].kind != kind:
            stages.append(Stage(kind))
        stages[-1].nodes.append(node)
    constants = {tensor.name for tensor in graph.initializer}
    results = [value.name for value in graph.output]
    read_later: set[str] = set(results)
    for stage in reversed(stages):
        made = [name for node in stage.nodes for name in node.output if name]
        read = {name for node in stage.nodes for name in node.input if name}
        stage.outputs = [name for name in made if name in read_later]
        stage.inputs = sorted(read - set(made) - constants)
        read_later |= set(stage.inputs)
    return stages


def _model(model: onnx.ModelProto, stage: Stage, values: dict[str, onnx.ValueInfoProto]) -> onnx.ModelProto:
    inputs, outputs = ([values[name] for name in names] for names in (stage.inputs, stage.outputs))
    graph = onnx.helper.make_graph(stage.nodes, "stage", inputs, outputs, _constants(model.graph, stage))
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _constants(graph: onnx.GraphProto, stage: Stage) -> list[onnx.TensorProto]:
    used = {name for node in stage.nodes for name in node.input}
    return [tensor for tensor in graph.initializer if tensor.name in used]


def _size(tensor: onnx.TensorProto) -> int:
    """Return the bytes of a constant, wherever they are."""
    return int(math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _spec(value: onnx.ValueInfoProto) -> dict[str, object]:
    tensor = value.type.tensor_type
    name = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return {"name": value.name, "dtype": name, "shape": [size.dim_value for size in tensor.shape.dim]}


def _values(graph: onnx.GraphProto) -> Iterable[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.output
    yield from graph.value_info


def write(source: str, folder: Path) -> None:
    """Split the graph in ``source`` and write the stages into ``folder``."""
    model = onnx.load(source, load_external_data=False)
    values = {value.name: value for value in _values(onnx.shape_inference.infer_shapes(model).graph)}
    listing = []
    for number, stage in enumerate(split(model.graph)):
        name = f"{number:02d}.onnx"
        (folder / name).write_bytes(_model(model, stage, values).SerializeToString(deterministic=True))
        listing.append(
            {
                "kind": stage.kind,
                "graph": name,
                "weights": sum(map(_size, _constants(model.graph, stage))),
                "inputs": [_spec(values[value]) for value in stage.inputs],
                "outputs": [_spec(values[value]) for value in stage.outputs],
            }
        )
    (folder / "stages.json").write_text(json.dumps(listing, indent=2) + "\n")


if __name__ == "__main__":
    run_to_end(lambda: write(sys.argv[1], Path(sys.argv[2])))
