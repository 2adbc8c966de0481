"""Parity on photographs, and the statistics it is stated in."""

import json
import re
import runpy
from types import SimpleNamespace

import numpy as np
import pytest
import typer.main
from polygraphy.comparator import CosineSimilarityCompareFunc, IterationResult, L2CompareFunc, SimpleCompareFunc

from lare2_export.build.options import BuildOptions
from lare2_export.cli import app
from lare2_export.parity import measure as parity_module, parity_step
from lare2_export.parity.parity_step import measure_parity
from lare2_export.parity.tolerances import judged_images
from lare2_ref.sources import default_model_folder, open_model_folder
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.engines.difference import difference
from lare2_rt.errors import ImageError, UsageError
from lare2_rt.pixels.procedural import procedural_pictures
from tests.conftest import ROOT
from tests.helpers.tiny import seeded_input

SCRIPT = ROOT / "benchmarks/parity.py"


@pytest.fixture(scope="module")
def parity():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def shipped(parity, embedded, photos):
    """The report of the shipped photographs, and of each of its entries the arrays that it was computed from."""
    compared = []

    def recording(ours, theirs, tolerance):
        entry = judged_images(ours, theirs, tolerance)
        compared.append((np.stack(ours), np.stack(theirs), entry))
        return entry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity_module, "judged_images", recording)
        report = parity["run"](open_bundle(embedded), open_model_folder(default_model_folder()), photos)
    return report, compared


def test_shipped_photos_are_within_tolerance(shipped, photos):
    report, _ = shipped
    assert report["passed"]
    assert report["same_bits_as_batch_1"] == {"4": True}
    assert report["end_to_end"]["verdict_flips"] == 0
    assert len(set(report["image_files"])) == len(photos)
    for component in report["components"].values():
        for entry in component["outputs"].values():
            assert 0 < entry["worst_relative_l2"] <= entry["tolerance"]


def test_an_unreadable_image_is_named(parity, embedded, photos, rocket, tmp_path):
    """Before the reference is loaded; the sentence is all that the user sees of it."""
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(rocket.read_bytes()[:20_000])
    for path, words in ((bad, "truncated or damaged"), (tmp_path / "gone.png", "no such file")):
        plan = SimpleNamespace(options=BuildOptions(images=(str(photos[0]), str(path))))
        draft = open_bundle(embedded).manifest
        with pytest.raises(ImageError, match=f"^{re.escape(str(path))}: {words}"):
            measure_parity(plan, draft, embedded, None, report=lambda line: pytest.fail(line))
        with pytest.raises(ImageError, match=f"^{re.escape(str(path))}: {words}"):
            parity["run"](open_bundle(embedded), open_model_folder(default_model_folder()), [photos[0], path])


def test_parity_images_stand_beside_the_procedural_pictures(embedded, rocket, monkeypatch):
    """As the help of --parity-images says; without it, two photographs do."""
    seen = []

    def load(sources, **options):
        raise InterruptedError

    monkeypatch.setattr(parity_step, "load_reference", load)
    for images in ((), (str(rocket),)):
        plan = SimpleNamespace(options=BuildOptions(images=images), sources=None)
        with pytest.raises(InterruptedError):
            measure_parity(plan, open_bundle(embedded).manifest, embedded, None, report=seen.append)
    own = len(procedural_pictures())
    assert [int(line.split()[-2]) for line in seen] == [own + 2, own + 1]
    (option,) = (p for p in typer.main.get_command(app).params if p.name == "parity_images")
    assert "beside" in option.help


RESULTS = ROOT / "benchmarks/results"


def committed(name):
    return json.loads((RESULTS / name).read_text())


def test_committed_report_is_of_the_embedded_bundle(embedded):
    report = committed("parity.json")
    assert report["bundle"]["id"] == open_bundle(embedded).manifest.id
    assert report["passed"]
    assert len(set(report["image_files"])) >= 32


# Relative L2 of the worst image, as promised for the full size.
PROMISED = {
    "latent": 1e-5,
    "noise_prediction": 1e-5,
    "lare": 3e-5,
    "embedding": 1e-5,
    "layer3": 1e-5,
    "logits": 1e-5,
    "attention": 1e-5,
}


@pytest.mark.parametrize(
    ("name", "images"),
    [("parity.json", 32), ("parity-synthetic-sd15.json", 8), ("parity-build-synthetic-sd15.json", 6)],
)
def test_committed_reports_keep_the_promises(name, images):
    """From the figures themselves, whatever the report makes of them."""
    report = committed(name)
    assert len(set(report["images"])) >= images
    parts = [component["outputs"] for component in report["components"].values()]
    outputs = {output: entry for part in parts for output, entry in part.items()}
    assert outputs.keys() == PROMISED.keys()
    for output, entry in [*outputs.items(), ("lare", report["end_to_end"]["lare"])]:
        assert 0 < entry["worst_relative_l2"] <= entry["tolerance"] <= PROMISED[output], output
        assert entry["not_finite"] == 0
    spread = report["logit_standard_deviation"]
    assert spread > 1e-2, "the check is void"
    assert report["end_to_end"]["logits"]["max_abs"] <= 1e-3 * spread
    assert report["same_bits_as_batch_1"] == {"4": True}
    assert all(component["reason"] for component in report["components"].values())


def test_committed_half_precision_keeps_the_promises():
    """At full size: every value rounded to half, none overflows, and the largest of each layer is stored."""
    half = committed("parity-build-synthetic-sd15.json")["half"]
    assert half["end_to_end"]["lare"]["worst_relative_l2"] <= 1e-2
    entries = [e for component in half["components"].values() for e in component["outputs"].values()]
    assert len(entries) == len(PROMISED)
    assert [e["not_finite"] for e in (*entries, half["end_to_end"]["lare"])] == [0] * (len(entries) + 1)
    assert half["largest_of_float16"] == 65504
    assert {name: len(layers) > 40 for name, layers in half["ranges"].items()} == dict.fromkeys(half["ranges"], True)
    assert all(0 < value < 65504 for layers in half["ranges"].values() for value in layers.values())


def test_wrong_weights_are_named(parity, tiny, photos):
    with pytest.raises(UsageError, match="was not built from these weights"):
        parity["run"](open_bundle(tiny[1].path), open_model_folder(default_model_folder()), photos)


def polygraphy_statistics(actual, reference):
    """What Polygraphy's comparators say about a pair, under the names of ours where both have the figure."""
    pair = IterationResult({"x": actual}), IterationResult({"x": reference})
    simple = SimpleCompareFunc(check_error_stat="quantile", error_quantile=0.99, atol=np.inf, rtol=np.inf)(*pair)["x"]
    perceptual = L2CompareFunc(np.inf)(*pair)["x"], CosineSimilarityCompareFunc(-1)(*pair)["x"]
    return {
        "max_abs": simple.max_absdiff,
        "mean_abs": simple.mean_absdiff,
        "p99_abs": simple.quantile_absdiff,
        "l2": perceptual[0].l2_norm,
        "cosine": perceptual[1].cosine_similarity,
    }


def check_against_polygraphy(actual, reference, ours):
    theirs = polygraphy_statistics(actual, reference)
    ours = {**ours, "l2": ours["relative_l2"] * np.linalg.norm(reference.astype(np.float64))}
    # Polygraphy subtracts in float32 and rounds quantiles; the difference itself has six digits at best.
    tolerances = {"max_abs": 1e-3, "mean_abs": 1e-3, "p99_abs": 1e-3, "l2": 1e-3, "cosine": 1e-6}
    for name, relative in tolerances.items():
        assert ours[name] == pytest.approx(float(theirs[name]), rel=relative, abs=1e-12), name


def test_statistics_agree_with_polygraphy_on_the_photographs(shipped, photos):
    """The very arrays of the parity run: reference against exported components, and end to end."""
    report, compared = shipped
    reported = [entry for component in report["components"].values() for entry in component["outputs"].values()]
    reported += [report["end_to_end"][name] for name in ("lare", "logits")]
    assert len(compared) >= 9  # seven outputs and probes of the components, two of the chain
    for entry in reported:
        statistics = {name: entry[name] for name in ("relative_l2", "max_abs", "mean_abs", "p99_abs", "cosine")}
        (pair,) = (pair for pair in compared if statistics.items() <= pair[2].items())
        assert len(pair[0]) == len(photos)
        assert entry["not_finite"] == 0
        check_against_polygraphy(*pair)


def test_statistics_agree_with_polygraphy_on_larger_errors():
    reference = seeded_input("reference", (4, 3, 50))
    for scale in (1e-3, 1, 100):
        actual = reference + np.float32(scale) * seeded_input("error", (4, 3, 50))
        check_against_polygraphy(actual, reference, difference(actual, reference).as_dict())


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
