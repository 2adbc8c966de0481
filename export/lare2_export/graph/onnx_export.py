"""One torch module to one ONNX graph: exported by torch's dynamo exporter, stripped, its weights in a shared file."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from lare2_rt.bundle.manifest import Precision, Profile

from ..components import Component, Geometry


@dataclass(frozen=True, slots=True)
class Flavour:
    """A precision in the ONNX profile that engines take it in."""

    precision: Precision
    profile: Profile
    opset: int

    @property
    def suffix(self) -> str:
        """Part of file names."""
        return f"{self.precision}.{self.profile}"


FLAVOURS: dict[Precision, Flavour] = {
    # What every CPU engine reads: no operator newer than opset 20, norms in basic operators.
    "fp32": Flavour("fp32", "portable", 20),
    # What GPU engines want: from opset 21 on GroupNormalization has a scale per channel and is one layer.
    "fp16": Flavour("fp16", "native", 21),
}
KEY_PROPERTY = "lare2_rt.component_key"
_EXTERNAL_FROM = 1024  # bytes; smaller constants stay in the graph, where engines fold them
_PAGE, _PAGE_FROM = 4096, 1 << 20  # large weights start on a page so that they can be memory-mapped
_ALIGNMENT = 64


def export_graph(
    module: nn.Module, component: Component, geometry: Geometry, *, batch: int, opset: int = FLAVOURS["fp32"].opset
) -> ir.Model:
    """Export with fixed shapes; probes become named values inside the graph, not outputs."""
    inputs = component.example_inputs(geometry, batch)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            opset_version=opset,
            input_names=list(component.input_names),
            output_names=[*component.output_names, *component.probes],
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model
    del model.graph.outputs[len(component.output_names) :]
    return model


def strip(model: ir.Model, *, key: str) -> None:
    """Remove what the exporter wrote beside the graph (machine paths, stack traces) and leave the component key.

    Nodes get the name of the layer that they come from, which profilers and engines show.
    """
    _name_after_layers(model)
    model.doc_string = None
    model.producer_name, model.producer_version = "lare2-rt", None
    model.metadata_props.clear()
    model.metadata_props[KEY_PROPERTY] = key
    model.graph.name = "main_graph"
    model.graph.doc_string = None
    model.graph.metadata_props.clear()
    for value in _values(model):
        value.doc_string = None
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.doc_string = None
        node.metadata_props.clear()
    for initialiser in model.graph.initializers.values():
        if initialiser.const_value is not None:
            initialiser.const_value.doc_string = None


def _name_after_layers(model: ir.Model) -> None:
    """``unet.mid_block.resnets.0.conv1/Conv``; a layer's further nodes of one kind are numbered."""
    taken: dict[str, int] = {}
    for node in model.graph.all_nodes():
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        layer = next((scope for scope in reversed(scopes[:-1]) if scope), "graph")
        name = f"{layer}/{node.op_type}"
        taken[name] = taken.get(name, 0) + 1
        node.name = name if taken[name] == 1 else f"{name}.{taken[name]}"


class WeightFile:
    """A file of weights shared by the batch sizes of a component: equal content is stored once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: IO[bytes] = path.open("xb")
        self._offsets: dict[str, int] = {}

    def move_in(self, model: ir.Model) -> None:
        """Move the large initialisers of a model into this file, leaving references."""
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < _EXTERNAL_FROM:
                continue
            offset = self._add(np.ascontiguousarray(tensor.numpy()))
            value.const_value = ir.ExternalTensor(
                self._path.name,
                offset,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape([int(n) for n in tensor.shape.numpy()]),
                name=value.name or "",
                base_dir=self._path.parent,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.close()

    def _add(self, array: NDArray[Any]) -> int:
        content = array.reshape(-1).view(np.uint8).data
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._offsets:
            alignment = _PAGE if len(content) >= _PAGE_FROM else _ALIGNMENT
            self._handle.write(b"\0" * (-self._handle.tell() % alignment))
            self._offsets[digest] = self._handle.tell()
            self._handle.write(content)
        return self._offsets[digest]


def tensor_specs(values: list[ir.Value]) -> list[dict[str, object]]:
    """Return name, dtype and shape of graph inputs or outputs; every dimension is a number."""
    names = {ir.DataType.FLOAT: "float32", ir.DataType.UINT8: "uint8"}
    specs: list[dict[str, object]] = []
    for value in values:
        assert value.name is not None
        assert value.dtype is not None
        assert value.shape is not None
        shape = [int(n) for n in value.shape.numpy()]
        specs.append({"name": value.name, "dtype": names[value.dtype], "shape": shape})
    return specs


def add_output(model: ir.Model, name: str) -> None:
    """Make an inner value of a graph an output, for parity."""
    value = next(v for v in _values(model) if v.name == name)
    model.graph.outputs.append(value)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph.all_nodes():
        yield from node.outputs


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's advice about its own internals; failures are exceptions."""
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
