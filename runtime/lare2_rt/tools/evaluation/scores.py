"""Metrics of a two-class detector in plain NumPy, equal to scikit-learn's where it has them.

``labels`` are 0 (real) and 1 (generated), ``probabilities`` those of being generated, and an image is called generated
from the threshold on (``>=``). Weights are how often an image counts; the bootstrap resamples through them, so images
are ranked once and every resample costs a few cumulative sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import UsageError

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Indices = NDArray[np.intp]
ECE_BINS = 15  # the usual number since Guo et al. 2017


class Oracle(NamedTuple):
    """Best accuracy over all thresholds and the largest threshold that gives it; infinite for 'nothing generated'."""

    accuracy: float
    threshold: float


class Bin(NamedTuple):
    """One bin of the reliability diagram: edges, images, mean probability, share generated (None where empty)."""

    low: float
    high: float
    images: int
    probability: float | None
    generated: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """What every threshold gives, from the strictest to the laxest.

    Attributes:
        thresholds: [K+1] float64, falling; the first is infinite and calls nothing generated.
        true_positives, false_positives: [K+1] weight of generated and of real images at or above the threshold.
    """

    thresholds: Floats
    true_positives: Floats
    false_positives: Floats

    @property
    def positives(self) -> float:
        """Weight of all generated images."""
        return float(self.true_positives[-1])

    @property
    def negatives(self) -> float:
        """Weight of all real images."""
        return float(self.false_positives[-1])

    def auc(self) -> float:
        """Area under the ROC curve, ties counted half."""
        height = (self.true_positives[1:] + self.true_positives[:-1]) / 2
        return float(np.sum(np.diff(self.false_positives) * height)) / (self.positives * self.negatives)

    def average_precision(self) -> float:
        """Sum of precision times gain in recall over the thresholds, without interpolation."""
        predicted = self.true_positives + self.false_positives
        precision = np.divide(self.true_positives, predicted, out=np.zeros_like(predicted), where=predicted > 0)
        return float(np.sum(np.diff(self.true_positives) * precision[1:])) / self.positives

    def oracle(self) -> Oracle:
        """Best accuracy with the threshold chosen on these very images: a bound, not an accuracy to expect."""
        right = self.true_positives + self.negatives - self.false_positives
        best = int(np.argmax(right))
        return Oracle(float(right[best]) / (self.positives + self.negatives), float(self.thresholds[best]))

    def tpr_at_fpr(self, rate: float) -> float:
        """Largest share of generated images found while at most ``rate`` (0..1) of the real ones are called generated.

        No interpolation: with fewer than 1/rate real images it is the share found without any false alarm.
        """
        # Counts compare exactly where a quotient would be a rounding away from the rate.
        allowed = self.false_positives <= rate * self.negatives * (1 + 1e-12)
        return float(self.true_positives[allowed].max()) / self.positives


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Images in order of falling probability; made once by ``rank``, weighted many times."""

    order: Indices
    generated: Flags
    last_of_tie: Indices
    thresholds: Floats

    def curve(self, weights: Floats | None = None) -> Curve:
        """Return the curve; ``weights`` [N] >= 0 in the order of the images (not of the ranking), default 1 each."""
        weight = np.ones(len(self.order)) if weights is None else weights[self.order]
        true = np.cumsum(np.where(self.generated, weight, 0.0))[self.last_of_tie]
        false = np.cumsum(np.where(self.generated, 0.0, weight))[self.last_of_tie]
        zero = np.zeros(1)
        return Curve(self.thresholds, np.concatenate([zero, true]), np.concatenate([zero, false]))


def checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Flags, Floats]:
    """Return both as arrays; raises UsageError when lengths differ, a label is not 0 or 1, or a probability is not."""
    label, probability = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if label.ndim != 1 or label.shape != probability.shape or label.size == 0:
        raise UsageError(
            f"labels and probabilities must pair up, not {list(label.shape)} and {list(probability.shape)}",
            remedy="give one probability for each label",
        )
    if not np.isin(label, (0, 1)).all():
        raise UsageError("labels must be 0 (real) or 1 (generated)", remedy="correct the others or leave them out")
    if not ((probability >= 0) & (probability <= 1)).all():
        raise UsageError("probabilities must lie between 0 and 1", remedy="scale them or leave the others out")
    return label.astype(np.bool_), probability


def rank(labels: ArrayLike, probabilities: ArrayLike) -> Ranking:
    """Order images by falling probability; raises UsageError as ``checked``, or when one of the classes is missing."""
    generated, probability = checked(labels, probabilities)
    if generated.all() or not generated.any():
        missing = "real" if generated.all() else "generated"
        raise UsageError(f"there is no {missing} image, and ranking needs both classes", remedy="add some")
    return ranking(generated, probability)


def ranking(generated: Flags, scores: Floats) -> Ranking:
    """Order images by falling score: finite numbers, of images of both classes."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    thresholds = np.concatenate([[math.inf], ordered[last]])
    return Ranking(order, generated[order], last, thresholds)


def share(flags: Flags, among: Flags, weights: Floats | None = None) -> float:
    """Weighted share of the images in ``among`` that are in ``flags``; nan where there are none."""
    weight = np.ones(len(flags)) if weights is None else weights
    total = float(weight[among].sum())
    return float(weight[among & flags].sum()) / total if total else math.nan


def bin_of(probabilities: Floats, bins: int = ECE_BINS) -> Indices:
    """Return the index of each probability among equally wide bins (low, high], the first one closed on both sides."""
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], probabilities, side="left").astype(np.intp)


def expected_calibration_error(
    generated: Flags, probabilities: Floats, weights: Floats | None = None, *, bins: int = ECE_BINS
) -> float:
    """|mean probability − share generated| averaged over equally wide bins of the probability, by their weight."""
    weight = np.ones(len(probabilities)) if weights is None else weights
    index = bin_of(probabilities, bins)
    gap = np.bincount(index, weight * (probabilities - generated), minlength=bins)
    return float(np.abs(gap).sum() / weight.sum())


def reliability(generated: Flags, probabilities: Floats, *, bins: int = ECE_BINS) -> list[Bin]:
    """Return the bins behind the expected calibration error."""
    index, edges = bin_of(probabilities, bins), np.linspace(0, 1, bins + 1)
    rows = []
    for number in range(bins):
        inside = index == number
        count = int(inside.sum())
        means = (float(probabilities[inside].mean()), float(generated[inside].mean())) if count else (None, None)
        rows.append(Bin(float(edges[number]), float(edges[number + 1]), count, *means))
    return rows


def wilson(count: int, total: int, *, z: float = 1.959963984540054) -> tuple[float, float]:
    """95 % interval of a rate (Wilson 1927); unlike a bootstrap it stays honest where nothing went wrong yet."""
    if total == 0:
        return 0.0, 1.0
    rate, spread = count / total, z * z / total
    centre = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / total + spread / (4 * total)) / (1 + spread)
    return (0.0 if count == 0 else max(0.0, centre - half)), (1.0 if count == total else min(1.0, centre + half))
