"""All metrics of one set of scored images, with bootstrap intervals over groups of related images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...detection import DecisionRule
from .scores import Flags, Floats, Indices, Ranking, expected_calibration_error, rank, share

RESAMPLES = 1000
LEVEL = 0.95
# In the order of reports. Up to the oracle's all need no threshold or a fixed one; the others need those of the rule.
METRICS = {
    "auc": "AUC",
    "average_precision": "AP",
    "accuracy_at_half": "ACC at 0.5",
    "balanced_accuracy_at_half": "balanced ACC at 0.5",
    "real_accuracy_at_half": "real ACC at 0.5",
    "generated_accuracy_at_half": "generated ACC at 0.5",
    "tpr_at_fpr_1": "TPR at 1 % FPR",
    "tpr_at_fpr_5": "TPR at 5 % FPR",
    "ece": "ECE (15 bins)",
    "brier": "Brier score",
    "oracle_accuracy": "oracle ACC",
    "accuracy_at_calibrated": "ACC at the calibrated threshold",
    "decided_accuracy": "ACC of verdicts",
    "unsure_share": "unsure",
    "false_positive_rate": "real called generated",
    "miss_rate": "generated called real",
}


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with the ends of its 95 % bootstrap interval (None where it was not resampled)."""

    value: float
    low: float | None = None
    high: float | None = None

    def text(self, ends: str) -> str:
        """Return the value with four decimals and, where they are known, its ends in the format ``ends``."""
        return f"{self.value:.4f}" + ("" if self.low is None else ends.format(self.low, self.high))


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Scored images.

    Attributes:
        generated: bool [N], the truth; probabilities: float64 [N] of being generated.
        groups: int [N]; images of one number (one photograph and its versions, one camera roll) are resampled together.
    """

    generated: Flags
    probabilities: Floats
    groups: Indices

    def only(self, mask: Flags) -> Sample:
        """Return the images where ``mask`` is True."""
        return Sample(self.generated[mask], self.probabilities[mask], self.groups[mask])


@dataclass(frozen=True, slots=True)
class Summary:
    """The metrics of one sample.

    Attributes:
        real, generated: number of images; groups: of related images.
        metrics: by the names of ``METRICS``; those of the second block only where the rule has thresholds.
        oracle_threshold: where ``oracle_accuracy`` is reached; None when it is reached by calling nothing generated.
    """

    real: int
    generated: int
    groups: int
    metrics: dict[str, Interval]
    oracle_threshold: float | None


def group_numbers(sources: Sequence[str]) -> Indices:
    """Number the groups named by ``sources``; an image without a name is a group of its own."""
    names = [source or f"\0{index}" for index, source in enumerate(sources)]
    return np.unique(np.array(names, dtype=object), return_inverse=True)[1].astype(np.intp)


def probabilities(rule: DecisionRule, logits: Floats) -> Floats:
    """Return the probability of each pair of raw logits [N,2]; nan gives nan.

    One by one with the function that the detector uses, so that thresholds fall on the very same numbers.
    """
    return np.array([rule.probability(pair) for pair in logits.tolist()])


def summarise(sample: Sample, rule: DecisionRule, *, resamples: int = RESAMPLES, seed: int = 0) -> Summary:
    """Compute every metric and its interval; raises UsageError when the sample lacks one of the classes.

    Intervals are percentiles of a bootstrap over groups, resampled within groups that hold only real, only generated
    and both kinds of images, so that every resample has both classes. Same sample and seed give the same numbers.
    """
    ranking = rank(sample.generated, sample.probabilities)
    values = _metrics(sample, ranking, rule, None)
    spread = _bootstrap(sample, lambda weights: _metrics(sample, ranking, rule, weights), resamples, seed)
    threshold = ranking.curve().oracle().threshold
    return Summary(
        real=int((~sample.generated).sum()),
        generated=int(sample.generated.sum()),
        groups=len(np.unique(sample.groups)),
        metrics={name: Interval(value, *spread.get(name, (None, None))) for name, value in values.items()},
        oracle_threshold=None if math.isinf(threshold) else threshold,
    )


def ece_with_interval(sample: Sample, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the expected calibration error alone, with its interval."""

    def measure(weights: Floats | None) -> dict[str, float]:
        return {"ece": expected_calibration_error(sample.generated, sample.probabilities, weights)}

    return Interval(measure(None)["ece"], *_bootstrap(sample, measure, resamples, seed).get("ece", (None, None)))


def _metrics(sample: Sample, ranking: Ranking, rule: DecisionRule, weights: Floats | None) -> dict[str, float]:
    generated, probability = sample.generated, sample.probabilities
    curve = ranking.curve(weights)
    called = probability >= 0.5
    everything = np.ones(len(generated), np.bool_)
    real_right, generated_right = share(~called, ~generated, weights), share(called, generated, weights)
    values = {
        "auc": curve.auc(),
        "average_precision": curve.average_precision(),
        "accuracy_at_half": share(called == generated, everything, weights),
        "balanced_accuracy_at_half": (real_right + generated_right) / 2,
        "real_accuracy_at_half": real_right,
        "generated_accuracy_at_half": generated_right,
        "tpr_at_fpr_1": curve.tpr_at_fpr(0.01),
        "tpr_at_fpr_5": curve.tpr_at_fpr(0.05),
        "ece": expected_calibration_error(generated, probability, weights),
        "brier": float(np.average((probability - generated) ** 2, weights=weights)),
        "oracle_accuracy": curve.oracle().accuracy,
    }
    if rule.decides:
        says_generated, says_real = rule.verdicts(probability)
        decided = says_generated | says_real
        if not rule.explicit:
            # Of all images, as at 0.5 and at the oracle's threshold; those in the band count as not called generated.
            values["accuracy_at_calibrated"] = share(says_generated == generated, everything, weights)
        values |= {
            "decided_accuracy": share(says_generated == generated, decided, weights),
            "unsure_share": share(~decided, everything, weights),
            "false_positive_rate": share(says_generated, ~generated, weights),
            "miss_rate": share(says_real, generated, weights),
        }
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _bootstrap(
    sample: Sample, measure: Callable[[Floats], dict[str, float]], resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Return the central ``LEVEL`` of each metric over resamples."""
    if resamples < 1:
        return {}
    _, groups = np.unique(sample.groups, return_inverse=True)
    count = int(groups.max()) + 1
    has_generated = np.bincount(groups, sample.generated, minlength=count) > 0
    has_real = np.bincount(groups, ~sample.generated, minlength=count) > 0
    kinds = (has_generated & ~has_real, has_real & ~has_generated, has_generated & has_real)
    strata = [np.flatnonzero(kind) for kind in kinds if kind.any()]
    generator = np.random.Generator(np.random.Philox(seed))
    drawn: dict[str, list[float]] = {}
    for _ in range(resamples):
        times = np.zeros(count)
        for members in strata:
            times += np.bincount(members[generator.integers(len(members), size=len(members))], minlength=count)
        for name, value in measure(times[groups]).items():
            drawn.setdefault(name, []).append(value)
    tail = (1 - LEVEL) / 2 * 100
    return {name: tuple(np.percentile(values, [tail, 100 - tail]).tolist()) for name, values in drawn.items()}
