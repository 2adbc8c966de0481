"""A second opinion on every component: NVIDIA's Polygraphy builds and runs the graphs by itself.

Neither our builder, nor our chain, nor our buffers take part. What TensorRT gives is compared with ONNX Runtime in
float32, on the same inputs, with the tolerances of the build. Without a GPU the half-precision graphs run on the CPU
instead, which shows that the graphs and this script are sound, and nothing about TensorRT.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.resident import RefusedError
from benchmarks.gpu_report.cases import Case
from lare2_export.components import COMPONENTS
from lare2_rt.bundle.opening import Bundle
from lare2_rt.engines.difference import difference
from lare2_rt.engines.registry import entry_of
from lare2_rt.pixels.procedural import procedural_pictures

Arrays = Mapping[str, NDArray[Any]]


def second_opinion(bundle: Bundle, case: Case) -> dict[str, Any]:
    """Return the figures of all components; raises RefusedError where Polygraphy or what it needs is missing."""
    try:
        from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
        from polygraphy.comparator import Comparator
    except ImportError as error:
        raise RefusedError(
            f"Polygraphy cannot be imported ({error})", remedy="pip install polygraphy onnxruntime"
        ) from error
    pixels = bundle.manifest.preprocess(procedural_pictures()[0])
    values: dict[str, NDArray[Any]] = {
        "image": pixels.image[None],
        "crop": pixels.crop[None],
        "posterior_noise": bundle.noise.posterior,
        "noise": bundle.noise.ensemble,
    }
    found = {}
    for component in COMPONENTS:
        single, half = (
            str(bundle.graph_path(bundle.variant(component.name, batch=1, precision=precision, profile=profile)))  # type: ignore[arg-type]
            for precision, profile in (("fp32", "portable"), ("fp16", "native"))
        )
        feed = {name: values[name] for name in component.input_names}
        reference = OnnxrtRunner(SessionFromOnnx(single, providers=["cpu"]), name="float32")
        if case.device == "cuda":
            judged = _tensorrt(half)
        else:
            judged = OnnxrtRunner(SessionFromOnnx(half, providers=["cpu"]), name="half")
        results = Comparator.run([reference, judged], data_loader=[feed])
        finite = bool(Comparator.validate(results, check_inf=True, check_nan=True))
        theirs, ours = (dict(iterations[0]) for _, iterations in results.items())
        values.update({name: np.array(theirs[name]) for name in component.output_names})
        found[component.name] = _judged(ours, theirs, component.half_tolerance, finite=finite)
    return {
        "status": "measured",
        "passed": all(entry["passed"] for entry in found.values()),
        "polygraphy": importlib.metadata.version("polygraphy"),
        "ran_on": "TensorRT" if case.device == "cuda" else "ONNX Runtime on the CPU",
        "components": found,
    }


def _tensorrt(graph: str) -> Any:  # noqa: ANN401 - Polygraphy has no types
    """Return a runner whose engine Polygraphy builds; TF32 is off and typing strong, as in our plans."""
    try:
        importlib.import_module("tensorrt")  # Polygraphy imports it late, and says in its own words that it is missing
        from polygraphy.backend.trt import CreateConfig, EngineFromNetwork, NetworkFromOnnxPath, TrtRunner

        network = NetworkFromOnnxPath(graph, strongly_typed=True)
        return TrtRunner(EngineFromNetwork(network, config=CreateConfig()), name="tensorrt")
    except ImportError as error:
        raise RefusedError(f"TensorRT cannot be imported ({error})", remedy=entry_of("tensorrt").install) from error


def _judged(ours: Arrays, theirs: Arrays, tolerance: Mapping[str, float], *, finite: bool) -> dict[str, Any]:
    outputs = {}
    for name, limit in tolerance.items():
        if name in ours:
            gap = difference(np.asarray(ours[name]), np.asarray(theirs[name])).relative_l2
            within = bool(np.isfinite(gap) and gap <= limit)
            outputs[name] = {"relative_l2": gap if np.isfinite(gap) else None, "limit": limit, "passed": within}
    passed = finite and bool(outputs) and all(entry["passed"] for entry in outputs.values())
    return {"finite": finite, "outputs": outputs, "passed": passed}
