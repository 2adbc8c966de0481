"""How far a bundle is from the reference: each component on the reference's own inputs, then the chain end to end."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from lare2_ref.reference import Lare2Reference
from lare2_rt.bundle.manifest import Manifest
from lare2_rt.bundle.opening import Bundle
from lare2_rt.detection import DecisionRule
from lare2_rt.engines.contract import EngineOptions, OpenEngine
from lare2_rt.engines.onnxruntime.engine import open_session, session_settings
from lare2_rt.engines.selection import open_engine
from lare2_rt.pixels.preprocess import Pixels

from ..components import COMPONENTS, Component
from ..graph.half import LARGEST, Arrays, Rounded, open_in_memory, open_rounded
from ..graph.onnx_export import add_output
from .tolerances import END_TO_END, HALF_END_TO_END, judged_gap, judged_images, logit_gap


def reference_arrays(reference: Lare2Reference, pictures: Sequence[Pixels]) -> list[Arrays]:
    """Return every input and output of every component, by name, for each image."""
    return [_reference_arrays(reference, picture) for picture in pictures]


def measure(
    expected: Sequence[Arrays],
    bundle: Bundle,
    pictures: Sequence[Pixels],
    *,
    rule: DecisionRule,
    engine: str = "onnxruntime",
    threads: int,
) -> dict[str, Any]:
    """Compare a bundle's float32 graphs with the reference; returns the content of ``parity.json``.

    Args:
        expected: ``reference_arrays`` of the pictures; the reference itself need not be in memory any more.
        pictures: preprocessed images; both sides see the same pixels.
        rule: decision rule, for verdict flips.
        engine: name of the engine of the end-to-end part; components are compared on onnxruntime.
        threads: CPU threads of the engine.
    """
    components = {c.name: _compare_component(c, bundle, expected, threads=threads) for c in COMPONENTS}
    opened, _ = open_engine(engine, bundle, EngineOptions(threads=threads, batch=1))
    try:
        actual = [_through_chain(opened, picture) for picture in pictures]
        info = opened.info
    finally:
        opened.close()
    end_to_end = _end_to_end(actual, expected, rule, END_TO_END)
    # Over the images, of the reference's logit for "generated" minus the one for "real".
    margins = np.array([_margin(e) for e in expected])
    spread = float(np.std(margins))
    largest = float(np.max(np.abs(np.array([_margin(a) for a in actual]) - margins)))
    end_to_end["logit_gap"] = logit_gap(largest, spread)
    batches = {str(batch): _same_bits(bundle, pictures, actual, batch=batch, engine=engine, threads=threads)
               for batch in bundle.batches if batch != 1}  # fmt: skip
    return {
        "schema": "lare2-rt/parity/1",
        "passed": all(entry["passed"] for entry in components.values())
        and end_to_end["passed"]
        and end_to_end["logit_gap"]["passed"]
        and all(batches.values()),
        "images": [hashlib.sha256(p.image.tobytes() + p.crop.tobytes()).hexdigest() for p in pictures],
        "reference": {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "open_clip_torch")},
        "engine": {"name": info.name, "version": info.version, "device": info.device, "precision": info.precision},
        "components": components,
        "end_to_end": end_to_end,
        "logit_standard_deviation": spread,
        "same_bits_as_batch_1": batches,
    }


def has_half(manifest: Manifest) -> bool:
    """Whether every component has a half-precision graph for one image."""
    return all(
        manifest.variant(component.name, batch=1, precision="fp16", profile="native") is not None  # type: ignore[arg-type]
        for component in COMPONENTS
    )


def with_half(report: dict[str, Any], half: dict[str, Any]) -> dict[str, Any]:
    """Return a parity report that includes ``measure_half``'s part and passes only if both do."""
    return {**report, "passed": report["passed"] and half["passed"], "half": half}


def measure_half(expected: Sequence[Arrays], bundle: Bundle, *, rule: DecisionRule, threads: int) -> dict[str, Any]:
    """Run a bundle's half-precision graphs with every value rounded to half; returns that part of ``parity.json``.

    Each component runs on the reference's inputs and, for the chain, on what the component before it gave.
    """
    chain: list[Arrays] = [{} for _ in expected]
    components, ranges = {}, {}
    for component in COMPONENTS:
        components[component.name], ranges[component.name] = _compare_rounded(
            component, bundle, expected, chain, threads=threads
        )
    end_to_end = _end_to_end(chain, expected, rule, HALF_END_TO_END)
    gap = max(float(np.abs(c["logits"] - e["logits"]).max()) for c, e in zip(chain, expected, strict=True))
    end_to_end["logits"] = {"max_difference": gap}
    largest = {name: max(values.items(), key=lambda item: item[1]) for name, values in ranges.items()}
    return {
        "method": "float32 kernels, every value of the half-precision graphs rounded to half and back",
        "passed": all(entry["passed"] for entry in (*components.values(), end_to_end)),
        "components": components,
        "end_to_end": end_to_end,
        "largest_of_float16": LARGEST,
        "largest": {name: {"layer": layer, "magnitude": value} for name, (layer, value) in largest.items()},
        "ranges": ranges,
    }


def _reference_arrays(reference: Lare2Reference, picture: Pixels) -> Arrays:
    image, crop = torch.from_numpy(picture.image.copy())[None], torch.from_numpy(picture.crop.copy())[None]
    output = reference(image, crop)
    tensors = {
        "latent": output.lare.latent,
        "noise_prediction": output.lare.noise_prediction[0],
        "lare": output.lare.lare,
        "embedding": output.clip.embedding,
        "layer3": output.clip.layer3,
        "logits": output.egre.logits,
        "attention": output.egre.attention,
    }
    arrays: Arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    noise = reference.noise
    fixed = {"posterior_noise": noise.posterior, "noise": noise.ensemble}
    return {"image": picture.image[None], "crop": picture.crop[None], **fixed, **arrays}


def _compare_component(
    component: Component, bundle: Bundle, expected: Sequence[Arrays], *, threads: int
) -> dict[str, Any]:
    """Run one graph on the reference's inputs, so that errors of earlier components do not count."""
    names = [*component.output_names, *component.probes]
    run = _session_with_probes(component, bundle, threads)
    results = [run.run(names, {name: arrays[name] for name in component.input_names}) for arrays in expected]
    actual = [dict(zip(names, result, strict=True)) for result in results]
    return {**_compared(actual, expected, component.tolerance), "reason": component.reason}


def _compared(actual: Sequence[Arrays], expected: Sequence[Arrays], tolerance: Mapping[str, float]) -> dict[str, Any]:
    outputs = {
        name: judged_images([arrays[name] for arrays in actual], [arrays[name] for arrays in expected], limit)
        for name, limit in tolerance.items()
    }
    return {"passed": all(entry["passed"] for entry in outputs.values()), "outputs": outputs}


def _session_with_probes(component: Component, bundle: Bundle, threads: int) -> Any:  # noqa: ANN401
    """Open a component with its probes as further outputs."""
    variant = bundle.variant(component.name, batch=1, precision="fp32", profile="portable")  # type: ignore[arg-type]
    if not component.probes:
        return open_session(bundle, variant, threads)
    path = bundle.graph_path(variant)
    model = ir.load(path)
    for probe in component.probes:
        add_output(model, probe)
    return open_in_memory(model, path.parent, session_settings(threads))


def _compare_rounded(
    component: Component, bundle: Bundle, expected: Sequence[Arrays], chain: list[Arrays], *, threads: int
) -> tuple[dict[str, Any], dict[str, float]]:
    """Measure one component and carry the chain on; also return each layer's largest magnitude over the images."""
    variant = bundle.variant(component.name, batch=1, precision="fp16", profile="native")  # type: ignore[arg-type]
    rounded = open_rounded(bundle.graph_path(variant), probes=component.probes, threads=threads)
    alone = []
    peaks = np.zeros(len(rounded.nodes), np.float32)
    for arrays, own in zip(expected, chain, strict=True):
        outputs, magnitudes = rounded.run({name: arrays[name] for name in component.input_names})
        alone.append(outputs)
        peaks = np.maximum(peaks, magnitudes)  # NaN stays NaN
        own.update(_carry_on(component, rounded, arrays, own, outputs))
    figures = dict(zip(rounded.nodes, (float(f"{peak:.4g}") for peak in peaks), strict=True))
    return _compared(alone, expected, component.half_tolerance), figures


def _carry_on(component: Component, rounded: Rounded, arrays: Arrays, own: Arrays, outputs: Arrays) -> Arrays:
    """Return the component's outputs in the chain; the first components have the reference's inputs anyway."""
    taken = {name: own.get(name, arrays[name]) for name in component.input_names}
    if all(taken[name] is arrays[name] for name in component.input_names):
        return outputs
    return rounded.run(taken)[0]


def _through_chain(engine: OpenEngine, picture: Pixels) -> Arrays:
    output = engine.run(picture.image[None], picture.crop[None])
    return {"lare": output.lare, "logits": output.logits}


def _end_to_end(
    actual: Sequence[Arrays],
    expected: Sequence[Arrays],
    rule: DecisionRule,
    tolerances: Mapping[str, tuple[float, str]],
) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    ours, theirs = ([rule.probability(arrays["logits"][0]) for arrays in each] for each in (actual, expected))
    for name, (tolerance, reason) in tolerances.items():
        if name == "probability":
            entry = judged_gap(ours, theirs, tolerance)
        else:
            entry = judged_images([arrays[name] for arrays in actual], [arrays[name] for arrays in expected], tolerance)
        entries[name] = {**entry, "reason": reason}
    entries["passed"] = all(entry["passed"] for entry in entries.values())
    entries["verdict_flips"] = sum(rule.verdict(a) != rule.verdict(b) for a, b in zip(ours, theirs, strict=True))
    return entries


def _margin(arrays: Arrays) -> float:
    return float(arrays["logits"][0, 1]) - float(arrays["logits"][0, 0])


def _same_bits(
    bundle: Bundle, pictures: Sequence[Pixels], alone: Sequence[Arrays], *, batch: int, engine: str, threads: int
) -> bool:
    """Whether every image has the bits of the batch-1 graph when it fills the last row of a larger batch."""
    options = EngineOptions(threads=threads, batch=batch)
    opened, _ = open_engine(engine, bundle, options)
    try:
        for index, picture in enumerate(pictures):
            row = [pictures[(index + 1 + offset) % len(pictures)] for offset in range(batch - 1)] + [picture]
            output = opened.run(np.stack([p.image for p in row]), np.stack([p.crop for p in row]))
            same = np.array_equal(output.lare[-1], alone[index]["lare"][0])
            if not (same and np.array_equal(output.logits[-1], alone[index]["logits"][0])):
                return False
    finally:
        opened.close()
    return True
