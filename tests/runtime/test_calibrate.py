"""Calibration: honest probabilities, thresholds that keep their promise, a new bundle, and refusals in sentences."""

import json
import math
import shutil

import numpy as np
import pytest
from sklearn.calibration import _sigmoid_calibration

from lare2_rt import Detector
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.detection import DecisionRule
from lare2_rt.tools.evaluation.calibrate import FOLDS, calibrate, fit_scaling, images_needed, thresholds
from lare2_rt.tools.evaluation.scores import expected_calibration_error
from tests.helpers.labelled import run_command, write_set
from tests.helpers.refusals import refused
from tests.helpers.tampering import read_manifest, reseal

UNCALIBRATED = DecisionRule("uncalibrated")


def overconfident(count, seed, factor=4.0, shift=2.5):
    """(logits, generated): calibrated log-odds, blown up and shifted, as detectors give on images unlike their own."""
    draw = np.random.default_rng(seed)
    generated = np.arange(count) % 2 == 1
    honest = draw.normal(np.where(generated, 1.0, -1.0), math.sqrt(2))  # its own log-odds, as mean = variance / 2
    gaps = factor * honest + shift
    return np.stack([-gaps / 2, gaps / 2], axis=1), generated


def probabilities(rule, logits):
    return np.array([rule.probability(pair) for pair in logits.tolist()])


def test_halves_the_calibration_error_on_other_images():
    logits, generated = overconfident(2000, seed=0)
    report = calibrate(logits, generated, np.arange(2000), current=UNCALIBRATED, rate=0.05)
    new_logits, new_generated = overconfident(4000, seed=1)
    before = expected_calibration_error(new_generated, probabilities(UNCALIBRATED, new_logits))
    after = expected_calibration_error(new_generated, probabilities(report.rule, new_logits))
    assert before > 0.1
    assert after <= before / 2
    assert report.before.ece.value > 0.1
    assert report.after.ece.value <= report.before.ece.value / 2
    # The report's own figures hold on images that calibration never saw.
    assert after == pytest.approx(report.after.ece.value, abs=0.03)
    assert report.rule.temperature == pytest.approx(4.0, rel=0.15)
    assert report.rule.bias == pytest.approx(-2.5 / 4, abs=0.15)


def test_scaling_equals_platt_s():
    logits, generated = overconfident(500, seed=2)
    gaps = logits[:, 1] - logits[:, 0]
    temperature, bias = fit_scaling(gaps, generated)
    a, b = _sigmoid_calibration(gaps, generated.astype(int))
    assert 1 / temperature == pytest.approx(-a, rel=1e-4)
    assert bias == pytest.approx(-b, abs=1e-4)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_scaling_of_separable_scores_is_finite(scale):
    gaps = np.array([-2.0, -1.0, 1.0, 2.0]) * scale
    temperature, bias = fit_scaling(gaps, gaps > 0)
    assert 0 < temperature < math.inf
    rule = DecisionRule("calibrated", 0.5, 0.5, temperature=temperature, bias=bias)
    assert rule.probability((0.0, gaps[0])) < 0.5 < rule.probability((0.0, gaps[-1]))


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1])
def test_thresholds_keep_their_promise_on_average(rate):
    """Over many calibration sets, the share of new images on the wrong side is the asked one, and not much less."""
    draw = np.random.default_rng(0)
    count = images_needed(rate) + 30
    false, missed = [], []
    for _ in range(400):
        real, generated = draw.beta(2, 4, count), draw.beta(4, 2, count)
        real_below, generated_from = thresholds(real, generated, rate)
        assert real_below <= generated_from
        false.append((draw.beta(2, 4, 200) >= generated_from).mean())
        missed.append((draw.beta(4, 2, 200) < real_below).mean())
    for rates in (false, missed):
        deviation = np.std(rates) / math.sqrt(len(rates))
        assert rate * 0.5 - 3 * deviation < np.mean(rates) < rate + 3 * deviation


def test_crossed_thresholds_meet_in_the_middle():
    real, generated = np.linspace(0.01, 0.2, 99), np.linspace(0.8, 0.99, 99)
    real_below, generated_from = thresholds(real, generated, 0.01)
    assert real_below == generated_from == pytest.approx(0.5, abs=1e-6)


def test_ties_at_the_threshold_do_not_count_as_generated():
    real = np.array([0.1] * 90 + [0.9] * 10)
    _, generated_from = thresholds(real, np.full(100, 0.95), 0.05)
    assert not (real >= generated_from).any()
    with refused("ask for a larger false positive rate"):
        thresholds(np.ones(100), np.ones(100), 0.01)


def test_report_judges_no_image_by_a_rule_fitted_on_it():
    """Pure noise: in-sample thresholds would show fewer errors than asked, those of other folds do not."""
    draw = np.random.default_rng(3)
    generated = np.arange(400) % 2 == 1
    gaps = draw.normal(0.2 * generated, 1)
    logits = np.stack([np.zeros(400), gaps], axis=1)
    groups = np.arange(400) // 8
    report = calibrate(logits, generated, groups, current=UNCALIBRATED, rate=0.05)
    again = calibrate(logits, generated, groups, current=UNCALIBRATED, rate=0.05)
    assert report == again
    rule = report.rule
    in_sample = (probabilities(rule, logits)[~generated] >= rule.generated_from).mean()
    assert in_sample <= 0.05
    assert report.after.false_positives.low <= 0.05 <= report.after.false_positives.high
    assert report.after.false_positives.value != in_sample
    assert report.before.unsure.value == 1
    assert report.before_at_half.unsure.value == 0


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.001, 999)])
def test_needed_images(rate, needed):
    assert images_needed(rate) == needed
    groups = np.arange(2 * needed)
    logits, generated = overconfident(2 * needed, seed=4)
    if needed < 200:
        assert calibrate(logits, generated, groups, current=UNCALIBRATED, rate=rate).real == needed
    few = slice(0, 2 * needed - 2)
    with refused("add images", about=f"needs at least {needed} unrelated real images, and there are {needed - 1}"):
        calibrate(logits[few], generated[few], groups[few], current=UNCALIBRATED, rate=rate)
    # Versions of one picture are not more pictures.
    with refused("add images", about=f"there are {(needed + 1) // 2}"):
        calibrate(logits, generated, groups // 4, current=UNCALIBRATED, rate=rate)


def test_scores_that_do_not_rise_are_refused():
    logits, generated = overconfident(200, seed=5)
    with refused("check the labels"):
        calibrate(-logits, generated, np.arange(200), current=UNCALIBRATED, rate=0.05)
    with refused("use another bundle"):
        calibrate(np.zeros((200, 2)), generated, np.arange(200), current=UNCALIBRATED, rate=0.05)


# The command


@pytest.fixture
def command(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_command("calibrate", *arguments, "--batch", "4")


@pytest.fixture
def trained(bundle_copy):
    """The embedded bundle as if its weights had been trained."""
    raw = read_manifest(bundle_copy)
    raw["model"]["synthetic"] = False
    raw["decision"] = {"calibration": "uncalibrated"}
    reseal(bundle_copy, raw)
    return bundle_copy


@pytest.fixture
def labelled(tmp_path):
    return write_set(tmp_path / "set", real=60, generated=60, splits=("val",))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_writes_a_new_bundle_and_leaves_the_old(command, trained, labelled, fake, tmp_path, photos):
    before = contents(trained)
    code, out, err = command(labelled, "--bundle", trained, "--out", "new", "--fpr", "0.05", "--report", "r.json")
    assert code == 0, err
    assert contents(trained) == before
    old, new = open_bundle(trained, verify=True), open_bundle(tmp_path / "new", verify=True)
    assert new.manifest.id != old.manifest.id
    assert new.manifest.lare_id == old.manifest.lare_id
    assert new.manifest.files == old.manifest.files
    decision = new.manifest.decision
    assert decision.calibration == "calibrated"
    assert "60 real and 60 generated images of 2 generators, split val" in decision.data
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["bundle"]["id"] == new.manifest.id
    assert report["rule"]["temperature"] == decision.scaling.temperature
    assert report["rule"]["demonstration"] == bool(decision.demonstration)
    assert report["folds"] == FOLDS
    assert f"{report['after']['ece']['value']:.4f}" in out
    with Detector.load(trained, batch=1) as plain, Detector.load(tmp_path / "new", batch=1) as scaled:
        first, second = plain.detect(photos[0]), scaled.detect(photos[0])
    assert first.logits == second.logits
    gap = first.logits[1] - first.logits[0]
    expected = 1 / (1 + math.exp(-(gap / decision.scaling.temperature + decision.scaling.bias)))
    assert second.probability == pytest.approx(expected, abs=1e-12)
    assert second.probability != first.probability
    assert first.verdict == "unsure"
    assert second.verdict == new.manifest.rule.verdict(second.probability)
    record = second.as_dict()["decision"]
    assert (record["temperature"], record["bias"]) == (decision.scaling.temperature, decision.scaling.bias)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "new", "new.scores", "r.json", "set"]


def test_an_explicit_threshold_applies_to_the_scaled_probability(trained, tmp_path):
    raw = read_manifest(trained)
    raw["decision"] = {"calibration": "calibrated", "real_below": 0.4, "generated_from": 0.6, "data": "x"}
    raw["decision"]["scaling"] = {"temperature": 2.0, "bias": -1.0}
    reseal(trained, raw)
    rule = open_bundle(trained).manifest.rule.with_threshold(0.3)
    assert (rule.temperature, rule.bias, rule.real_below, rule.explicit) == (2.0, -1.0, 0.3, True)
    assert rule.probability((0.0, 2.0)) == 0.5


def test_inspect_shows_the_scaling(trained):
    raw = read_manifest(trained)
    raw["decision"] = {"calibration": "calibrated", "real_below": 0.4, "generated_from": 0.6, "data": "x"}
    raw["decision"]["scaling"] = {"temperature": 2.0, "bias": -1.0}
    reseal(trained, raw)
    code, out, _ = run_command("inspect", str(trained))
    assert code == 0
    assert "difference of the logits / 2 -1, through the sigmoid" in " ".join(out.split())


@pytest.mark.parametrize(
    "scaling", [{"temperature": 0.0, "bias": 0.0}, {"temperature": -1.0, "bias": 0.0}, {"temperature": 1.0}]
)
def test_wrong_scaling_in_a_manifest_is_refused(trained, scaling):
    raw = read_manifest(trained)
    raw["decision"] = {"calibration": "calibrated", "real_below": 0.4, "generated_from": 0.6, "scaling": scaling}
    reseal(trained, raw)
    with pytest.raises(Exception, match=r"decision\.scaling"):
        open_bundle(trained)


def test_can_be_calibrated_again(command, trained, labelled, fake, tmp_path):
    assert command(labelled, "--bundle", trained, "--out", "one", "--fpr", "0.05")[0] == 0
    fake.calls = 0
    assert command(labelled, "--bundle", "one", "--out", "two", "--fpr", "0.1", "--report", "r.json")[0] == 0
    one, two = (open_bundle(tmp_path / name).manifest.decision for name in ("one", "two"))
    assert one.scaling == two.scaling  # both fitted on raw logits
    assert two.generated_from < one.generated_from
    before = json.loads((tmp_path / "r.json").read_text())["before"]
    assert before["unsure"]["value"] < 1  # the old rule's own thresholds


def test_stopped_run_goes_on(command, trained, labelled, fake, tmp_path):
    def interrupt(call, output):
        if call == 10:
            raise KeyboardInterrupt

    fake.script = interrupt
    arguments = (labelled, "--bundle", trained, "--out", "new", "--fpr", "0.05")
    code, _, err = command(*arguments)
    assert code == 130
    assert "run the same command again" in err
    assert not (tmp_path / "new").exists()
    fake.script, fake.calls = None, 0
    assert command(*arguments)[0] == 0
    assert fake.calls == 21  # 120 images, 36 of them known, in fours
    assert (tmp_path / "new").exists()


def test_bundles_share_no_file(command, trained, labelled, fake, tmp_path):
    """Weights under two names would change in both bundles at once, and onnx refuses to load them."""
    assert command(labelled, "--bundle", trained, "--out", "new", "--fpr", "0.05")[0] == 0
    assert {path.stat().st_nlink for folder in (trained, tmp_path / "new") for path in folder.iterdir()} == {1}


def test_full_disk_leaves_nothing(command, trained, labelled, fake, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    code, _, err = command(labelled, "--bundle", trained, "--out", "new", "--fpr", "0.05")
    assert code == 2
    assert "cannot write" in err
    assert "no space left on device" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "new.scores", "set"]


def test_existing_places(command, trained, labelled, fake, tmp_path):
    arguments = (labelled, "--bundle", trained, "--fpr", "0.05")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").touch()
    for out, sentence in (
        ("notes", "notes exists and is not a bundle"),
        ("nowhere/new", "does not exist; create it first"),
        (trained, "is the bundle itself, which stays as it is"),
    ):
        code, _, err = command(*arguments, "--out", out, "--force")
        assert (code, sentence in err) == (2, True), err
    assert command(*arguments, "--out", "new")[0] == 0
    first = open_bundle(tmp_path / "new").manifest.id
    code, _, err = command(*arguments, "--out", "new")
    assert code == 2
    assert "pass --force to replace" in err
    assert command(labelled, "--bundle", trained, "--fpr", "0.1", "--out", "new", "--force")[0] == 0
    assert open_bundle(tmp_path / "new").manifest.id != first


def test_untrained_bundle_is_refused(command, labelled, fake, untrained):
    code, _, err = command(labelled, "--bundle", untrained, "--out", "new", "--fpr", "0.05")
    assert code == 2
    assert "has untrained weights, whose scores mean nothing" in err
    assert fake.calls == 0


def test_trained_head_on_random_networks_is_calibrated_with_a_note(command, trained, labelled, fake, tmp_path):
    """The thresholds keep their promise whatever gave the scores, and they are measured; it is said all the same."""
    raw = read_manifest(trained)
    raw["model"]["synthetic"] = True
    reseal(trained, raw)
    code, _, err = command(labelled, "--bundle", trained, "--out", "new", "--fpr", "0.05")
    assert code == 0, err
    assert "note: only the head of this bundle was trained" in err
    assert open_bundle(tmp_path / "new").manifest.model.synthetic


@pytest.mark.parametrize(
    ("change", "arguments", "sentence"),
    [
        (None, (), "a false positive rate of 0.01 needs at least 99 unrelated real images, and there are 30"),
        (None, ("--fpr", "0.7"), "must lie between 0 and 0.5"),
        (None, ("--split", "test"), "no image in split 'test': it has val"),
        ("1-", ("--fpr", "0.05"), "has no readable generated image"),
    ],
)
def test_refused_before_any_image_is_scored(command, trained, labelled, fake, change, arguments, sentence):
    if change is not None:
        labelled.write_text("".join(line for line in labelled.open() if not line.startswith(change)))
    code, _, err = command(labelled, "--bundle", trained, "--out", "new", *arguments)
    assert code == 2
    assert sentence in err
    assert fake.calls == 0
