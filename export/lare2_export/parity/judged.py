"""One figure of a parity report: how far arrays are from the reference's, and whether that is near enough."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lare2_rt.engines.difference import difference


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
