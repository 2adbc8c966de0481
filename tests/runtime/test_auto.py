"""``auto``: the fastest engine by what was measured here, and a reason for every other."""

import subprocess
import sys
from dataclasses import replace

import pytest

from lare2_rt import Detector, EngineError
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.engines.contract import EngineOptions
from lare2_rt.engines.measurements import Record, Records, Speed
from lare2_rt.engines.registry import ENGINES, EngineEntry
from lare2_rt.engines.selection import open_engine, select_engine
from lare2_rt.engines.self_check import SelfCheck, reference_key
from lare2_rt.host import machine
from tests.fakes.engine import FakeEngine, need_engine, use_engines

pytestmark = pytest.mark.usefixtures("every_core")

PASSED = SelfCheck(1e-5, 1e-5, 1e-6, 0, 10.0, passed=True)
FAILED = SelfCheck(3e-2, 0.2, 0.04, 0, 10.0, passed=False)
UNMEASURED = "not measured here yet: run 'lare2-rt bench'"


@pytest.fixture(scope="module")
def bundle(embedded):
    return open_bundle(embedded)


@pytest.fixture
def options(tmp_path):
    return EngineOptions(threads=2, cache=tmp_path)


@pytest.fixture
def three(monkeypatch):
    """Engines in the order and of the kinds of the real ones."""
    found = (
        FakeEngine(name="plain"),
        FakeEngine(name="stable", compiled=True, digest="s"),
        FakeEngine(name="single", compiled=True, digest="t", position_stable=False),
    )
    use_engines(monkeypatch, *found)
    return found


@pytest.fixture
def measured(bundle, options):
    """Keep a record: time per image, and the outcome of the check."""

    def write(engine, p50, check=PASSED, *, batch=None, options=options, facts=None):
        info = engine.describe(bundle, replace(options, batch=batch))
        speed = None if p50 is None else Speed(p50, p50, p50, 5)
        facts = facts or machine.cpu_facts()
        Records(options.cache).write(
            Record(engine.name, info.build_key, facts, reference_key(bundle), engine.digest, check, speed)
        )

    return write


def on_a_gpu(engine):
    return EngineEntry(engine.name, lambda: engine, "cuda", "gpu", (), ())


def chosen(bundle, options):
    engine, rejected = select_engine("auto", bundle, options)
    return engine.name, {r.name: r.reason for r in rejected}


def test_the_order_without_measurements():
    """The engine that builds measure, then those of a CPU that compile, then the rest."""
    facts = [(engine.name, engine.compiled, engine.position_stable) for engine in (entry.load() for entry in ENGINES)]
    assert facts[:3] == [("onnxruntime", False, True), ("openvino", True, True), ("winograd", True, False)]


def test_without_measurements_the_first_that_can_be_used(bundle, options, three):
    assert chosen(bundle, options) == ("plain", {})
    three[0].reason = "it is not installed"
    assert chosen(bundle, options) == ("stable", {"plain": str(three[0].refusal)})
    three[1].reason = "it is broken"
    refusals = {"plain": str(three[0].refusal), "stable": str(three[1].refusal)}
    assert chosen(bundle, options) == ("single", refusals)


def test_the_fastest_that_passed(bundle, options, three, measured):
    for engine, p50 in zip(three, (30.0, 10.0, 20.0), strict=True):
        measured(engine, p50)
    name, reasons = chosen(bundle, options)
    assert name == "stable"
    assert reasons == {
        "plain": "slower here: 30 ms an image, stable takes 10",
        "single": "slower here: 20 ms an image, stable takes 10",
    }
    measured(three[1], 10.0, FAILED)
    name, reasons = chosen(bundle, options)
    assert name == "single"
    assert "failed its self-check on this machine: its LaRE is 3.0e-02" in reasons["stable"]


def test_what_was_measured_alone_is_not_taken_for_that(bundle, options, three, measured):
    """The first may be faster; with its time known, the faster of the two is taken."""
    measured(three[2], 20.0)
    assert chosen(bundle, options) == ("plain", {})
    measured(three[0], 30.0)
    name, reasons = chosen(bundle, options)
    assert name == "single"
    assert reasons == {"plain": "slower here: 30 ms an image, single takes 20", "stable": UNMEASURED}


def test_a_gpu_that_was_measured_alone_is_taken(bundle, options, three, measured, monkeypatch):
    """Building plans times them, and nothing else; what was measured on the CPU counts no more for it."""
    use_engines(monkeypatch, *three[:2], on_a_gpu(three[2]))
    measured(three[1], 10.0)
    assert chosen(bundle, options) == ("plain", {})
    measured(three[2], 20.0)
    assert chosen(bundle, options) == ("single", {"plain": UNMEASURED, "stable": UNMEASURED})
    measured(three[0], 30.0)
    assert chosen(bundle, options)[0] == "stable"


def test_a_check_alone_is_no_measurement(bundle, options, three, measured):
    """Having used an engine by name once does not make ``auto`` take it."""
    measured(three[1], None)
    assert chosen(bundle, options) == ("plain", {})


def test_a_measured_engine_that_cannot_be_used_any_more(bundle, options, three, measured):
    measured(three[0], 30.0)
    measured(three[1], 10.0)
    three[1].reason = "it is not installed"
    assert chosen(bundle, options) == ("plain", {"stable": str(three[1].refusal), "single": UNMEASURED})


def test_measurements_count_for_their_threads_batch_and_machine(bundle, options, three, measured):
    measured(three[0], 30.0)
    measured(three[1], 10.0)
    assert chosen(bundle, options)[0] == "stable"
    assert chosen(bundle, replace(options, threads=1)) == ("plain", {})
    assert chosen(bundle, replace(options, batch=4)) == ("plain", {})
    measured(three[0], 30.0, batch=4)
    measured(three[1], 10.0, batch=4)
    name, reasons = chosen(bundle, replace(options, batch=4))
    assert name == "stable"
    assert "batch 1 only, not 4" in reasons["single"]
    measured(three[1], 10.0, facts={"cpu": "another"})
    assert chosen(bundle, options) == ("plain", {"stable": UNMEASURED, "single": UNMEASURED})


def test_nothing_to_check_with(bundle, options, three, measured):
    for engine, p50 in zip(three, (30.0, 10.0, 20.0), strict=True):
        measured(engine, p50)
    bare = replace(bundle, selfcheck=None)
    assert chosen(bare, options)[0] == "plain"
    three[0].reason = "it is not installed"
    with pytest.raises(EngineError) as told:
        select_engine("auto", bare, options)
    assert told.value.problem.startswith("no usable engine: plain: it is not installed")
    assert all(f"; {engine.name}: the bundle has no answers" in told.value.problem for engine in three[1:])
    assert select_engine("single", bare, options)[0] is three[2]


def test_what_cannot_be_compiled_leads_to_the_next(bundle, options, three, measured, monkeypatch):
    measured(three[0], 30.0)
    measured(three[1], 10.0)

    def broken(bundle, options):
        raise EngineError("the disk is full", remedy="free some space")

    monkeypatch.setattr(three[1], "open", broken)
    lines = []
    running, rejected = open_engine("auto", bundle, replace(options, notify=lines.append))
    assert running is three[0]
    assert {r.name: r.reason for r in rejected} == {"stable": "the disk is full; free some space", "single": UNMEASURED}
    assert lines == ["stable is not used: the disk is full; free some space"]
    with pytest.raises(EngineError, match=r"^the disk is full; free"):
        open_engine("stable", bundle, options)


def test_what_need_not_be_compiled_must_open(bundle, options, three, monkeypatch):
    """A broken installation of the first engine is told, not worked around."""

    def broken(bundle, options):
        raise EngineError("it cannot be imported", remedy="install it again")

    monkeypatch.setattr(three[0], "open", broken)
    with pytest.raises(EngineError, match=r"^it cannot be imported"):
        open_engine("auto", bundle, options)


def test_without_onnxruntime_the_next_is_compiled_and_checked(embedded, rocket):
    need_engine("openvino")
    code = (
        "import sys; from lare2_rt.engines import registry; installed = registry.installed_version\n"
        "sys.modules['onnxruntime'] = None\n"
        "registry.installed_version = lambda name: None if name.startswith('onnxruntime') else installed(name)\n"
        "from lare2_rt import Detector\n"
        "lines = []\n"
        "with Detector.load(sys.argv[1], threads=2, notify=lines.append) as detector:\n"
        "    print(detector.detect(sys.argv[2]).provenance.engine, [r.name for r in detector.info.rejected])\n"
        "print({line.split()[0] for line in lines} <= {'compiling', 'checking'})"
    )
    run = subprocess.run([sys.executable, "-c", code, embedded, rocket], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["openvino ['onnxruntime']", "True"]


def test_verbose_callers_are_told(embedded, monkeypatch, three):
    three[0].reason = "it is not installed"
    three[1].compiled = False
    with Detector.load(embedded) as detector:
        assert detector.info.provenance.engine == "stable"
        assert [(r.name, r.reason) for r in detector.info.rejected] == [("plain", str(three[0].refusal))]
