"""What the GPU report measures: rows, each at several batch sizes, each in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True, slots=True)
class Row:
    """One way to run the chain.

    Attributes:
        name: for people; opener: ``module:function`` that opens it.
        device, precision: where and in what it computes.
        option: how, in the opener's own words: an engine's name, ``eager`` or ``compile``.
        graph: whether a CUDA graph is replayed; None where that is no question.
    """

    name: str
    opener: str
    device: Device
    precision: Literal["fp32", "fp16"]
    option: str
    graph: bool | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """A row at one batch size, as it travels to its process; paths as text.

    Attributes:
        model: of the seeded ones, or None where the bundle was given; work: where its model folder may lie.
        reference: recorded answers, or None.
        seconds: of timed calls.
    """

    row: str
    opener: str
    device: Device
    precision: Literal["fp32", "fp16"]
    option: str
    graph: bool | None
    batch: int
    bundle: str
    model: str | None
    work: str
    reference: str | None
    threads: int
    seconds: float


_TORCH, _ENGINE = "benchmarks.gpu_report.eager:open_torch", "benchmarks.gpu_report.worker:open_engine_row"
EAGER = "PyTorch eager fp16"  # what the others are compared with in speed
ROWS: tuple[Row, ...] = (
    Row("PyTorch eager fp32", _TORCH, "cuda", "fp32", "eager"),
    Row(EAGER, _TORCH, "cuda", "fp16", "eager"),
    Row("torch.compile fp16", _TORCH, "cuda", "fp16", "compile"),
    Row("ONNX Runtime CUDA", _ENGINE, "cuda", "fp16", "onnxruntime-cuda", graph=False),
    Row("ONNX Runtime CUDA, graph", _ENGINE, "cuda", "fp16", "onnxruntime-cuda", graph=True),
    Row("ONNX Runtime TensorRT, graph", _ENGINE, "cuda", "fp16", "onnxruntime-tensorrt", graph=True),
    Row("TensorRT", _ENGINE, "cuda", "fp16", "tensorrt", graph=False),
    Row("TensorRT, graph", _ENGINE, "cuda", "fp16", "tensorrt", graph=True),
    Row("CPU: PyTorch eager fp32", _TORCH, "cpu", "fp32", "eager"),
    Row("CPU: ONNX Runtime fp32", _ENGINE, "cpu", "fp32", "onnxruntime"),
)
BATCHES = (1, 4, 8, 16)


def cases_of(rows: Sequence[Row], batches: Sequence[int], **common: Any) -> list[Case]:  # noqa: ANN401 - Case's fields
    """Return every case; on a CPU, where larger batches only cost more, the smallest batch alone.

    Args:
        common: what all cases share: the fields of ``Case`` from ``bundle`` on.
    """
    return [
        Case(row.name, row.opener, row.device, row.precision, row.option, row.graph, batch, **common)
        for row in rows
        for batch in (batches if row.device == "cuda" else sorted(batches)[:1])
    ]
