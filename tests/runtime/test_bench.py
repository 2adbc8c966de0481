"""``lare2-rt bench``: true figures of the engines on this machine, kept where ``auto`` looks."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lare2_rt import EngineError, Lare2Error
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.cli.bench import Options, run as bench_command
from lare2_rt.engines import registry
from lare2_rt.engines.cache.cache import CompiledCache
from lare2_rt.engines.contract import EngineOptions
from lare2_rt.engines.measurements import Records, Speed
from lare2_rt.engines.openvino.engine import OpenVinoEngine
from lare2_rt.engines.registry import ENGINES
from lare2_rt.engines.selection import load_engine, select_engine
from lare2_rt.engines.self_check import SelfCheck, reference_key
from lare2_rt.tools.bench import measure as bench, resident as bench_resident
from lare2_rt.tools.bench.measure import BenchOptions, measure
from lare2_rt.tools.bench.resident import ResidentEngine
from lare2_rt.tools.bench.worker import Assignment
from tests.fakes.engine import need_engine
from tests.helpers.processes import environment

pytestmark = pytest.mark.usefixtures("every_core")

NAMES = ["onnxruntime", "openvino", "winograd"]  # those of a CPU
PACKAGES = ("onnxruntime", "openvino", "onnx")


@pytest.fixture(scope="module")
def bundle(embedded):
    return open_bundle(embedded)


@pytest.fixture
def run(bundle, tmp_path):
    """Measure, with records of one's own, or ``auto`` would be another in the tests that follow.

    Returns rows by name, the order of play, the lines and the steps.
    """

    def run(**options):
        lines, steps = [], []
        rows, mode = measure(
            bundle,
            BenchOptions(**{"threads": 2, "rounds": 2, "cache": tmp_path, **options}),
            notify=lines.append,
            progress=lambda done, total: steps.append((done, total)),
        )
        return {row.name: row for row in rows}, mode, lines, steps

    return run


@pytest.fixture
def task(embedded):
    return Assignment(str(embedded), "onnxruntime", threads=1, batch=1, cache=None, image=None)


def command(**changes):
    """The command without options but for these."""
    return Options(**{"threads": 2, **changes})


@pytest.mark.slow
class TestCommand:
    @pytest.fixture(scope="class")
    @classmethod
    def report(cls, embedded, tmp_path_factory):
        """One run with everything: JSON in a file, on a picture and without torch.

        The graphs of ``winograd`` have to be made on the way. Records of the session's own cache would make ``auto``
        another in the tests that follow.
        """
        for name in PACKAGES:
            need_engine(name)
        folder = tmp_path_factory.mktemp("bench")
        options = EngineOptions(threads=2, batch=1, cache=tmp_path_factory.getbasetemp() / "cache")
        load_engine(OpenVinoEngine(), open_bundle(embedded), options).close()
        shutil.copytree(options.cache / "compiled", folder / "cache/compiled")
        CompiledCache(folder / "cache").clear("winograd")
        (folder / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None\n")
        picture = Path(__file__).parents[1] / "photos/rocket.jpg"
        command = [
            "bench",
            "--bundle",
            embedded,
            "--rounds",
            "2",
            "--threads",
            "2",
            "--image",
            picture,
            "--out",
            "r.json",
        ]
        command += [word for name in NAMES for word in ("--engine", name)]
        run = subprocess.run(
            [sys.executable, "-m", "lare2_rt", *map(str, command)],
            cwd=folder,
            env=environment(folder, LARE2_CACHE=folder / "cache"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout == ""
        return json.loads((folder / "r.json").read_text()), run.stderr, folder

    def test_every_engine_has_its_figures(self, report):
        document, _, _ = report
        assert document["schema"] == "lare2-rt/bench/1"
        assert document["settings"]["threads"] == 2
        assert [engine["name"] for engine in document["engines"]] == NAMES
        for engine in document["engines"]:
            assert engine["error"] is None
            assert engine["rounds"] == 2
            latency = engine["latency_ms"]
            assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
            assert engine["images_per_second"] == pytest.approx(1e3 / latency["p50"])
            assert engine["load_s"] > 0
            assert 5e7 < engine["peak_memory"] < 3e9
            assert engine["check"]["passed"]
            # With room for other processors.
            assert engine["check"]["lare"] < 5e-6
            assert engine["check"]["probability"] < 2e-5
            assert engine["check"]["logits"] < 4e-4
            assert (engine["compiled"] is None) == (engine["name"] == "onnxruntime")

    def test_auto_takes_the_fastest(self, report, bundle):
        document, stderr, folder = report
        fastest = min(document["engines"], key=lambda engine: engine["latency_ms"]["p50"])["name"]
        chosen, rejected = select_engine("auto", bundle, EngineOptions(threads=2, cache=folder / "cache"))
        assert chosen.name == fastest
        slower = {r.name for r in rejected if r.reason.startswith("slower here: ")}
        assert slower == set(NAMES) - {fastest}
        assert f"'auto' takes {fastest} for this bundle with 2 threads at batch 1" in stderr

    def test_standard_error_tells_what_happens(self, report):
        _, stderr, _ = report
        lines = stderr.splitlines()
        assert all(line.startswith("lare2-rt: ") for line in lines)
        for name in NAMES:
            assert f"lare2-rt: loading {name}" in lines
        assert [line.split()[7] for line in lines if "compiling" in line] == ["winograd"] * 2
        assert "lare2-rt: 2 calls of each engine, in turns" in lines

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"engine": ["cuda"]}, "there is no engine 'cuda'; choose one of"),
            (
                {"engine": ["winograd"], "batch": 4},
                "winograd cannot be used: it gives an image other bits in other rows",
            ),
            ({"batch": 3}, "no usable engine: onnxruntime: "),
            ({"image": "missing.jpg"}, "no such file"),
            ({"bundle": "nowhere"}, "nowhere is not a bundle folder"),
            ({"out": "r.weird"}, "cannot tell the format of r.weird"),
            ({"out": "no/such.json"}, "does not exist"),
        ],
    )
    def test_usage_errors_come_first(self, changes, words, monkeypatch):
        monkeypatch.setattr(bench, "ResidentEngine", None)  # no engine is loaded for them
        with pytest.raises(Lare2Error, match=re.escape(words)):
            bench_command(command(**changes))

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_being_stopped_leaves_no_process(self, embedded, tmp_path, number):
        command = [
            "bench",
            "--bundle",
            str(embedded),
            "--engine",
            "onnxruntime",
            "--rounds",
            "100000",
            "--threads",
            "1",
        ]
        process = subprocess.Popen(
            [sys.executable, "-m", "lare2_rt", *command],
            stderr=subprocess.PIPE,
            env=environment(LARE2_CACHE=tmp_path),
            text=True,
        )
        while "loading onnxruntime" not in process.stderr.readline():
            pass
        children = []
        while not children:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            time.sleep(0.01)
        process.send_signal(number)
        try:
            _, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
        assert process.returncode == 128 + number
        assert "Traceback" not in stderr
        # The one who adopts them may take a moment to see that they have ended.
        deadline = time.monotonic() + 10
        while any(Path("/proc", child).exists() for child in children):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not (tmp_path / "checks").exists()


class Scripted:
    """Stands for the process of an engine: instant, and counted."""

    open, most, played = [], 0, []
    warm, peak, load, dies = 1.0, 1, 1.0, None

    def __init__(self, task, notify):
        engine = registry.engine_named(task.engine)
        options = EngineOptions(threads=task.threads, batch=task.batch or 1)
        self.name, self.info = task.engine, engine.describe(open_bundle(task.bundle), options)
        Scripted.open.append(self)
        Scripted.most = max(Scripted.most, len(Scripted.open))

    def round(self):
        if self.name == self.dies:
            raise EngineError("its process was killed", remedy="close other programs")
        Scripted.played.append(self.name)
        return 1.0 if self.name == "onnxruntime" else 0.5

    def check(self):
        return SelfCheck(1e-5, 1e-5, 1e-6, 0, 1.0, passed=True)

    def measure_peak(self):
        return 1

    def close(self):
        if self in Scripted.open:
            Scripted.open.remove(self)


@pytest.fixture
def scripted(monkeypatch):
    for name in PACKAGES:
        need_engine(name)
    monkeypatch.setattr(bench, "ResidentEngine", Scripted)
    monkeypatch.setattr(registry, "ENGINES", tuple(engine for engine in ENGINES if engine.name in NAMES))
    for name, value in {"open": [], "most": 0, "played": []}.items():
        monkeypatch.setattr(Scripted, name, value)
    yield Scripted
    assert Scripted.open == []


class TestTable:
    def test_all_figures(self, scripted, monkeypatch, tmp_path, capsys, embedded):
        monkeypatch.setenv("LARE2_CACHE", str(tmp_path))
        assert bench_command(command(bundle=str(embedded), rounds=3)) == 0
        out, err = capsys.readouterr()
        rows = {line.split()[0]: line for line in out.splitlines() if line.split()[:1] and line.split()[0] in NAMES}
        assert list(rows) == NAMES
        figures = ["1", "2", "1.0", "1.0", "1.0", "1000.00", "1.00", "0", "1.0e-05", "1.0e-06", "passed"]
        assert rows["onnxruntime"].split()[2:] == figures
        assert "3 calls of each engine, in turns" in err
        assert "'auto' takes openvino" in err

    def test_bad_news(self, scripted, monkeypatch, tmp_path, capsys, embedded):
        """Exit code 1, a word in the table and a sentence on standard error."""
        wrong = SelfCheck(0.5, 0.1, 0.02, 3, 1.0, passed=False)
        monkeypatch.setenv("LARE2_CACHE", str(tmp_path))
        monkeypatch.setattr(Scripted, "check", lambda resident: wrong if resident.name == "winograd" else None)
        monkeypatch.setattr(Scripted, "dies", "openvino")
        assert bench_command(command(bundle=str(embedded), rounds=1, out=str(tmp_path / "r.txt"))) == 1
        rows = {line.split()[0]: line for line in (tmp_path / "r.txt").read_text().splitlines() if line.strip()}
        assert rows["onnxruntime"].endswith("none in the bundle")
        assert rows["openvino"].split() == ["openvino", "failed"]
        assert rows["winograd"].endswith("FAILED")
        err = capsys.readouterr().err
        assert "lare2-rt: openvino failed: its process was killed" in err
        assert (
            "lare2-rt: winograd is not faithful here and will not be used: it gives 3 values that are not finite" in err
        )

    def test_json_has_no_infinity(self, scripted, monkeypatch, tmp_path, capsys, embedded):
        infinite = float("inf")
        wrong = SelfCheck(infinite, infinite, infinite, 3, 1.0, passed=False)
        monkeypatch.setenv("LARE2_CACHE", str(tmp_path))
        monkeypatch.setattr(Scripted, "check", lambda resident: wrong)
        assert bench_command(command(bundle=str(embedded), rounds=1, format="json", engine=["winograd"])) == 1
        document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
        assert document["engines"][0]["check"]["lare"] is None


class TestOrder:
    def test_one_after_another_where_memory_is_short(self, run, scripted, monkeypatch):
        """Never two at a time then, and each as often as it was asked for."""
        monkeypatch.setattr(bench, "available_memory", lambda: 1)  # less than twice the first one's peak
        rows, mode, lines, steps = run()
        assert mode == "one after another"
        assert lines.count("memory does not hold all engines at once, so they are measured one after another") == 1
        assert scripted.most == 1
        assert scripted.played == [name for name in NAMES for _ in range(2)]
        assert [len(row.latency) for row in rows.values()] == [2, 2, 2]
        assert steps == [(1, 2), (2, 2)] * 3

    @pytest.mark.parametrize("memory", [None, 2])
    def test_memory(self, run, scripted, monkeypatch, memory):
        """Twice the largest peak is enough; what is not known is not."""
        monkeypatch.setattr(bench, "available_memory", lambda: memory)
        _, mode, *_ = run()
        assert mode == ("in turns" if memory else "one after another")

    def test_who_begins_changes(self, run, scripted):
        _, mode, _, steps = run(rounds=3, engines=tuple(NAMES[:2]))
        a, b = NAMES[:2]
        assert scripted.played == [a, b, b, a, a, b]
        assert (mode, steps) == ("in turns", [(1, 3), (2, 3), (3, 3)])

    @pytest.mark.parametrize(("milliseconds", "rounds"), [(1.0, 200), (1000.0, 13), (1e6, 5)])
    def test_forty_seconds(self, run, scripted, monkeypatch, milliseconds, rounds):
        monkeypatch.setattr(Scripted, "warm", milliseconds)
        rows, *_ = run(rounds=None)
        assert [len(row.latency) for row in rows.values()] == [rounds] * 3


class TestFailures:
    def test_a_process_that_dies(self, task):
        resident = ResidentEngine(task, lambda line: None)
        assert resident.round() > 0
        resident._process.child.process.kill()
        with pytest.raises(EngineError) as caught:
            resident.round()
        assert "for want of memory" in caught.value.problem
        assert caught.value.remedy == "close other programs"
        resident.close()

    def test_a_process_that_cannot_begin(self, task, monkeypatch):
        monkeypatch.setattr(bench_resident.worker, "__name__", "no_such_module")
        with pytest.raises(EngineError) as caught:
            ResidentEngine(task, lambda line: None)
        assert "ended with code 1: ModuleNotFoundError: No module named 'no_such_module'" in caught.value.problem
        assert caught.value.remedy == "report it"

    def test_what_the_engine_says_arrives(self, task, bundle_copy):
        (bundle_copy / "noise.npy").unlink()
        with pytest.raises(EngineError, match=r"noise.npy is missing") as caught:
            ResidentEngine(replace(task, bundle=str(bundle_copy)), lambda line: None)
        assert "get or build the bundle again" in caught.value.remedy

    def test_one_that_fails_does_not_stop_the_others(self, run, scripted, monkeypatch, tmp_path, bundle):
        """Its row says why, and it has no speed any more for which it would be chosen."""
        options = EngineOptions(threads=2, cache=tmp_path)
        rows, *_ = run()
        key = rows["winograd"].info.build_key
        assert Records(tmp_path).read(key, reference_key(bundle)).speed == Speed(0.5, 0.5, 0.5, 2)
        assert select_engine("auto", bundle, options)[0].name == "openvino"
        monkeypatch.setattr(Scripted, "dies", "openvino")
        rows, *_ = run()
        assert rows["openvino"].problem == "its process was killed; close other programs"
        assert [row.failed for row in rows.values()] == [False, True, False]
        assert [len(row.latency) for row in rows.values()] == [2, 0, 2]
        assert select_engine("auto", bundle, options)[0].name == "winograd"

    def test_one_that_is_not_faithful(self, run, scripted, monkeypatch, tmp_path, bundle):
        wrong = SelfCheck(0.5, 0.1, 0.02, 0, 1.0, passed=False)
        monkeypatch.setattr(Scripted, "check", lambda resident: wrong if resident.name == "winograd" else None)
        rows, *_ = run()
        assert [row.failed for row in rows.values()] == [False, False, True]
        with pytest.raises(EngineError, match=r"failed its self-check on this machine: its LaRE is 5.0e-01"):
            select_engine("winograd", bundle, EngineOptions(threads=2, cache=tmp_path))

    def test_what_cannot_be_used_is_no_failure(self, run, scripted):
        rows, *_ = run(batch=4)
        assert "batch 1 only, not 4" in rows["winograd"].problem
        assert [row.failed for row in rows.values()] == [False] * 3
        assert rows["onnxruntime"].info.batch == 4

    def test_times_are_kept_for_one_image(self, run, scripted, tmp_path, bundle):
        rows, *_ = run(batch=4)
        record = Records(tmp_path).read(rows["onnxruntime"].info.build_key, reference_key(bundle))
        assert record.speed == Speed(0.25, 0.25, 0.25, 2)
