"""How far half precision is from the reference, and how close its values come to the largest number of float16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lare2_rt.bundle.manifest import Manifest
from lare2_rt.bundle.opening import Bundle
from lare2_rt.detection import DecisionRule

from ..components import COMPONENTS, Component
from ..graph.rounding import LARGEST, Arrays, Rounded, open_rounded
from .judged import judged_gap, judged_images

# Every figure is relative L2 but the probability's, which is an absolute difference.
END_TO_END = {
    "lare": (1e-2, "half precision keeps three digits, through hundreds of operations"),
    "probability": (1e-2, "what a user sees must not move in the second digit"),
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
        components[component.name], ranges[component.name] = _component(
            component, bundle, expected, chain, threads=threads
        )
    end_to_end = _end_to_end(chain, expected, rule)
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


def _component(
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
    entries = {}
    for name in rounded.outputs:
        pair = ([outputs[name] for outputs in alone], [arrays[name] for arrays in expected])
        entries[name] = judged_images(*pair, component.half_tolerance[name])
    figures = dict(zip(rounded.nodes, (float(f"{peak:.4g}") for peak in peaks), strict=True))
    return {"passed": all(entry["passed"] for entry in entries.values()), "outputs": entries}, figures


def _carry_on(component: Component, rounded: Rounded, arrays: Arrays, own: Arrays, outputs: Arrays) -> Arrays:
    """Return the component's outputs in the chain; the first components have the reference's inputs anyway."""
    taken = {name: own.get(name, arrays[name]) for name in component.input_names}
    if all(taken[name] is arrays[name] for name in component.input_names):
        return outputs
    return rounded.run(taken)[0]


def _end_to_end(chain: Sequence[Arrays], expected: Sequence[Arrays], rule: DecisionRule) -> dict[str, Any]:
    tolerance, reason = END_TO_END["lare"]
    lare = judged_images([c["lare"] for c in chain], [e["lare"] for e in expected], tolerance)
    ours = [rule.probability(c["logits"][0]) for c in chain]
    theirs = [rule.probability(e["logits"][0]) for e in expected]
    logits = max(float(np.abs(c["logits"] - e["logits"]).max()) for c, e in zip(chain, expected, strict=True))
    limit, why = END_TO_END["probability"]
    probability = {**judged_gap(ours, theirs, limit), "reason": why}
    return {
        "passed": lare["passed"] and probability["passed"],
        "lare": {**lare, "reason": reason},
        "logits": {"max_difference": logits},
        "probability": probability,
        "verdict_flips": sum(rule.verdict(a) != rule.verdict(b) for a, b in zip(ours, theirs, strict=True)),
    }
