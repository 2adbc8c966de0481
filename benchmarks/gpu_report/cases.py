"""What the GPU report measures: rows, each at several batch sizes, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.resident import RefusedError
from benchmarks.gpu_reference import FOLDER, load, model_sources
from lare2_rt.bundle.manifest import MANIFEST
from lare2_rt.bundle.opening import Bundle, open_bundle
from lare2_rt.errors import BundleError

if TYPE_CHECKING:
    from lare2_ref.sources import ModelSources


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


Arrays = dict[str, NDArray[np.float32]]


def sources_of(case: Case) -> ModelSources:
    """Return the weights of a case; raises RefusedError for a bundle whose weights are not here."""
    if case.model is None:
        raise RefusedError("PyTorch rows need the weights", remedy="run with --model instead of --bundle")
    return model_sources(case.model, Path(case.work))


def prepare_bundle(
    model: str, work: Path, batches: Sequence[int], *, threads: int, report: Callable[[str], None]
) -> Bundle:
    """Return the bundle of a model below ``work`` with graphs for these batches, built unless it is there.

    Raises:
        Lare2Error: it cannot be built.
    """
    folder, wanted = work / "bundle" / model, {1, *batches}
    if (folder / MANIFEST).is_file():
        bundle = open_bundle(folder)
        if wanted <= set(bundle.batches):
            report(f"the bundle of {model} was built by an earlier run")
            return bundle
        wanted |= set(bundle.batches)
    from lare2_export.build.bundle import build_bundle
    from lare2_export.build.isolate import start_server
    from lare2_export.build.options import BuildOptions
    from lare2_ref import quieten_libraries

    start_server()
    quieten_libraries()
    folder.parent.mkdir(parents=True, exist_ok=True)
    options = BuildOptions(batches=tuple(sorted(wanted)), half=True, threads=threads)
    return build_bundle(model_sources(model, work), folder, options, report=report)


def recorded_for(model: str | None) -> Path | None:
    """Return the file of recorded answers for a model, if there is one."""
    path = FOLDER / f"{model}.npz"
    return path if model is not None and path.is_file() else None


def expected_answers(bundle: Bundle, reference: Path | None) -> tuple[Arrays, str]:
    """Return what the reference gives on the procedural pictures, and where that comes from.

    Recorded answers count where they are of this very model; else those that the bundle's build computed.

    Raises:
        BundleError: there are neither.
    """
    why = "none are recorded for this model"
    if reference is not None:
        found = load(reference)
        mismatch = found.why_not(bundle)
        if mismatch is None:
            return dict(found.arrays), f"recorded in {reference.name}"
        why = mismatch
    if bundle.selfcheck is None:
        raise BundleError(
            f"{bundle.path} has no answers of the reference to compare with", remedy="build the bundle again"
        )
    shape = (len(bundle.selfcheck), *bundle.manifest.method.latent_shape)
    answers = {"logits": bundle.selfcheck[:, :2], "lare": bundle.selfcheck[:, 2:].reshape(shape)}
    return answers, f"computed by PyTorch when the bundle was built here: {why}"
