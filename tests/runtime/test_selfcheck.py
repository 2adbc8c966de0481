"""An engine that compiles is held against the reference's answers before anybody relies on it, and only once."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from lare2_rt import EngineError
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.engines.contract import EngineOptions
from lare2_rt.engines.difference import difference
from lare2_rt.engines.measurements import Record, Records
from lare2_rt.engines.selection import open_engine, select_engine
from lare2_rt.engines.self_check import TOLERANCES, check_engine, reference_key
from lare2_rt.errors import BundleError
from lare2_rt.host import machine
from lare2_rt.pixels.preprocess import preprocess
from lare2_rt.pixels.procedural import procedural_pictures
from tests.fakes.engine import FakeEngine, use_engines


@pytest.fixture(scope="module")
def bundle(embedded):
    bundle = open_bundle(embedded)
    assert bundle.selfcheck is not None
    return bundle


class Answering(FakeEngine):
    """Gives the reference's own answers, changed by ``change(logits, lare)``; counts what it is asked."""

    def __init__(self, bundle, change=None, **options):
        super().__init__(compiled=True, digest="d", **options)
        method, policy = bundle.manifest.method, bundle.manifest.policy
        self.change, self.shape = change, method.latent_shape
        self.answers = {
            preprocess(picture, policy, image_size=method.image_size, crop_size=method.crop_size).image.tobytes(): row
            for picture, row in zip(procedural_pictures(), bundle.selfcheck, strict=True)
        }

    def run(self, image, crop, *, noise=None):
        output = super().run(image, crop)
        rows = np.stack([self.answers[one.tobytes()] for one in image])
        logits, lare = rows[:, :2].copy(), rows[:, 2:].reshape(-1, *self.shape).copy()
        if self.change is not None:
            self.change(logits, lare)
        return replace(output, logits=logits, lare=lare)


def opened(engine, bundle, **options):
    return engine.open(bundle, EngineOptions(threads=1, **options))


class TestFigures:
    def test_the_references_own_answers_pass(self, bundle):
        check = check_engine(opened(Answering(bundle), bundle), bundle)
        assert (check.lare, check.logits, check.probability, check.not_finite) == (0, 0, 0, 0)
        assert check.passed
        assert check.milliseconds > 0

    @pytest.mark.parametrize("factor", [0.9, 1.1])
    def test_lare_at_the_limit(self, bundle, factor):
        limit = TOLERANCES["lare"][0]

        def change(logits, lare):
            lare *= 1 + factor * limit

        check = check_engine(opened(Answering(bundle, change), bundle), bundle)
        assert check.lare == pytest.approx(factor * limit, rel=1e-3)
        assert check.passed == (factor < 1)
        assert f"{check.lare:.1e}" in check.verdict

    @pytest.mark.parametrize("factor", [0.9, 1.1])
    def test_probability_at_the_limit(self, bundle, factor):
        rule = bundle.manifest.rule
        gaps = (bundle.selfcheck[:, 1] - bundle.selfcheck[:, 0]).astype(np.float64)

        def probability(gap):
            return 1 / (1 + np.exp(-(gap / rule.temperature + rule.bias)))

        # The shift of all logits that moves one probability so far: it grows with the shift.
        low, high = 0.0, 10.0
        for _ in range(50):
            middle = (low + high) / 2
            moved = np.abs(probability(gaps + middle) - probability(gaps)).max()
            low, high = (middle, high) if moved < factor * TOLERANCES["probability"][0] else (low, middle)

        def change(logits, lare):
            logits[:, 1] += low

        check = check_engine(opened(Answering(bundle, change), bundle), bundle)
        assert check.probability == pytest.approx(factor * TOLERANCES["probability"][0], rel=2e-2)
        assert check.passed == (factor < 1)
        assert check.logits > check.probability

    def test_the_worst_picture_counts(self, bundle):
        """One of four rows is wrong, whatever row of a batch it comes in."""
        last = next(reversed(Answering(bundle).answers.values()))

        def change(logits, lare):
            lare[np.all(logits == last[:2], axis=1)] *= 1.5

        for batch in (1, 2, 4):
            check = check_engine(opened(Answering(bundle, change), bundle, batch=batch), bundle)
            assert check.lare == pytest.approx(0.5, rel=1e-4)

    def test_rows_that_only_fill_a_batch_do_not_count(self, bundle):
        calls = Answering(bundle)
        check = check_engine(opened(calls, bundle, batch=3), bundle)
        assert check.passed
        assert calls.calls == 3  # one to warm up, two batches for four pictures

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_what_is_not_finite_fails(self, bundle, value):
        def change(logits, lare):
            lare[0, 0, 0, :2] = value

        check = check_engine(opened(Answering(bundle, change), bundle), bundle)
        assert check.not_finite == 8
        assert not check.passed
        assert check.verdict == "it gives 8 values that are not finite"

    def test_answers_to_other_pictures(self, bundle):
        for selfcheck in (None, bundle.selfcheck[:3]):
            with pytest.raises(BundleError, match="no self-check data that this version can use; build the bundle"):
                check_engine(opened(Answering(bundle), bundle), replace(bundle, selfcheck=selfcheck))


class TestOnce:
    """Which files were checked, on which machine, against what."""

    @pytest.fixture
    def options(self, tmp_path):
        lines = []
        return EngineOptions(threads=1, cache=tmp_path / "cache", notify=lines.append), lines

    @pytest.fixture
    def wrong(self, bundle):
        def change(logits, lare):
            lare *= 1.5

        return Answering(bundle, change)

    def open(self, engine, bundle, options, monkeypatch, name="fake"):
        use_engines(monkeypatch, engine)
        return open_engine(name, bundle, options)

    def test_checked_at_first_use_only(self, bundle, options, monkeypatch):
        options, lines = options
        engine = Answering(bundle)
        for _ in range(3):
            self.open(engine, bundle, options, monkeypatch)
        assert lines == ["checking fake against the reference, once"]
        assert engine.calls == 5

    def test_a_failure_is_refused_with_its_figure_and_remembered(self, bundle, options, wrong, monkeypatch):
        options, _ = options
        expected = r"fake.* failed its self-check on this machine: its LaRE is 5.0e-01 .* 1e-03 .* are allowed"
        with pytest.raises(EngineError, match=expected):
            self.open(wrong, bundle, options, monkeypatch)
        assert wrong.closed == 1
        assert wrong.calls == 5
        for name in ("fake", "auto"):
            with pytest.raises(EngineError, match=expected):
                self.open(wrong, bundle, options, monkeypatch, name)
        assert wrong.calls == 5  # not even opened again
        wrong.change = None
        Records(options.cache).clear("fake")
        self.open(wrong, bundle, options, monkeypatch)

    def test_a_failure_in_auto_leads_to_the_next(self, bundle, options, wrong, monkeypatch):
        options, lines = options
        other = FakeEngine(name="other")
        use_engines(monkeypatch, wrong, other)
        running, rejected = open_engine("auto", bundle, options)
        assert running is other
        assert [(r.name, "self-check" in r.reason) for r in rejected] == [("fake", True)]
        assert lines[-1].startswith("fake is not used: fake is refused: it failed its self-check")

    @pytest.mark.parametrize("what", ["files", "machine", "reference", "record", "schema"])
    def test_checked_again_when_it_may_differ(self, bundle, options, monkeypatch, what):
        options, lines = options
        engine = Answering(bundle)
        self.open(engine, bundle, options, monkeypatch)
        (path,) = Records(options.cache).folder.iterdir()
        if what == "files":
            engine.digest = "e"
        elif what == "machine":
            monkeypatch.setattr("lare2_rt.engines.measurements.cpu_facts", lambda: {"cpu": "another"})
        elif what == "reference":
            bundle = replace(bundle, selfcheck=bundle.selfcheck + np.float32(1e-9))
        elif what == "record":
            path.write_text("{")
        else:
            path.write_text(path.read_text().replace("record/1", "record/2"))
        self.open(engine, bundle, options, monkeypatch)
        assert len(lines) == 2

    def test_nothing_to_check_with(self, bundle, options, wrong, monkeypatch):
        """A name may be used, with a note; nobody else takes such an engine."""
        options, lines = options
        bare = replace(bundle, selfcheck=None)
        self.open(wrong, bare, options, monkeypatch)
        (line,) = lines
        assert line.startswith("fake cannot be checked: this bundle has no answers of the reference")
        with pytest.raises(EngineError, match="no usable engine: fake: the bundle has no answers of the reference"):
            self.open(wrong, bare, options, monkeypatch, "auto")

    def test_engines_that_do_not_compile_are_not_checked(self, bundle, options, monkeypatch):
        options, lines = options
        engine = FakeEngine()
        self.open(engine, bundle, options, monkeypatch)
        assert (engine.calls, lines) == (0, [])

    def test_a_cache_that_takes_nothing(self, bundle, options, wrong, monkeypatch):
        """The check is made each time, and still refuses."""
        options, lines = options
        options.cache.write_text("a file where a folder should be")
        for _ in range(2):
            with pytest.raises(EngineError, match="failed its self-check"):
                self.open(wrong, bundle, options, monkeypatch)
        assert len(lines) == 2


def test_records_are_plain_json(bundle, tmp_path):
    check = check_engine(opened(Answering(bundle), bundle), bundle)
    record = Record("fake", "0" * 64, machine.cpu_facts(), reference_key(bundle), "d", check)
    records = Records(tmp_path)
    records.write(record)
    (path,) = (tmp_path / "checks").iterdir()
    assert path.name == "0" * 64 + ".json"
    assert json.loads(path.read_text()) == asdict(record)
    assert records.read("0" * 64, reference_key(bundle)) == record
    assert records.read("1" * 64, reference_key(bundle)) is None


def test_the_answers_in_the_bundle_are_those_of_the_reference(bundle):
    """Of these very pictures and policies: the engine that builds measure gives the same to six digits."""
    running, _ = open_engine("onnxruntime", bundle, EngineOptions(threads=1, batch=1))
    for picture, row in zip(procedural_pictures(), bundle.selfcheck, strict=True):
        pixels = preprocess(picture, bundle.manifest.policy)
        output = running.run(pixels.image[None], pixels.crop[None])
        assert difference(output.lare[0].ravel(), row[2:]).relative_l2 < 1e-5
        assert difference(output.logits[0], row[:2]).relative_l2 < 4e-5
    running.close()


def test_selection_reads_the_record(bundle, tmp_path, monkeypatch):
    """``select_engine`` alone, as others use it, knows of a failure too."""
    engine = Answering(bundle)
    use_engines(monkeypatch, engine)
    options = EngineOptions(threads=1, cache=tmp_path)
    assert select_engine("fake", bundle, options) == (engine, ())
    failed = replace(check_engine(opened(engine, bundle), bundle), passed=False, lare=0.5)
    info = engine.describe(bundle, options)
    Records(tmp_path).write(
        Record("fake", info.build_key, machine.cpu_facts(), reference_key(bundle), "d", check=failed)
    )
    with pytest.raises(EngineError, match="failed its self-check"):
        select_engine("fake", bundle, options)
    assert select_engine("fake", bundle, replace(options, threads=2)) == (engine, ())
