"""Group norms: found in a portable graph, where they are many nodes, and computed on rows of channels in few passes.

The statistics are exact where float32 allows it: sums in two stages, and the variance from what is left when the mean
has been subtracted, as in the graph (``prepare.py`` of the export).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from .layers import attributes_of
from .rows import Rows, mapped
from .writer import ReadWeight, Writer


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """A group norm of a graph: names of its input, scale and shift [C,1,..] and what lies between, and its settings."""

    source: str
    scale: str
    shift: str
    groups: int
    epsilon: float
    inner: frozenset[str]


class _MismatchError(Exception):
    """Nodes are no group norm."""


def norms_of(model: onnx.ModelProto, shapes: dict[str, list[int]], weight_of: ReadWeight) -> dict[str, GroupNorm]:
    """Return every group norm, by the name of its output."""
    return dict(_Finder(model, shapes, weight_of).found())


class _Finder:
    def __init__(self, model: onnx.ModelProto, shapes: dict[str, list[int]], weight_of: ReadWeight) -> None:
        self._nodes = list(model.graph.node)
        self._made_by = {name: node for node in self._nodes for name in node.output}
        self._uses = Counter(name for node in self._nodes for name in node.input)
        self._uses.update(value.name for value in model.graph.output)
        self._weights = {tensor.name for tensor in model.graph.initializer}
        self._shapes, self._weight_of = shapes, weight_of

    def found(self) -> Iterator[tuple[str, GroupNorm]]:
        for node in self._nodes:
            if node.op_type == "Add" and node.input[1] in self._weights:
                try:
                    yield node.output[0], self._ending_in(node)
                except _MismatchError:
                    continue

    def _ending_in(self, shift: onnx.NodeProto) -> GroupNorm:
        """Read backwards from the last node; raises _MismatchError."""
        inner: Counter[str] = Counter()
        scale = self._made(shift.input[0], "Mul", inner)
        back = self._made(scale.input[0], "Reshape", inner)
        normal = self._made_by.get(back.input[0])
        if normal is None:
            raise _MismatchError
        if normal.op_type == "InstanceNormalization":
            groups, epsilon = self._in_one(normal, inner)
        else:
            groups, epsilon = self._in_two_stages(normal, inner)
        there = self._made(groups, "Reshape", inner)
        source = there.input[0]
        shape, grouped = self._shapes.get(source, []), self._shapes.get(groups, [])
        fits = len(shape) > 2 and self._shapes.get(back.output[0]) == shape and grouped[:1] == shape[:1]
        if not fits or 0 in shape + grouped or shape[1] % grouped[1]:
            raise _MismatchError
        channel = [shape[1], *[1] * (len(shape) - 2)]
        if any(self._weight_shape(node.input[1]) != channel for node in (scale, shift)):
            raise _MismatchError
        if any(self._uses[name] > count for name, count in inner.items()):
            raise _MismatchError  # somebody else wants to know it
        return GroupNorm(source, scale.input[1], shift.input[1], grouped[1], epsilon, frozenset(inner))

    def _in_one(self, node: onnx.NodeProto, inner: Counter[str]) -> tuple[str, float]:
        """Return input and epsilon of an instance norm over groups that neither scales nor shifts."""
        inner[node.output[0]] += 1
        if not (np.all(self._weight_of(node.input[1]) == 1) and np.all(self._weight_of(node.input[2]) == 0)):
            raise _MismatchError
        return node.input[0], float(attributes_of(node).get("epsilon", 1e-5))

    def _in_two_stages(self, node: onnx.NodeProto, inner: Counter[str]) -> tuple[str, float]:
        """Return input and epsilon of what is written out: (x - mean) / sqrt(mean of squares + epsilon)."""
        normal = self._made(node.output[0], "Div", inner)
        centred = self._made(normal.input[0], "Sub", inner)
        added = self._made(self._made(normal.input[1], "Sqrt", inner).input[0], "Add", inner)
        square = self._made(self._mean_of(added.input[0], inner), "Mul", inner)
        inner[centred.output[0]] += 2  # both factors of the square
        groups = centred.input[0]
        mean = self._mean_of(centred.input[1], inner)
        if [*square.input] != [centred.output[0]] * 2 or mean != groups or added.input[1] not in self._weights:
            raise _MismatchError
        inner[groups] += 1  # centred, and averaged
        return groups, float(self._weight_of(added.input[1]))

    def _mean_of(self, value: str, inner: Counter[str]) -> str:
        """Return what a value is the mean of for each group, in two steps."""
        outer = self._made(value, "ReduceMean", inner)
        first = self._made(outer.input[0], "ReduceMean", inner)
        shape = self._shapes.get(first.input[0], [])
        if len(shape) != 4 or self._shapes.get(value) != [*shape[:2], 1, 1]:
            raise _MismatchError
        return str(first.input[0])

    def _made(self, value: str, operator: str, inner: Counter[str]) -> onnx.NodeProto:
        """Return the node that computes a value, used once more by the norm."""
        node: onnx.NodeProto | None = self._made_by.get(value)
        if node is None or node.op_type != operator:
            raise _MismatchError
        inner[value] += 1
        return node

    def _weight_shape(self, name: str) -> list[int] | None:
        return [*self._weight_of(name).shape] if name in self._weights else None


def normalised(writer: Writer, rows: Rows, norm: GroupNorm) -> Rows:
    """Return the rows after a group norm.

    Each piece tells its mean and variance while it is in the cache. With the pieces' means m and variances v, a group's
    mean is that of the m, and its variance that of v + (m - mean)²: exactly, and without differences of large sums.
    What is centred for the variance is not kept: a library that joins operators reads each value twice and writes once.
    """
    channels, groups = rows.channels, norm.groups
    pool = np.kron(np.eye(groups), np.full((channels // groups, 1), groups / channels)).astype(np.float32)  # [C,G]
    spread = writer.constant((pool.T > 0).astype(np.float32))  # [G,C]
    pooled = writer.constant(pool)
    means, variances = _statistics(writer, rows)
    if rows.bias is not None:
        means = writer.add("Add", [means, writer.constant(rows.bias)])
    mean = writer.add("MatMul", [_over_pieces(writer, rows, means), pooled])  # [1,B,1,G]
    centre = writer.add("MatMul", [mean, spread])  # [1,B,1,C]
    apart = writer.add("Sub", [means, centre])  # [1,B,pieces,C]
    variances = writer.add("Add", [variances, writer.add("Mul", [apart, apart])])
    variance = writer.add("MatMul", [_over_pieces(writer, rows, variances), pooled])
    epsilon = writer.constant(np.array(norm.epsilon, np.float32))
    deviation = writer.add("Sqrt", [writer.add("Add", [variance, epsilon])])
    inverse = writer.add("MatMul", [writer.add("Reciprocal", [deviation]), spread])  # [1,B,1,C]
    scale, shift = (writer.constant(writer.weight_of(name).reshape(-1)) for name in (norm.scale, norm.shift))
    factor = writer.add("Mul", [inverse, scale])
    if rows.bias is not None:
        centre = writer.add("Sub", [centre, writer.constant(rows.bias)])
    return mapped(writer, "Add", mapped(writer, "Mul", mapped(writer, "Sub", rows, centre), factor), shift)


def _statistics(writer: Writer, rows: Rows) -> tuple[str, str]:
    """Return mean and variance of each channel of each piece, [1,B,pieces,C]."""
    means, variances = [], []
    for name, size in zip(rows.names, rows.sizes, strict=True):
        means.append(_mean(writer, name, rows, size))
        centred = writer.add("Sub", [name, means[-1]])
        variances.append(_mean(writer, writer.add("Mul", [centred, centred]), rows, size))
    if len(means) == 1:
        return means[0], variances[0]
    return writer.add("Concat", means, axis=2), writer.add("Concat", variances, axis=2)


def _over_pieces(writer: Writer, rows: Rows, value: str) -> str:
    """Return the mean [1,B,1,C] of the means [1,B,pieces,C] of pieces."""
    if len(rows.sizes) == 1:
        return value
    shares = np.array([rows.sizes], np.float64) / sum(rows.sizes)
    return writer.add("MatMul", [writer.constant(shares.astype(np.float32)), value])


def _mean(writer: Writer, value: str, rows: Rows, size: int) -> str:
    """Return the mean of each channel of each picture, [1,B,1,C], of a value [K,B,n,C]."""
    # Sums of neighbours, then of sums: float32 rounds every addition, and in one long sum always the same way.
    some = max(part for part in range(1, math.isqrt(size) + 1) if size % part == 0)
    averaging = writer.constant(np.full((1, some), 1 / some, np.float32))
    parts = writer.add("MatMul", [averaging, writer.shaped(value, -1, some, rows.channels)])  # [K·B·n/some,1,C]
    axes = writer.constant(np.array([0, 2], np.int64))
    sums = writer.shaped(parts, rows.blocks, rows.batch, -1, rows.channels)
    return writer.add("ReduceMean", [sums, axes], keepdims=1)
