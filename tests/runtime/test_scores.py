"""Metrics equal scikit-learn's on any scores, ties included, and intervals resample whole groups."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import binomtest
from sklearn import metrics
from sklearn.calibration import calibration_curve

from lare2_rt.detection import DecisionRule
from lare2_rt.tools.evaluation.scores import (
    ECE_BINS,
    bin_of,
    checked,
    expected_calibration_error,
    rank,
    reliability,
    wilson,
)
from lare2_rt.tools.evaluation.summary import METRICS, Sample, group_numbers, summarise
from tests.helpers.refusals import refused

RULE = DecisionRule("calibrated", 0.3, 0.6)


@st.composite
def scored(draw):
    """(labels, probabilities, weights): both classes, many ties, some weights 0 but no class weightless."""
    size = draw(st.integers(2, 40))
    labels = draw(hnp.arrays(np.int64, size, elements=st.integers(0, 1)))
    labels[:2] = [0, 1]
    values = st.one_of(st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 2 / 3, 1.0]), st.floats(0, 1, width=32))
    probabilities = draw(hnp.arrays(np.float64, size, elements=values))
    weights = draw(hnp.arrays(np.float64, size, elements=st.integers(0, 3).map(float)))
    weights[:2] = 1
    return labels, probabilities, weights


@settings(max_examples=30, deadline=None)
@given(scored())
def test_equal_to_scikit_learn(case):
    labels, probabilities, weights = case
    ranking = rank(labels, probabilities)
    for weight in (None, weights):
        curve = ranking.curve(weight)
        auc = metrics.roc_auc_score(labels, probabilities, sample_weight=weight)
        average_precision = metrics.average_precision_score(labels, probabilities, sample_weight=weight)
        assert curve.auc() == pytest.approx(auc, abs=1e-12)
        assert curve.average_precision() == pytest.approx(average_precision, abs=1e-12)
        fpr, tpr, thresholds = metrics.roc_curve(labels, probabilities, sample_weight=weight, drop_intermediate=False)
        if weight is None:  # else scikit-learn leaves images of weight 0 out
            assert np.allclose(curve.false_positives / curve.negatives, fpr, atol=1e-12)
            assert np.allclose(curve.true_positives / curve.positives, tpr, atol=1e-12)
            assert np.array_equal(curve.thresholds, thresholds)
        for rate in (0.0, 0.01, 0.05, 0.5, 1.0):
            assert curve.tpr_at_fpr(rate) == pytest.approx(tpr[fpr <= rate + 1e-12].max(), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(scored())
def test_oracle_is_the_best_of_all_thresholds(case):
    labels, probabilities, weights = case
    oracle = rank(labels, probabilities).curve(weights).oracle()
    tried = [
        metrics.accuracy_score(labels, probabilities >= threshold, sample_weight=weights)
        for threshold in (*probabilities, math.inf, 0.5, 0.0)
    ]
    assert oracle.accuracy == pytest.approx(max(tried))
    reached = metrics.accuracy_score(labels, probabilities >= oracle.threshold, sample_weight=weights)
    assert reached == pytest.approx(oracle.accuracy)


@settings(max_examples=30, deadline=None)
@given(scored())
def test_summary_equals_scikit_learn(case):
    labels, probabilities, _ = case
    sample = Sample(labels == 1, probabilities, np.arange(len(labels)))
    summary = summarise(sample, RULE, resamples=0)
    values = {name: interval.value for name, interval in summary.metrics.items()}
    called = probabilities >= 0.5
    assert values["accuracy_at_half"] == pytest.approx(metrics.accuracy_score(labels, called))
    assert values["balanced_accuracy_at_half"] == pytest.approx(metrics.balanced_accuracy_score(labels, called))
    assert values["generated_accuracy_at_half"] == pytest.approx(metrics.recall_score(labels, called))
    assert values["real_accuracy_at_half"] == pytest.approx(metrics.recall_score(1 - labels, ~called))
    assert values["brier"] == pytest.approx(metrics.brier_score_loss(labels, probabilities))
    assert (summary.real, summary.generated) == (int((labels == 0).sum()), int((labels == 1).sum()))
    at_calibrated = metrics.accuracy_score(labels, probabilities >= RULE.generated_from)
    assert values["accuracy_at_calibrated"] == pytest.approx(at_calibrated)
    verdicts = [RULE.verdict(probability) for probability in probabilities]
    decided = [(v, label) for v, label in zip(verdicts, labels, strict=True) if v != "unsure"]
    assert values["unsure_share"] == pytest.approx(verdicts.count("unsure") / len(verdicts))
    false = [v == "generated" for v, label in zip(verdicts, labels, strict=True) if label == 0]
    assert values["false_positive_rate"] == pytest.approx(sum(false) / len(false))
    missed = [v == "real" for v, label in zip(verdicts, labels, strict=True) if label == 1]
    assert values["miss_rate"] == pytest.approx(sum(missed) / len(missed))
    if decided:
        right = sum((v == "generated") == (label == 1) for v, label in decided)
        assert values["decided_accuracy"] == pytest.approx(right / len(decided))
    else:
        assert "decided_accuracy" not in values
    assert list(values) == [name for name in METRICS if name in values]


@settings(max_examples=30, deadline=None)
@given(scored())
def test_calibration_error_equals_scikit_learn_bins(case):
    labels, probabilities, _ = case
    generated = labels == 1
    shares, means = calibration_curve(labels, probabilities, n_bins=ECE_BINS)
    counts = np.bincount(bin_of(probabilities), minlength=ECE_BINS)
    counts = counts[counts > 0]
    expected = float(np.sum(counts * np.abs(shares - means)) / len(labels))
    assert expected_calibration_error(generated, probabilities) == pytest.approx(expected, abs=1e-12)
    filled = [b for b in reliability(generated, probabilities) if b.images]
    assert [b.images for b in filled] == counts.tolist()
    assert np.allclose([b.generated for b in filled], shares)
    assert np.allclose([b.probability for b in filled], means)


@settings(max_examples=30, deadline=None)
@given(scored())
def test_weights_are_repetitions(case):
    """What the bootstrap relies on: weight 2 is the image twice, weight 0 is without it."""
    labels, probabilities, weights = case
    times = weights.astype(int)
    twice = np.repeat(labels, times), np.repeat(probabilities, times)
    weighted, repeated = rank(labels, probabilities).curve(weights), rank(*twice).curve()
    assert weighted.auc() == pytest.approx(repeated.auc(), abs=1e-12)
    assert weighted.average_precision() == pytest.approx(repeated.average_precision(), abs=1e-12)
    assert weighted.oracle().accuracy == pytest.approx(repeated.oracle().accuracy, abs=1e-12)
    assert expected_calibration_error(labels == 1, probabilities, weights) == pytest.approx(
        expected_calibration_error(twice[0] == 1, twice[1]), abs=1e-12
    )


def sample_of(seed=0, groups=60, size=4):
    """Groups of ``size`` images whose scores are nearly the same, as versions of one picture are."""
    generator = np.random.default_rng(seed)
    generated = np.arange(groups) % 2 == 1
    score = 1 / (1 + np.exp(-generator.normal(np.where(generated, 1, -1), 1.5)))
    return Sample(np.repeat(generated, size), np.repeat(score, size), np.repeat(np.arange(groups), size))


def test_bootstrap_resamples_groups():
    """Four copies of each picture tell nothing new: by groups the interval is as wide as that of one copy each."""
    copies = sample_of()
    single = copies.only(np.arange(len(copies.groups)) % 4 == 0)
    alone = Sample(copies.generated, copies.probabilities, np.arange(len(copies.groups)))

    def width(sample):
        interval = summarise(sample, RULE, resamples=400).metrics["auc"]
        assert interval.low < interval.value < interval.high
        return interval.high - interval.low

    assert width(copies) == pytest.approx(width(single), abs=1e-12)
    assert width(alone) < 0.7 * width(copies)


def test_bootstrap_is_seeded_and_keeps_both_classes():
    labels = np.array([0, 1, 1, 1])
    sample = Sample(labels == 1, np.array([0.4, 0.3, 0.8, 0.9]), np.arange(4))
    first, again = (summarise(sample, RULE, resamples=50, seed=3) for _ in range(2))
    assert first == again
    assert first != summarise(sample, RULE, resamples=50, seed=4)
    assert all(math.isfinite(v.low) and math.isfinite(v.high) for v in first.metrics.values())


def test_bootstrap_covers_the_truth():
    """Of 25 samples whose true AUC is known, most intervals of 95 % hold it."""
    truth = 0.5 * (1 + math.erf(2 / math.sqrt(1.5**2 * 2) / math.sqrt(2)))
    held = 0
    for seed in range(25):
        interval = summarise(sample_of(seed, size=1), RULE, resamples=150).metrics["auc"]
        held += interval.low <= truth <= interval.high
    assert held >= 21


def test_groups_without_a_name_stand_alone():
    numbers = group_numbers(["a", "", "a", ""])
    assert numbers[0] == numbers[2]
    assert len(set(numbers.tolist())) == 3


@pytest.mark.parametrize(
    ("labels", "probabilities", "remedy"),
    [
        ([0, 1], [0.5], "one probability for each label"),
        ([], [], "one probability for each label"),
        ([0, 2], [0.1, 0.2], "correct"),
        ([0, 1], [0.1, 1.2], "scale"),
        ([0, 1], [0.1, math.nan], "scale"),
    ],
)
def test_refused(labels, probabilities, remedy):
    with refused(remedy):
        checked(labels, probabilities)


@pytest.mark.parametrize(("label", "word"), [(0, "no generated image"), (1, "no real image")])
def test_one_class_is_refused(label, word):
    with refused("add some", about=word):
        rank([label] * 3, [0.1, 0.2, 0.3])


@pytest.mark.parametrize(("count", "total"), [(0, 100), (5, 100), (50, 100), (7, 7), (1, 3)])
def test_wilson_equals_scipy(count, total):
    expected = binomtest(count, total).proportion_ci(method="wilson")
    assert wilson(count, total) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_of_nothing():
    assert wilson(0, 0) == (0.0, 1.0)
