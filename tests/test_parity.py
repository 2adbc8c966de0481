"""Parity on photographs, and the statistics it is stated in."""

import json
import runpy

import numpy as np
import pytest
from conftest import ROOT
from polygraphy.comparator import CosineSimilarityCompareFunc, IterationResult, L2CompareFunc, SimpleCompareFunc
from tiny import seeded_input

from lare2_ref.sources import default_model_folder, open_model_folder
from lare2_rt.bundle import open_bundle
from lare2_rt.errors import UsageError
from lare2_rt.metrics import difference

SCRIPT = ROOT / "benchmarks/parity.py"


@pytest.fixture(scope="module")
def parity():
    return runpy.run_path(str(SCRIPT))


def test_shipped_photos_are_within_tolerance(parity, embedded, photos):
    report = parity["run"](open_bundle(embedded), open_model_folder(default_model_folder()), photos)
    assert report["passed"]
    assert report["same_bits_as_batch_1"] == {"4": True}
    assert report["end_to_end"]["verdict_flips"] == 0
    assert len(set(report["image_files"])) == len(photos)
    for component in report["components"].values():
        for entry in component["outputs"].values():
            assert 0 < entry["worst_relative_l2"] <= entry["tolerance"]


def test_committed_report_is_of_the_embedded_bundle(embedded):
    report = json.loads((ROOT / "benchmarks/results/parity.json").read_text())
    assert report["bundle"]["id"] == open_bundle(embedded).manifest.id
    assert report["passed"]
    assert len(report["image_files"]) >= 32
    full = json.loads((ROOT / "benchmarks/results/parity-synthetic-sd15.json").read_text())
    assert full["passed"]
    assert full.keys() == report.keys()


def test_wrong_weights_are_named(parity, tiny, photos):
    with pytest.raises(UsageError, match="was not built from these weights"):
        parity["run"](open_bundle(tiny[1].path), open_model_folder(default_model_folder()), photos)


def test_statistics_agree_with_polygraphy():
    reference = seeded_input("reference", (4, 3, 50))
    actual = reference + np.float32(1e-3) * seeded_input("error", (4, 3, 50))
    ours = difference(actual, reference)
    pair = IterationResult({"x": actual}), IterationResult({"x": reference})
    simple = SimpleCompareFunc(check_error_stat="quantile", error_quantile=0.99, atol=1, rtol=1)(*pair)["x"]
    assert ours.max_abs == pytest.approx(simple.max_absdiff, rel=1e-4)
    assert ours.mean_abs == pytest.approx(simple.mean_absdiff, rel=1e-4)
    assert ours.p99_abs == pytest.approx(simple.quantile_absdiff, rel=1e-3)
    distance = L2CompareFunc(np.inf)(*pair)["x"]
    assert ours.relative_l2 * np.linalg.norm(reference) == pytest.approx(distance.l2_norm, rel=1e-5)
    similarity = CosineSimilarityCompareFunc(-1)(*pair)["x"]
    assert ours.cosine == pytest.approx(similarity.cosine_similarity, rel=1e-6)


def test_difference_edges():
    one, zero = np.ones(3), np.zeros(3)
    assert difference(one, one).relative_l2 == 0
    assert difference(zero, zero).relative_l2 == 0
    assert difference(one, zero).relative_l2 == np.inf
    assert difference(zero, one).relative_l2 == 1
    broken = difference(np.array([1, np.nan, np.inf]), one)
    assert (broken.not_finite, broken.relative_l2) == (2, np.inf)
    # A reference that is broken itself must not pass for agreement.
    assert difference(one, np.array([1, np.nan, 1])).relative_l2 == np.inf
    with pytest.raises(ValueError, match="one shape"):
        difference(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="elements"):
        difference(np.ones(0), np.ones(0))
