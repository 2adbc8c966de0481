"""Rewrite one ONNX graph for the engine ``winograd``, in a child process whose working folder is that of the file.

Arguments: name of the ONNX file, name of the result, and settings as JSON: ``tiles``, ``budget`` and ``channels``.
Beside the result stand its weights, transformed and others, in one file.
"""

import json
from collections import Counter
from pathlib import Path
from typing import IO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.external_data_helper import set_external_data, uses_external_data

from ...host.child import written_or_said
from .layers import choose, layers_of
from .rewrite import rewrite

WEIGHTS = "weights.data"
_PAGE = 4096  # weights start on a page, so that they are mapped and not read


class Weights:
    """The file of weights of a graph, written one after the other."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle

    def store(self, name: str, array: NDArray[np.float32]) -> onnx.TensorProto:
        """Append an array and return the tensor that refers to it."""
        tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=array.shape)
        self.point(tensor, np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        return tensor

    def point(self, tensor: onnx.TensorProto, content: NDArray[np.uint8]) -> None:
        """Append bytes and let a tensor refer to them."""
        self._handle.write(bytes(-self._handle.tell() % _PAGE))
        tensor.raw_data = b""  # what is set next is meant to stand for
        set_external_data(tensor, WEIGHTS, offset=self._handle.tell(), length=content.size)
        tensor.ClearField("raw_data")
        self._handle.write(content.data)


def content_of(tensor: onnx.TensorProto) -> NDArray[np.uint8]:
    """Return the bytes of a tensor that is stored in a file of this folder, without reading them yet.

    Raises:
        ValueError: the graph names a file elsewhere.
    """
    place = {entry.key: entry.value for entry in tensor.external_data}
    if Path(place["location"]).name != place["location"]:
        raise ValueError(f"the weights {tensor.name} are said to lie in {place['location']}, outside of the bundle")
    return np.memmap(place["location"], np.uint8, "r", int(place.get("offset", 0)), (int(place["length"]),))


def build(graph: str, target: str, settings: str) -> None:
    """Choose, rewrite and write."""
    wanted = json.loads(settings)
    model = onnx.load(graph, load_external_data=False)
    layers = Counter(layers_of(model).values())
    chosen = choose(layers, tiles=tuple(wanted["tiles"]), budget=wanted["budget"], channels=wanted["channels"])
    stored = {tensor.name: tensor for tensor in model.graph.initializer}

    def weight_of(name: str) -> NDArray[np.float32]:
        tensor = stored[name]
        if uses_external_data(tensor):
            return content_of(tensor).view(np.float32).reshape(tensor.dims)
        return onnx.numpy_helper.to_array(tensor)

    with Path(WEIGHTS).open("xb") as handle:
        weights = Weights(handle)
        rewrite(model, chosen, weight_of=weight_of, store=weights.store)
        for tensor in model.graph.initializer:
            if tensor.name in stored and uses_external_data(tensor):
                weights.point(tensor, content_of(tensor))
    Path(target).write_bytes(model.SerializeToString(deterministic=True))


def main(graph: str, target: str, settings: str) -> None:
    """Rewrite, as a child of the engine."""
    written_or_said(lambda: build(graph, target, settings))
