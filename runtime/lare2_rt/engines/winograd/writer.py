"""What a rewritten graph is made of: new nodes under names that no other has, constants that are stored once each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

ReadWeight = Callable[[str], NDArray[np.float32]]
StoreWeight = Callable[[str, NDArray[np.float32]], onnx.TensorProto]


class Writer:
    """The nodes and constants of a graph that is written anew, node after node of the old one.

    Args:
        weight_of: returns a stored weight by its name.
        store: keeps a new weight under a name and returns what stands for it.
    """

    def __init__(self, weight_of: ReadWeight, store: StoreWeight) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weight_of, self._store = weight_of, store
        self._tensors: list[onnx.TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._node = onnx.NodeProto()
        self._count = 0

    def begin(self, node: onnx.NodeProto) -> None:
        """Let what is added now bear the name of the layer of an old node, as every node of a graph does."""
        self._node, self._count = node, 0

    def keep(self) -> None:
        """Take the old node as it is."""
        self.nodes.append(self._node)

    def add(
        self,
        operator: str,
        inputs: Sequence[str],
        result: str | None = None,
        **attributes: Any,  # noqa: ANN401 - as onnx has it
    ) -> str:
        """Add a node and return the name of its output."""
        name = result or self._value()
        self.nodes.append(helper.make_node(operator, [*inputs], [name], self._label(operator), **attributes))
        self._count += 1
        return name

    def shaped(self, value: str, *shape: int) -> str:
        """Return a value in another shape, which moves nothing."""
        return self.add("Reshape", [value, self.constant(np.array(shape, np.int64))])

    def constant(self, array: NDArray[np.float32] | NDArray[np.int32] | NDArray[np.int64]) -> str:
        """Return the name of a small constant, the same for all that have this content."""
        key = (array.dtype.str, array.shape, array.tobytes())
        return self._constants.setdefault(key, f"winograd.{len(self._constants)}")

    def weight(self, name: str, array: NDArray[np.float32]) -> str:
        """Store a new weight; returns its name."""
        tensor = self._store(name, array)
        self._tensors.append(tensor)
        return tensor.name

    def finish(self, model: onnx.ModelProto) -> None:
        """Put the new nodes into the graph, with all that they read and nothing else."""
        graph = model.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        small = (
            numpy_helper.from_array(np.frombuffer(content, dtype).reshape(shape), name)
            for (dtype, shape, content), name in self._constants.items()
        )
        read = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in (*graph.initializer, *small, *self._tensors) if tensor.name in read]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        # Of values between nodes some are no more.
        del graph.value_info[:]

    def _value(self) -> str:
        return f"{self._node.output[0]}.winograd.{self._count}"

    def _label(self, operator: str) -> str:
        """Return a name that no other node has, within the layer as names of nodes are."""
        layer, _, own = self._node.name.rpartition("/")
        return f"{layer}/{operator}.winograd.{own}.{self._count}"
