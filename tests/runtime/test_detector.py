"""The library: the same bits however an image comes in, and the reference's own answer."""

import dataclasses
import json

import jsonschema
import numpy as np
import pytest

from lare2_ref.reference import Lare2Reference
from lare2_ref.sources import default_model_folder, load_reference, open_model_folder
from lare2_rt import Detector, EngineError, ImageError, UsageError
from lare2_rt.detection import DecisionRule, probability_of_generated
from lare2_rt.engines.difference import difference
from tests.conftest import ROOT

SCHEMA = json.loads((ROOT / "docs/schema/detection-1.schema.json").read_text())


@pytest.fixture(scope="module")
def detector(embedded):
    with Detector.load(embedded) as opened:
        yield opened


def same(a, b):
    assert a.logits == b.logits
    assert np.array_equal(a.lare, b.lare)
    assert np.array_equal(a.attention, b.attention)


def test_arrays_have_the_limits_of_files(detector):
    """The views hold one pixel; refused from their shape, they never become pictures of hundreds of megabytes."""
    pixel = np.zeros((1, 1, 3), np.uint8)
    for shape, words in (((9500, 9500), "larger than 89 megapixels"), ((1, 1_000_001), "more than 1000000 pixels")):
        array = np.broadcast_to(pixel, (*shape, 3))
        with pytest.raises(ImageError, match=f"{shape[1]}×{shape[0]} .*{words}"):
            detector.detect(array)
        (failed,) = detector.detect_many([array])
        assert words in failed.error


def test_shapes_and_ranges(detector, photos):
    result = detector.detect(photos[0])
    assert result.lare.shape == (4, 32, 32)
    assert result.lare.dtype == np.float32
    assert (result.lare >= 0).all()
    assert result.attention.shape == (8, 196)
    assert 0 < result.probability < 1
    assert result.ok


def test_images_get_different_answers(detector, photos):
    """A chain that dropped its input would pass every equality test."""
    results = [detector.detect(photo) for photo in photos]
    assert len({result.logits for result in results}) == len(photos)
    maps = [result.lare for result in results]
    assert all(difference(a, maps[0]).relative_l2 > 1e-3 for a in maps[1:])


def test_reference_gives_what_the_runtime_gives(detector, photos):
    manifest = detector.bundle.manifest
    reference: Lare2Reference = load_reference(
        open_model_folder(default_model_folder()),
        noise=detector.bundle.noise,
        prompt=manifest.method.prompt,
        timestep=manifest.method.timestep,
        policy=manifest.policy,
        image_size=manifest.method.image_size,
    )
    # The weights are the bundle's, the rule was measured later.
    reference.identity = dataclasses.replace(reference.identity, rule=manifest.rule)
    for photo in photos:
        ours, theirs = detector.detect(photo), reference.predict(photo)
        assert difference(ours.lare, theirs.lare).relative_l2 <= 3e-5
        assert abs(ours.probability - theirs.probability) <= 1e-5
        # What is left of LaRE's difference passes through a softmax with sharp peaks.
        assert difference(ours.attention, theirs.attention).relative_l2 <= 3e-5
        assert ours.verdict == theirs.verdict
        assert set(ours.as_dict()) == set(theirs.as_dict())
        jsonschema.validate(theirs.as_dict(), SCHEMA)


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_many_equals_one_by_one_and_bad_files_stay_in_place(embedded, photos, tmp_path, batch):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not an image")
    sources = [bad, photos[0], tmp_path / "missing.jpg", *photos, bad, photos[1]]
    with Detector.load(embedded) as single, Detector.load(embedded, batch=batch) as many:
        results = list(many.detect_many(sources))
        assert [result.source for result in results] == [str(source) for source in sources]
        for source, result in zip(sources, results, strict=True):
            if source in photos:
                same(result, single.detect(source))
            else:
                assert result.error
                assert result.verdict is None
                assert result.probability is None


def test_failures_are_told_before_the_first_good_image(detector, photos):
    """Nothing readable waits, so nothing holds them back."""
    taken = []

    def sources():
        for index in range(50):
            taken.append(index)
            yield f"missing-{index}.jpg"
        yield photos[0]

    stream = detector.detect_many(sources())
    assert next(stream).source == "missing-0.jpg"
    assert len(taken) < 10
    assert sum(1 for _ in stream) == 50


def test_many_is_lazy_and_can_be_abandoned(detector, photos):
    def endless():
        while True:
            yield photos[0]

    stream = detector.detect_many(endless())
    assert next(stream).ok
    stream.close()
    assert list(detector.detect_many([])) == []


def test_bad_image_raises(detector, tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        detector.detect(tmp_path / "missing.jpg")
    for nonsense in (None, 7, ["photo.jpg"]):
        with pytest.raises(ImageError, match="is no image; give a path"):
            detector.detect(nonsense)
    with pytest.raises(ImageError, match=r"uint8 RGB of shape \[H,W,3\]"):
        detector.detect(np.zeros((4, 4), np.float32))


def test_untrained_model_never_judges(untrained, photos):
    with Detector.load(untrained, threshold=0.0) as detector:
        result = detector.detect(photos[0])
    assert result.verdict == "unsure"
    assert "untrained" in result.rule.note


def test_closed_detector_says_so(embedded, photos):
    detector = Detector.load(embedded)
    detector.close()
    detector.close()
    with pytest.raises(EngineError, match="closed"):
        detector.detect(photos[0])


def test_wrong_requests_are_named(embedded):
    with pytest.raises(EngineError, match="there is no engine 'cuda'"):
        Detector.load(embedded, engine="cuda")
    with pytest.raises(EngineError, match="batch 3 fp32 portable"):
        Detector.load(embedded, batch=3)
    with pytest.raises(UsageError, match="threads must be at least 1"):
        Detector.load(embedded, threads=0)
    with pytest.raises(UsageError, match="between 0 and 1"):
        Detector.load(embedded, threshold=50)


def test_rules():
    uncalibrated = DecisionRule("uncalibrated")
    assert uncalibrated.verdict(0.99) == "unsure"
    assert uncalibrated.with_threshold(0.5).verdict(0.5) == "generated"
    assert uncalibrated.with_threshold(0.5).verdict(0.49) == "real"
    band = DecisionRule("calibrated", 0.2, 0.8)
    assert [band.verdict(p) for p in (0.1, 0.2, 0.79, 0.8)] == ["real", "unsure", "unsure", "generated"]
    assert band.note is None
    assert DecisionRule("untrained").with_threshold(0.5).verdict(1.0) == "unsure"


def test_probability_does_not_overflow():
    assert probability_of_generated(np.float32([0, 0])) == 0.5
    assert probability_of_generated(np.float32([-3e4, 3e4])) == 1
    assert probability_of_generated(np.float32([3e4, -3e4])) == 0
    assert probability_of_generated(np.float32([0, 1])) == pytest.approx(0.7310585786)
