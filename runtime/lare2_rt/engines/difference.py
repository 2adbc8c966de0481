"""How far two arrays are apart: the statistics of every parity report."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, slots=True)
class Difference:
    """Distance of ``actual`` from ``reference``, computed in float64 over all elements.

    Attributes:
        relative_l2: ‖a−b‖/‖b‖; 0 where both are zero, inf where only the reference is.
        max_abs, mean_abs, p99_abs: absolute error, in the arrays' own unit.
        cosine: cosine similarity in [-1, 1]; 1 where both are zero.
        not_finite: number of NaN or Inf elements in either array; with any, all distances are infinite.
    """

    relative_l2: float
    max_abs: float
    mean_abs: float
    p99_abs: float
    cosine: float
    not_finite: int

    def as_dict(self) -> dict[str, float | int]:
        """Return the fields as plain numbers for JSON."""
        return asdict(self)


def difference(actual: ArrayLike, reference: ArrayLike) -> Difference:
    """Compare two arrays of one shape; raises ValueError when the shapes differ or are empty."""
    a, b = np.asarray(actual, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"arrays to compare must have one shape and elements, not {a.shape} and {b.shape}")
    not_finite = int(a.size - np.count_nonzero(np.isfinite(a) & np.isfinite(b)))
    if not_finite:
        return Difference(np.inf, np.inf, np.inf, np.inf, 0.0, not_finite)
    error = np.abs(a - b)
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    distance = float(np.linalg.norm(error))
    if norm_b == 0:
        relative, cosine = (0.0, 1.0) if distance == 0 else (np.inf, 0.0)
    else:
        relative = distance / norm_b
        cosine = float(np.vdot(a, b)) / (norm_a * norm_b) if norm_a else 0.0
    return Difference(
        relative_l2=relative,
        max_abs=float(error.max()),
        mean_abs=float(error.mean()),
        p99_abs=float(np.percentile(error, 99)),
        cosine=min(1.0, max(-1.0, cosine)),
        not_finite=0,
    )
