"""Calibration: what probability and which thresholds a bundle's logits deserve, measured on labelled images.

The probability becomes sigmoid(gap / temperature + bias), gap = logit of generated − logit of real (Platt 1999, with
his smoothed targets, so that separable scores do not run to infinity). Each threshold is an order statistic of one
class, as in split conformal prediction: of new images like those it was measured on, at most the asked share is on the
wrong side on average over calibration sets, whatever the distribution of scores. That needs 1/rate − 1 images or more.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...detection import DecisionRule
from ...errors import UsageError
from .scores import Flags, Floats, Indices, rank, share, wilson
from .summary import Interval, Sample, ece_with_interval, probabilities

FOLDS = 5


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of images with its 95 % Wilson interval."""

    count: int
    total: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Quality:
    """What a rule does on labelled images: ``ece`` over 15 bins with its 95 % bootstrap interval over groups, real
    images called generated (``false_positives``), generated ones called real (``misses``), those without a verdict.
    """

    ece: Interval
    false_positives: Rate
    misses: Rate
    unsure: Rate


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """A calibration and what it changes.

    Attributes:
        rule: the new rule, fitted on all images; rate: the asked share of wrong verdicts per class.
        real, generated: images; real_groups, generated_groups: groups of related images.
        auc: of the scores, which calibration does not change.
        before: the bundle as it was (thresholds: its own), before_at_half: the same with a single threshold of 0.5.
        after: the new rule, each image judged by a rule that was fitted without its group (``FOLDS``-fold).
    """

    rule: DecisionRule
    rate: float
    real: int
    generated: int
    real_groups: int
    generated_groups: int
    auc: float
    before: Quality
    before_at_half: Quality
    after: Quality

    def as_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {"schema": "lare2-rt/calibration/1", "folds": FOLDS, **asdict(self)}


def images_needed(rate: float) -> int:
    """Number of unrelated images of a class below which no threshold can promise ``rate``."""
    return math.ceil(1 / rate - 1 - 1e-9)


def check_enough(generated: Flags, groups: Indices, rate: float) -> tuple[int, int]:
    """Return the numbers of groups of real and of generated images; raises UsageError when they are too few."""
    if not 0 < rate < 0.5:
        raise UsageError(
            f"the false positive rate must lie between 0 and 0.5, not {rate}", remedy="ask for another one"
        )
    counts = [len(np.unique(groups[generated == label])) for label in (False, True)]
    needed = max(images_needed(rate), FOLDS)
    for count, word in zip(counts, ("real", "generated"), strict=True):
        if count < needed:
            possible = math.ceil(1e4 / (count + 1)) / 1e4
            remedy = f" or ask for a rate of {possible:g} or more" if possible < 0.5 and count >= FOLDS else ""
            raise UsageError(
                f"a false positive rate of {rate:g} needs at least {needed} unrelated {word} images, and there "
                f"are {count}",
                remedy=f"add images{remedy}",
            )
    return counts[0], counts[1]


def calibrate(
    logits: Floats, generated: Flags, groups: Indices, *, current: DecisionRule, rate: float, seed: int = 0
) -> CalibrationReport:
    """Fit scaling and thresholds, and measure both on images that they were not fitted on.

    Args:
        logits: float64 [N,2], raw, finite; index 1 = generated.
        generated: bool [N], the truth; groups: int [N], images of one number are related.
        current: the rule so far; seed: of the folds and of the bootstrap.
        rate: asked share (0..1) of real images called generated, and of generated ones called real.

    Raises:
        UsageError: a rate outside (0, 0.5), a class without or with too few unrelated images, or scores that do not
            rise with the truth.
    """
    real_groups, generated_groups = check_enough(generated, groups, rate)
    gaps = logits[:, 1] - logits[:, 0]
    sample = Sample(generated, probabilities(current, logits), groups)
    at_half = DecisionRule("calibrated", 0.5, 0.5, temperature=current.temperature, bias=current.bias)
    return CalibrationReport(
        rule=fit_rule(gaps, generated, rate),
        rate=rate,
        real=int((~generated).sum()),
        generated=int(generated.sum()),
        real_groups=real_groups,
        generated_groups=generated_groups,
        auc=rank(generated, _squash(gaps)).curve().auc(),
        before=_quality(sample, *current.verdicts(sample.probabilities), seed),
        before_at_half=_quality(sample, *at_half.verdicts(sample.probabilities), seed),
        after=_out_of_fold(logits, generated, groups, rate, seed),
    )


def fit_rule(gaps: Floats, generated: Flags, rate: float) -> DecisionRule:
    """Return the calibrated rule of logit gaps [N]; raises UsageError when they do not rise with the truth."""
    temperature, bias = fit_scaling(gaps, generated)
    scaled = DecisionRule("calibrated", temperature=temperature, bias=bias)
    probability = probabilities(scaled, np.stack([np.zeros_like(gaps), gaps], axis=1))
    real_below, generated_from = thresholds(probability[~generated], probability[generated], rate)
    return DecisionRule("calibrated", real_below, generated_from, temperature=temperature, bias=bias)


def fit_scaling(gaps: Floats, generated: Flags) -> tuple[float, float]:
    """Return (temperature > 0, bias) of the least cross-entropy; raises UsageError when no such temperature exists."""
    positives, negatives = int(generated.sum()), int((~generated).sum())
    if not positives or not negatives:
        raise UsageError("calibration needs real and generated images", remedy="add the missing class")
    target = np.where(generated, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    # On standardised gaps Newton's steps are well scaled whatever the logits' range.
    centre, width = float(gaps.mean()), float(gaps.std())
    if not width > 0:
        words = "every image has the same score, so there is nothing to calibrate"
        raise UsageError(words, remedy="use another bundle")
    slope, offset = _newton(np.stack([(gaps - centre) / width, np.ones_like(gaps)], axis=1), target)
    if slope <= 1e-9:
        raise UsageError(
            "generated images do not score higher than real ones here, so no calibration can help",
            remedy="check the labels, or use a bundle that can tell these images apart",
        )
    return width / slope, offset - slope * centre / width


def _newton(design: Floats, target: Floats) -> tuple[float, float]:
    """Minimise the cross-entropy of sigmoid(design @ w); convex, so any start will do."""
    weights: Floats = np.zeros(2)
    step: Floats = np.zeros(2)
    loss = math.inf
    for _ in range(200):
        logits = design @ (weights + step)
        tried = float(np.mean(np.logaddexp(0, logits) - target * logits))
        if tried > loss:
            step /= 2
            if np.abs(step).max() < 1e-12:
                break
            continue
        weights, loss = weights + step, tried
        probability = _squash(logits)
        gradient = design.T @ (probability - target)
        curvature = (design * (probability * (1 - probability))[:, None]).T @ design
        step = np.asarray(-np.linalg.solve(curvature + 1e-12 * np.eye(2), gradient), np.float64)
        if np.abs(step).max() < 1e-10:
            break
    return float(weights[0]), float(weights[1])


def thresholds(real: Floats, generated: Floats, rate: float) -> tuple[float, float]:
    """Return (real_below, generated_from) for the probabilities of real and of generated images.

    Where the classes are so far apart that the two would cross, both become the middle between them, which keeps both
    promises with no ``unsure`` band. With fewer than 1/rate − 1 images the extreme one stands in.

    Raises:
        UsageError: so many real images score 1 that nothing above them is left.
    """
    from_top, from_bottom = (max(1, math.floor(rate * (len(scores) + 1) + 1e-9)) for scores in (real, generated))
    generated_from = float(np.nextafter(np.sort(real)[-from_top], math.inf))
    real_below = float(np.sort(generated)[from_bottom - 1])
    if generated_from > 1:
        raise UsageError("too many real images have a probability of 1", remedy="ask for a larger false positive rate")
    if real_below > generated_from:
        middle = _squash(np.array([(_logit(real_below) + _logit(generated_from)) / 2]))[0]
        real_below = generated_from = float(np.clip(middle, generated_from, real_below))
    return real_below, generated_from


def _out_of_fold(logits: Floats, generated: Flags, groups: Indices, rate: float, seed: int) -> Quality:
    """Judge every image by a rule that was fitted without its fold."""
    fold = _folds(generated, groups, seed)
    probability = np.zeros(len(generated))
    says_generated, says_real = np.zeros((2, len(generated)), np.bool_)
    gaps = logits[:, 1] - logits[:, 0]
    for number in np.unique(fold):
        held = fold == number
        rule = fit_rule(gaps[~held], generated[~held], rate)
        probability[held] = probabilities(rule, logits[held])
        says_generated[held], says_real[held] = rule.verdicts(probability[held])
    return _quality(Sample(generated, probability, groups), says_generated, says_real, seed)


def _folds(generated: Flags, groups: Indices, seed: int) -> Indices:
    """Number each image's fold: whole groups, those with generated images and the others spread evenly."""
    generator = np.random.Generator(np.random.Philox(seed))
    fold = np.zeros(len(groups), np.intp)
    mixed = np.unique(groups[generated])
    for members in (mixed, np.setdiff1d(groups, mixed)):
        for place, member in enumerate(generator.permutation(members)):
            fold[groups == member] = place % FOLDS
    return fold


def _quality(sample: Sample, says_generated: Flags, says_real: Flags, seed: int) -> Quality:
    def rate(flags: Flags, among: Flags) -> Rate:
        count, total = int((flags & among).sum()), int(among.sum())
        return Rate(count, total, share(flags, among), *wilson(count, total))

    return Quality(
        ece=ece_with_interval(sample, seed=seed),
        false_positives=rate(says_generated, ~sample.generated),
        misses=rate(says_real, sample.generated),
        unsure=rate(~(says_generated | says_real), np.ones_like(sample.generated)),
    )


def _squash(values: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -values))


def _logit(probability: float) -> float:
    clipped = min(max(probability, 1e-15), 1 - 1e-15)
    return math.log(clipped) - math.log1p(-clipped)
