"""Figures of a parity report: how far arrays are from the reference's, whether that is near enough, and what is not."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lare2_rt.engines.difference import difference

from ..graph.half import LARGEST

# Tolerance and reason end to end; every figure is relative L2 except the probability, which is an absolute difference.
END_TO_END = {
    "lare": (3e-5, "squared error of a prediction that is within 1e-5"),
    "logits": (1e-4, "the head sums rounding of LaRE and CLIP; a logit near 0 makes a relative figure coarse"),
    "probability": (1e-5, "what a user sees must not move in the fifth digit"),
}
HALF_END_TO_END = {
    "lare": (1e-2, "half precision keeps three digits, through hundreds of operations"),
    "probability": (1e-2, "what a user sees must not move in the second digit"),
}
# The largest logit difference, in standard deviations of the logit over the images. Below the smallest deviation it
# would tell nothing: logits that hardly move with the image agree whatever the graphs do.
LOGIT_GAP, LOGIT_GAP_REASON = 1e-3, "a verdict depends on where a logit stands among those of other images"
MIN_LOGIT_SPREAD = 1e-2


def judged(actual: NDArray[Any], reference: NDArray[Any], tolerance: float) -> dict[str, Any]:
    """Statistics over all images (first axis), judged on the worst image's relative L2; NaN and infinity never pass."""
    worst = max(difference(a, b).relative_l2 for a, b in zip(actual, reference, strict=True))
    statistics = difference(actual, reference).as_dict()
    return {**statistics, "worst_relative_l2": worst, "tolerance": tolerance, "passed": bool(worst <= tolerance)}


def judged_images(ours: list[NDArray[Any]], theirs: list[NDArray[Any]], tolerance: float) -> dict[str, Any]:
    """``judged`` for one array an image."""
    return judged(np.stack(ours), np.stack(theirs), tolerance)


def judged_gap(ours: list[float], theirs: list[float], tolerance: float) -> dict[str, Any]:
    """The largest absolute difference of one number an image."""
    gap = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    return {"max_difference": gap, "tolerance": tolerance, "passed": bool(gap <= tolerance)}


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


def worst_component(report: dict[str, Any]) -> tuple[str, float]:
    """Return the float32 output that comes closest to, or furthest over, its tolerance, and its relative L2."""
    figures = [
        (entry["worst_relative_l2"] / entry["tolerance"], name, entry["worst_relative_l2"])
        for name, component in report["components"].items()
        for entry in component["outputs"].values()
    ]
    _, name, value = max(figures)
    return name, value


def what_failed(report: dict[str, Any]) -> tuple[str, str]:
    """Say what of a report is out of tolerance, and what to do about it."""
    half = report.get("half")
    if half is not None and not half["passed"]:
        return _what_failed_in_half(half), "build with --no-half"
    remedy = "build it again with the versions of constraints.txt, and report it if that differs too"
    if not all(report["same_bits_as_batch_1"].values()):
        return "batch sizes give different bits", remedy
    if not all(entry["passed"] for entry in report["components"].values()):
        name, value = worst_component(report)
        return f"{name} differs by {value:.1e} (relative L2)", remedy
    return _what_failed_in_chain(report["end_to_end"]), remedy


def _what_failed_in_half(half: dict[str, Any]) -> str:
    for name, entry in half["largest"].items():
        if not entry["magnitude"] <= LARGEST:  # NaN too
            reached = f"{entry['magnitude']:.3g} over {LARGEST:.0f}"
            return f"half precision overflows in {name} at {entry['layer']} ({reached})"
    value = half["end_to_end"]["lare"]["worst_relative_l2"]
    return f"LaRE in half precision differs by {value:.1e} (relative L2)"


def _what_failed_in_chain(chain: dict[str, Any]) -> str:
    """Each component passed for itself, but not all together."""
    for name, words in (("lare", "LaRE of the whole chain differs"), ("logits", "logits of the whole chain differ")):
        if not chain[name]["passed"]:
            return f"{words} by {chain[name]['worst_relative_l2']:.1e} (relative L2)"
    gap = chain["logit_gap"]
    if not gap["passed"]:
        return f"logits differ by {gap['standard_deviations']:.1e} of their standard deviation"
    return f"the whole chain's probability differs by {chain['probability']['max_difference']:.1e}"
