"""How far a bundle is from the reference: each component on the reference's own inputs, then the chain end to end."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from lare2_ref.reference import Lare2Reference
from lare2_rt.bundle.manifest import Variant
from lare2_rt.bundle.opening import Bundle
from lare2_rt.detection import DecisionRule
from lare2_rt.engines.contract import EngineOptions, OpenEngine
from lare2_rt.engines.onnxruntime.engine import PROVIDER, open_session, session_settings
from lare2_rt.engines.selection import open_engine
from lare2_rt.pixels.preprocess import Pixels

from ..components import COMPONENTS, Component
from ..graph.onnx_export import add_output
from ..graph.rounding import LARGEST
from .judged import judged_gap, judged_images

Arrays = dict[str, NDArray[Any]]

# float32 end to end; every figure is relative L2 except the probability, which is an absolute difference.
END_TO_END = {
    "lare": (3e-5, "squared error of a prediction that is within 1e-5"),
    "logits": (1e-4, "the head sums rounding of LaRE and CLIP; a logit near 0 makes a relative figure coarse"),
    "probability": (1e-5, "what a user sees must not move in the fifth digit"),
}
# The largest logit difference, in standard deviations of the logit over the images. Below the smallest deviation it
# would tell nothing: logits that hardly move with the image agree whatever the graphs do.
LOGIT_GAP, LOGIT_GAP_REASON = 1e-3, "a verdict depends on where a logit stands among those of other images"
MIN_LOGIT_SPREAD = 1e-2


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
    options = EngineOptions(threads=threads, batch=1)
    opened, _ = open_engine(engine, bundle, options)
    try:
        end_to_end, actual = _compare_chain(opened, pictures, expected, rule)
        info = opened.info
    finally:
        opened.close()
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
        "images": [_pixels_sha256(picture) for picture in pictures],
        "reference": {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "open_clip_torch")},
        "engine": {"name": info.name, "version": info.version, "device": info.device, "precision": info.precision},
        "components": components,
        "end_to_end": end_to_end,
        "logit_standard_deviation": spread,
        "same_bits_as_batch_1": batches,
    }


def _reference_arrays(reference: Lare2Reference, picture: Pixels) -> Arrays:
    """Every input and output of every component for one image, from the reference."""
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
    variant = bundle.variant(component.name, batch=1, precision="fp32", profile="portable")  # type: ignore[arg-type]
    names = [*component.output_names, *component.probes]
    run = _session_with_probes(component, bundle, variant, threads)
    results = [run.run(names, {name: arrays[name] for name in component.input_names}) for arrays in expected]
    outputs = {}
    for index, name in enumerate(names):
        pair = ([result[index] for result in results], [arrays[name] for arrays in expected])
        outputs[name] = judged_images(*pair, component.tolerance[name])
    passed = all(entry["passed"] for entry in outputs.values())
    return {"passed": passed, "reason": component.reason, "outputs": outputs}


def _session_with_probes(component: Component, bundle: Bundle, variant: Variant, threads: int) -> Any:  # noqa: ANN401
    """Open a component with its probes as further outputs, through a graph that exists only in memory."""
    import onnxruntime

    if not component.probes:
        return open_session(bundle, variant, threads)
    path, settings = bundle.graph_path(variant), session_settings(threads)
    model = ir.load(path)
    for probe in component.probes:
        add_output(model, probe)
    # From memory: a bundle that is being measured may be read-only, and in use by others.
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    content = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(content, settings, providers=[PROVIDER])


def _compare_chain(
    engine: OpenEngine, pictures: Sequence[Pixels], expected: Sequence[Arrays], rule: DecisionRule
) -> tuple[dict[str, Any], list[Arrays]]:
    actual: list[Arrays] = []
    for picture in pictures:
        output = engine.run(picture.image[None], picture.crop[None])
        actual.append({"lare": output.lare, "logits": output.logits})
    entries: dict[str, Any] = {}
    for name in ("lare", "logits"):
        tolerance, reason = END_TO_END[name]
        pair = ([a[name] for a in actual], [e[name] for e in expected])
        entries[name] = {**judged_images(*pair, tolerance), "reason": reason}
    tolerance, reason = END_TO_END["probability"]
    ours = [rule.probability(a["logits"][0]) for a in actual]
    theirs = [rule.probability(e["logits"][0]) for e in expected]
    entries["probability"] = {**judged_gap(ours, theirs, tolerance), "reason": reason}
    entries["verdict_flips"] = sum(rule.verdict(a) != rule.verdict(b) for a, b in zip(ours, theirs, strict=True))
    entries["passed"] = all(entries[name]["passed"] for name in END_TO_END)
    return entries, actual


def _margin(arrays: Arrays) -> float:
    return float(arrays["logits"][0, 1]) - float(arrays["logits"][0, 0])


def logit_gap(largest: float, spread: float) -> dict[str, Any]:
    """Judge the largest difference of (generated − real) by its standard deviation, ``void`` where that is small."""
    void = not spread > MIN_LOGIT_SPREAD
    gap = None if void else largest / spread
    return {
        "standard_deviations": gap,
        "tolerance": LOGIT_GAP,
        "void": void,
        "passed": gap is None or gap <= LOGIT_GAP,
        "reason": LOGIT_GAP_REASON,
    }


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


def _pixels_sha256(picture: Pixels) -> str:
    return hashlib.sha256(picture.image.tobytes() + picture.crop.tobytes()).hexdigest()


def worst_component(report: dict[str, Any]) -> tuple[str, float]:
    """Return the float32 output that comes closest to, or furthest over, its tolerance, and its relative L2."""
    figures = [
        (entry["worst_relative_l2"] / entry["tolerance"], name, entry["worst_relative_l2"])
        for name, component in report["components"].items()
        for entry in component["outputs"].values()
    ]
    _, name, value = max(figures)
    return name, value


def what_failed(report: dict[str, Any]) -> str:
    """Say in a few words what of a report is out of tolerance."""
    half = report.get("half")
    if half is not None and not half["passed"]:
        over = {name: entry for name, entry in half["largest"].items() if not entry["magnitude"] <= LARGEST}
        for name, entry in over.items():
            return (
                f"half precision overflows in {name} at {entry['layer']} ({entry['magnitude']:.3g} over "
                f"{LARGEST:.0f}): build with --no-half"
            )
        value = half["end_to_end"]["lare"]["worst_relative_l2"]
        return f"LaRE in half precision differs by {value:.1e} (relative L2): build with --no-half"
    if not all(report["same_bits_as_batch_1"].values()):
        return "batch sizes give different bits"
    name, value = worst_component(report)
    if all(entry["passed"] for entry in report["components"].values()):  # each for itself, but not together
        chain = report["end_to_end"]
        if not chain["lare"]["passed"]:
            return f"LaRE of the whole chain differs by {chain['lare']['worst_relative_l2']:.1e} (relative L2)"
        if not chain["logits"]["passed"]:
            return f"logits of the whole chain differ by {chain['logits']['worst_relative_l2']:.1e} (relative L2)"
        gap, probability = chain["logit_gap"], chain["probability"]["max_difference"]
        if not gap["passed"]:
            return f"logits differ by {gap['standard_deviations']:.1e} of their standard deviation"
        return f"the whole chain's probability differs by {probability:.1e}"
    return f"{name} differs by {value:.1e} (relative L2)"
