"""--crops N: where the windows are, what is averaged, and what a bundle remembers of it."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from lare2_rt import Detector, EngineError, UsageError
from lare2_rt.bundle.manifest import Decision
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.bundle.rewrite import decision_of, write_with_decision
from lare2_rt.detection import DecisionRule
from lare2_rt.engines import registry
from lare2_rt.engines.contract import EngineOptions, WindowOutput
from lare2_rt.engines.scoring import score_batch
from lare2_rt.engines.selection import load_engine
from lare2_rt.pixels.crop_grid import CROPS, corners
from lare2_rt.pixels.packing import pack, unpack
from lare2_rt.pixels.policy import Preprocessing
from lare2_rt.pixels.preprocess import centre_crop, preprocess
from lare2_rt.tools.evaluation.store import scorer_key
from tests.fakes.engine import FakeEngine, use_engines
from tests.helpers.commands import call

pytestmark = pytest.mark.usefixtures("every_core")

SIDES = st.integers(1, 3000)


class Windows(FakeEngine):
    """Logits that tell the mean of the window, so that an average over windows can be foretold."""

    def run(self, image, crop, *, noise=None):
        output = super().run(image, crop)
        return dataclasses.replace(output, logits=self.judged(crop))

    def run_window(self, lare, crop):
        self.calls += 1
        return WindowOutput(self.judged(crop), np.full((len(crop), 8, 196), 1 / 196, np.float32), {"window": 1.0})

    def judged(self, crop):
        mean = crop.reshape(len(crop), -1).mean(1).astype(np.float32)
        return np.stack([-mean, mean], 1)


@given(SIDES, SIDES, st.sampled_from(CROPS))
@settings(max_examples=200, deadline=None)
def test_windows_are_distinct_and_cover_from_edge_to_edge(width, height, crops):
    found = corners(width, height, 224, crops)
    assert len(set(found)) == len(found) <= crops
    for axis, length in enumerate((width, height)):
        starts = {corner[axis] for corner in found}
        if length <= 224:
            assert starts == {-((224 - length) // 2)}
        else:
            assert min(starts) >= 0
            assert max(starts) <= length - 224
            if crops > 1:
                assert {0, length - 224} <= starts


@pytest.mark.parametrize("crops", [1, 9, 25])
@pytest.mark.parametrize("size", [(640, 427), (225, 900), (100, 60), (224, 224), (1000, 999)])
def test_an_odd_grid_has_the_official_window_in_its_middle_and_it_comes_first(size, crops):
    picture = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    pixels = preprocess(picture, Preprocessing(), crops=crops)
    assert np.array_equal(pixels.crop, centre_crop(picture, 224, "reflect101"))


@pytest.mark.parametrize("padding", ["reflect101", "zero"])
def test_every_window_shows_its_place(padding):
    picture = np.random.default_rng(1).integers(0, 256, (150, 700, 3), np.uint8)
    pixels = preprocess(picture, Preprocessing(padding=padding), crops=9, view=True)
    assert len(pixels.others) == 2
    assert [left for left, _ in pixels.view.corners] == [238, 0, 476]
    for (left, top), window in zip(pixels.view.corners, pixels.view.windows, strict=True):
        assert np.array_equal(window[-top : 150 - top], picture[:, left : left + 224])
        assert np.array_equal(window[0] == 0, np.ones((224, 3), bool)) == (padding == "zero")


def test_pixels_survive_the_pipe_between_processes(rocket):
    for crops, view in ((1, False), (4, True), (1, True), (9, False)):
        pixels = preprocess(rocket, Preprocessing(), crops=crops, view=view)
        back = unpack(pack(pixels))
        assert np.array_equal(back.image, pixels.image)
        assert np.array_equal(back.crop, pixels.crop)
        assert (back.others is None) == (crops == 1)
        if crops > 1:
            assert np.array_equal(back.others, pixels.others)
        assert (back.view is None) == (not view)
        if view:
            assert (back.view.size, back.view.corners) == (pixels.view.size, pixels.view.corners)
            assert np.array_equal(back.view.preview, pixels.view.preview)
            assert np.array_equal(back.view.windows, pixels.view.windows)


@pytest.mark.parametrize("crops", [0, 2, 5, 121, -4])
def test_other_numbers_are_refused(embedded, crops):
    with pytest.raises(UsageError) as told:
        Detector.load(embedded, crops=crops)
    assert told.value.remedy.endswith(", ".join(map(str, CROPS)))


def test_logits_are_the_mean_over_the_windows_of_each_image(embedded, monkeypatch):
    """Four images with 9, 1, 3 and 9 windows in one batch: none may change another's mean."""
    engine = Windows(batch=4)
    use_engines(monkeypatch, engine)
    generator = np.random.default_rng(2)
    pictures = [
        generator.integers(0, 256, (*size, 3), np.uint8) for size in ((300, 400), (100, 90), (200, 600), (900, 900))
    ]
    with Detector.load(embedded, batch=4, crops=9) as detector:
        results = list(detector.detect_many(pictures))
    assert [result.windows for result in results] == [9, 1, 3, 9]
    assert engine.calls == 9, "one chain, and one call for each further window"
    for picture, result in zip(pictures, results, strict=True):
        pixels = preprocess(picture, Preprocessing(), crops=9)
        windows = [pixels.crop, *(pixels.others if pixels.others is not None else ())]
        wanted = np.mean([engine.judged(window[None])[0].astype(np.float64) for window in windows], axis=0)
        assert result.logits == pytest.approx(tuple(wanted), abs=0, rel=1e-15)
        assert result.as_dict()["crops"] == 9
        assert result.timings["window"] == 8.0


def test_an_engine_that_runs_the_chain_in_one_piece_is_a_sentence(embedded, monkeypatch):
    engine = FakeEngine()
    use_engines(monkeypatch, engine)
    with pytest.raises(EngineError, match=r"fake runs the chain in one piece .* choose another engine"):
        Detector.load(embedded, crops=4)
    assert engine.closed == 1


def test_one_window_changes_no_bit_and_several_change_the_answer(embedded, rocket):
    with Detector.load(embedded) as one, Detector.load(embedded, crops=9) as nine:
        single, many = one.detect(rocket), nine.detect(rocket)
        again = nine.detect(rocket)
    assert single.windows == 1
    assert many.windows == 9
    assert np.array_equal(single.lare, many.lare), "LaRE sees the whole picture, once"
    assert np.array_equal(single.attention, many.window_attention[0])
    assert single.logits != many.logits == again.logits


@pytest.mark.parametrize("entry", registry.ENGINES, ids=lambda entry: entry.name)
def test_a_window_alone_gives_the_bits_of_the_chain(embedded, photos, entry):
    bundle, engine = open_bundle(embedded), entry.load()
    reason = engine.why_not(bundle, EngineOptions(threads=2))
    if reason is not None:
        pytest.skip(str(reason))
    running = load_engine(engine, bundle, EngineOptions(threads=2, batch=1))
    try:
        first, second = (preprocess(photo, bundle.manifest.policy) for photo in photos[:2])
        whole = running.run(first.image[None], first.crop[None])
        lare, logits, attention = (np.copy(array) for array in (whole.lare, whole.logits, whole.attention))
        other = running.run_window(lare, second.crop[None])
        assert not np.array_equal(other.logits, logits)
        alone = running.run_window(lare, first.crop[None])
        assert np.array_equal(alone.logits, logits)
        assert np.array_equal(alone.attention, attention)
        scores, _ = score_batch(running, [first], 1)
        assert np.array_equal(scores[0].logits, logits[0])
    finally:
        running.close()


def calibrated(embedded, tmp_path, crops):
    rule = DecisionRule("calibrated", 0.3, 0.7, temperature=2.0, bias=0.1, crops=crops)
    return write_with_decision(open_bundle(embedded), tmp_path / f"bundle{crops}", decision_of(rule, "tests"))


def test_a_bundle_remembers_its_windows_and_uses_them(embedded, tmp_path, monkeypatch, rocket):
    use_engines(monkeypatch, Windows())
    bundle = calibrated(embedded, tmp_path, 4)
    assert json.loads((bundle.path / "manifest.json").read_text())["decision"]["crops"] == 4
    with Detector.load(bundle.path) as detector:
        assert detector.info.provenance.crops == detector.info.rule.crops == 4
        assert detector.info.misfit is None
        assert detector.detect(rocket).as_dict()["decision"]["crops"] == 4
    with Detector.load(bundle.path, crops=1) as detector:
        assert "calibrated with --crops 4 and is used with --crops 1" in detector.info.misfit


def test_bundles_from_before_keep_their_bytes_and_mean_the_official_window(embedded, tmp_path):
    one = calibrated(embedded, tmp_path, 1)
    assert "crops" not in json.loads((one.path / "manifest.json").read_text())["decision"]
    assert one.manifest.rule.crops == 1
    assert one.manifest.id != calibrated(embedded, tmp_path, 9).manifest.id
    manifest = open_bundle(embedded).manifest
    assert manifest.to_json() == (embedded / "manifest.json").read_bytes()


@pytest.mark.parametrize(
    "fields", [{"calibration": "uncalibrated", "crops": 4}, {"calibration": "untrained", "crops": 1}]
)
def test_only_a_calibrated_decision_has_windows(fields):
    with pytest.raises(ValueError, match="only of a calibrated decision"):
        Decision(**fields)
    with pytest.raises(ValueError, match="must be a number of windows"):
        Decision(calibration="calibrated", real_below=0.4, generated_from=0.6, crops=7)


def test_scores_of_other_windows_do_not_count_and_old_ones_do(embedded, monkeypatch):
    use_engines(monkeypatch, Windows())
    with Detector.load(embedded) as detector:
        one = detector.info.provenance
    assert scorer_key(one) == scorer_key(dataclasses.replace(one, crops=1))
    assert scorer_key(one) != scorer_key(dataclasses.replace(one, crops=4))


def test_the_command_says_what_does_not_fit(embedded, tmp_path, rocket):
    manifest = calibrated(embedded, tmp_path, 4).path
    run = call("infer", rocket, "--bundle", manifest, "--crops", "1", "--format", "json")
    assert run.returncode == 0, run.stderr
    assert "note: this bundle was calibrated with --crops 4" in run.stderr
    (record,) = json.loads(run.stdout)
    assert (record["crops"], record["windows"], record["decision"]["crops"]) == (1, 1, 4)
    run = call("infer", rocket, "--crops", "6")
    assert run.returncode == 2
    assert "1, 4, 9" in run.stderr


def test_a_turned_picture_is_cut_as_clip_sees_it(tmp_path):
    """With the official policy the VAE branch sees the picture unturned; the views say so."""
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 256, (300, 500, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    for policy, alike, shape in (
        ("official", False, (230, 384)),
        ("apply", True, (384, 230)),
        ("ignore", True, (230, 384)),
    ):
        view = preprocess(tmp_path / "turned.png", Preprocessing(exif=policy), view=True).view
        assert view.turned_alike is alike
        assert view.preview.shape[:2] == shape
        assert view.size == ((500, 300) if policy == "ignore" else (300, 500))
