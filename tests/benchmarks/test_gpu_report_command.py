"""The command of the GPU report: what it keeps, what it refuses, and what its processes leave behind."""

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks import gpu_reference
from benchmarks.common.resident import FailedError, Resident
from benchmarks.gpu_report import __main__ as gpu_report
from benchmarks.gpu_report.cases import ROWS, cases_of
from benchmarks.gpu_report.store import page
from benchmarks.gpu_report.worker import in_process
from lare2_rt.bundle.manifest import COMPONENTS
from lare2_rt.errors import UsageError
from lare2_rt.host.console import Terminated
from tests.benchmarks.test_gpu_report import GPU, OPINION, bundle, case  # noqa: F401 - a fixture among them
from tests.conftest import ROOT
from tests.helpers.processes import environment


class FakeProcesses:
    """Stands in for ``in_process``: cases pass at once unless their option is to be refused or to fail."""

    def __init__(self):
        self.asked, self.refuse, self.fail, self.interrupt_at = [], set(), set(), None

    def __call__(self, one, *, limit):
        self.asked.append((one.row, one.batch))
        if one.row == self.interrupt_at:
            raise KeyboardInterrupt
        if one.row == gpu_report.POLYGRAPHY:
            return dict(OPINION)
        if one.option in self.refuse:
            return {"status": "not usable", "reason": "it is not installed; install it"}
        if one.option in self.fail:
            return {"status": "failed", "reason": "it crashed"}
        figures = case(one.row, one.batch)
        return {name: figures[name] for name in list(figures)[5:]}


class TestCommand:
    @pytest.fixture
    def processes(self, monkeypatch):
        processes = FakeProcesses()
        monkeypatch.setattr(gpu_report, "in_process", processes)
        return processes

    def options(self, bundle, tmp_path, **changes):  # noqa: F811
        given = gpu_report.parser().parse_args(
            [
                "--bundle",
                str(bundle.path),
                "--work",
                str(tmp_path / "w"),
                "--out",
                str(tmp_path / "r"),
                "--threads",
                "1",
            ]
        )
        return argparse.Namespace(**{**vars(given), **changes})

    @pytest.mark.slow
    def test_without_a_gpu(self, bundle, tmp_path):  # noqa: F811
        """As users start it: CPU rows, Polygraphy, a sentence, exit code 2, and both files."""
        command = [sys.executable, "-m", "benchmarks.gpu_report", "--bundle", bundle.path, "--out", tmp_path / "r"]
        command += ["--work", tmp_path / "w", "--seconds", "0.1", "--threads", "1"]
        command += ["--row", "CPU: ONNX Runtime fp32", "--row", "TensorRT, graph"]
        run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment(ROOT))
        if "there is no usable NVIDIA GPU here" not in run.stderr:
            pytest.skip("there is a GPU")
        assert run.returncode == 2, run.stderr
        assert run.stderr.splitlines()[-1].startswith("gpu_report: Nothing is proven about GPUs: there is no usable")
        report = json.loads((tmp_path / "r.json").read_text())
        assert [(c["row"], c["status"]) for c in report["cases"]] == [
            ("TensorRT, graph", "not usable"),
            ("CPU: ONNX Runtime fp32", "measured"),
        ]
        measured = report["cases"][1]
        assert measured["passed"]
        assert measured["parity"]["relative_l2"]["lare"] < 1e-4
        assert measured["two_images"]["same_bits_again"]
        assert report["polygraphy"]["ran_on"] == "ONNX Runtime on the CPU"
        assert report["polygraphy"]["passed"]
        assert set(report["polygraphy"]["components"]) == set(COMPONENTS)
        assert (tmp_path / "r.md").read_text() == page(report)
        assert "Nothing is proven about GPUs" in run.stdout

    def test_a_second_run_measures_what_is_missing(self, bundle, tmp_path, processes):  # noqa: F811
        given = self.options(bundle, tmp_path, row=["TensorRT, graph", "ONNX Runtime CUDA"])
        processes.refuse = {"onnxruntime-cuda"}
        first = gpu_report.run(given, gpu=GPU, no_gpu=None)
        assert first["conclusion"]["exit_code"] == 0
        assert processes.asked == [("ONNX Runtime CUDA", 1), ("TensorRT, graph", 1), (gpu_report.POLYGRAPHY, 1)]
        processes.asked.clear()
        second = gpu_report.run(given, gpu=GPU, no_gpu=None)
        assert processes.asked == [("ONNX Runtime CUDA", 1), (gpu_report.POLYGRAPHY, 1)]
        assert second["cases"] == first["cases"]
        processes.asked.clear()
        given.fresh = True
        gpu_report.run(given, gpu=GPU, no_gpu=None)
        assert ("TensorRT, graph", 1) in processes.asked

    @pytest.mark.parametrize("change", [{"row": ["TensorRT"]}, {"interrupted": True}])
    def test_what_was_measured_stays(self, bundle, tmp_path, processes, change):  # noqa: F811
        """A start of other rows only, and one that is ended halfway, take nothing from the report."""
        rows = ["TensorRT, graph", "CPU: ONNX Runtime fp32"]
        first = gpu_report.run(self.options(bundle, tmp_path, row=rows), gpu=GPU, no_gpu=None)
        if "row" in change:
            second = gpu_report.run(self.options(bundle, tmp_path, row=["TensorRT"]), gpu=GPU, no_gpu=None)
            assert [one["row"] for one in second["cases"]] == ["TensorRT", *rows]  # in the order of the rows
            kept = [one for one in second["cases"] if one["row"] in rows]
        else:
            processes.interrupt_at = "ONNX Runtime CUDA, graph"
            with pytest.raises(KeyboardInterrupt):
                gpu_report.run(self.options(bundle, tmp_path), gpu=GPU, no_gpu=None)
            found = json.loads((tmp_path / "r.json").read_text())
            assert {one["row"] for one in found["cases"]} >= {"PyTorch eager fp32", "ONNX Runtime CUDA", *rows}
            kept = [one for one in found["cases"] if one["row"] in rows]
            assert found["polygraphy"] == OPINION
        assert kept == first["cases"]

    @pytest.mark.parametrize("change", [{"threads": 2}, {"seconds": 1.0}, {"reference": "seeded-mini.npz"}])
    def test_other_settings_are_measured_again(self, bundle, tmp_path, processes, change):  # noqa: F811
        rows = {"row": ["TensorRT, graph"]}
        gpu_report.run(self.options(bundle, tmp_path, **rows), gpu=GPU, no_gpu=None)
        processes.asked.clear()
        if "reference" in change:
            change = {"reference": gpu_reference.FOLDER / change["reference"]}
        second = gpu_report.run(self.options(bundle, tmp_path, **rows, **change), gpu=GPU, no_gpu=None)
        assert ("TensorRT, graph", 1) in processes.asked
        (only,) = second["cases"]
        ((name, value),) = change.items()
        assert str(only[name]).split()[0] == (value.name if name == "reference" else str(value))
        assert str(tmp_path) not in json.dumps(second)  # it is sent to others

    def test_what_cannot_run_here_replaces_no_finding(self, bundle, tmp_path, processes):  # noqa: F811
        """An environment without TensorRT cannot take back that TensorRT failed in another."""
        given = self.options(bundle, tmp_path, row=["TensorRT, graph"])
        processes.fail = {"tensorrt"}
        assert gpu_report.run(given, gpu=GPU, no_gpu=None)["conclusion"]["exit_code"] == 1
        processes.fail, processes.refuse = set(), {"tensorrt"}
        second = gpu_report.run(given, gpu=GPU, no_gpu=None)
        assert [one["status"] for one in second["cases"]] == ["failed"]
        assert second["conclusion"]["exit_code"] == 1
        processes.refuse = set()
        assert gpu_report.run(given, gpu=GPU, no_gpu=None)["conclusion"]["exit_code"] == 0

    def test_a_report_of_something_else_is_never_overwritten(self, bundle, tmp_path, processes):  # noqa: F811
        given = self.options(bundle, tmp_path, row=["TensorRT, graph"])
        gpu_report.run(given, gpu=GPU, no_gpu=None)
        path, asked = tmp_path / "r.json", list(processes.asked)
        content = path.read_bytes()
        with pytest.raises(UsageError, match=r"r\.json is the report of another machine.*; choose another --out, or"):
            gpu_report.run(given, gpu={**GPU, "name": "Other"}, no_gpu=None)
        report = json.loads(content)
        for other, words in (
            ({**report, "model": {**report["model"], "name": "sdxl"}}, "of another model, sdxl; choose another --out"),
            ({**report, "model": {**report["model"], "bundle": "0" * 64}}, "of another bundle, 000000000000; choose"),
            ({**report, "lare2_rt": "9.9"}, r"a report of lare2-rt 9\.9, and this is"),
            ({"schema": "x"}, "is no GPU report; choose another --out"),
            ([], "is no GPU report; choose another --out"),
        ):
            path.write_text(json.dumps(other))
            with pytest.raises(UsageError, match=words):
                gpu_report.run(given, gpu=GPU, no_gpu=None)
            assert json.loads(path.read_text()) == other
        path.write_text("{")
        with pytest.raises(UsageError, match=r"cannot be read as a GPU report .*or --fresh"):
            gpu_report.run(given, gpu=GPU, no_gpu=None)
        assert processes.asked == asked
        given.fresh = True
        assert gpu_report.run(given, gpu=GPU, no_gpu=None)["conclusion"]["exit_code"] == 0

    def test_no_such_reference_is_told_before_anything(self, bundle, tmp_path, processes):  # noqa: F811
        given = self.options(bundle, tmp_path, reference=tmp_path / "none.npz")
        with pytest.raises(UsageError, match=r"none\.npz cannot be read .*choose another --reference"):
            gpu_report.run(given, gpu=GPU, no_gpu=None)
        assert processes.asked == []

    @pytest.mark.parametrize(("ending", "code"), [(KeyboardInterrupt(), 130), (Terminated(), 143)])
    def test_an_end_from_outside_is_a_sentence(self, monkeypatch, capsys, ending, code):
        def run(*arguments, **options):
            raise ending

        monkeypatch.setattr(gpu_report, "run", run)
        assert gpu_report.main(["--out", "mine"]) == code
        said = capsys.readouterr()
        assert said.out == ""
        word = "terminated" if code == 143 else "interrupted"
        assert said.err == f"gpu_report: {word}; measured cases are kept in mine.json, run the same command again\n"

    def test_what_ends_a_case_is_its_reason(self, bundle, tmp_path):  # noqa: F811
        common = {"bundle": str(bundle.path), "model": None, "work": str(tmp_path), "reference": None}
        one, *_ = cases_of([ROWS[-1]], (1,), **common, threads=1, seconds=0.1)
        broken = in_process(dataclasses.replace(one, opener="no_such_module:open"), limit=60)
        assert broken["status"] == "failed"
        assert broken["reason"].startswith("ModuleNotFoundError: No module named 'no_such_module'")
        slow = in_process(one, limit=0.01)
        assert slow == {"status": "failed", "reason": "it was not done after 0.01 s; raise --limit"}
        eager = cases_of([ROWS[0]], (1,), **common, threads=1, seconds=0.1)[0]
        torch_row = gpu_report._case(eager, None, {"cases": []}, {}, limit=60)
        assert torch_row["status"] == "not usable"
        assert "run with --model instead of --bundle" in torch_row["reason"]

    @staticmethod
    def gone(pid):
        """Whether a process has ended, be it that nobody has asked how yet."""
        for _ in range(200):
            try:
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    return True
            except FileNotFoundError:
                return True
            time.sleep(0.02)
        return False

    @pytest.mark.parametrize("ends", [False, True])
    def test_what_a_process_started_ends_with_it(self, tmp_path, monkeypatch, ends):
        """A builder that went on would disturb the next case, whether the worker hangs at the limit or just leaves."""
        (tmp_path / "starter.py").write_text(
            "import os, subprocess, time\n"
            "def start():\n    return subprocess.Popen(['sleep', '600']).pid\n"
            "def leave():\n    os._exit(7)\n"
            "def hang():\n    time.sleep(600)\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with Resident("its process", None, {}) as process:
            started = process.ask("call", "starter:start", (), ())["result"]
            with pytest.raises(FailedError, match="code 7" if ends else r"within 0\.5 s"):
                process.ask("call", "starter:leave" if ends else "starter:hang", (), (), limit=60 if ends else 0.5)
        assert self.gone(started)
        assert self.gone(process.pid)

    def test_ctrl_c_ends_the_worker_and_what_it_started(self, bundle, tmp_path, monkeypatch):  # noqa: F811
        """Through the real worker, which opens a row that starts a process and then hangs."""
        folder = tmp_path / "modules"
        folder.mkdir()
        (folder / "sleepy_opener.py").write_text(
            "import os, pathlib, subprocess, time\n"
            "def open_row(bundle, case):\n"
            "    child = subprocess.Popen(['sleep', '600'])\n"
            "    target = pathlib.Path(case.work, 'pids')\n"
            "    target.with_suffix('.new').write_text(f'{os.getpid()} {child.pid}')\n"
            "    target.with_suffix('.new').rename(target)\n"
            "    time.sleep(600)\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(folder))
        common = {"bundle": str(bundle.path), "model": None, "work": str(tmp_path), "reference": None}
        one, *_ = cases_of([ROWS[-1]], (1,), **common, threads=1, seconds=0.1)
        pids = tmp_path / "pids"

        def press():
            deadline = time.monotonic() + 60
            while not pids.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

        presser = threading.Thread(target=press)
        presser.start()
        with pytest.raises(KeyboardInterrupt):
            in_process(dataclasses.replace(one, opener="sleepy_opener:open_row"), limit=100)
        presser.join()
        worker, builder = map(int, pids.read_text().split())
        assert self.gone(worker)
        assert self.gone(builder)

    def test_every_row_is_there(self):
        """Eager in both precisions, compiled, ONNX Runtime, TensorRT without and with graphs, at four batch sizes."""
        common = {"bundle": "b", "model": None, "work": "w", "reference": None, "threads": 1, "seconds": 1.0}
        cases = cases_of(ROWS, (1, 4, 8, 16), **common)
        batches = {row.name: [c.batch for c in cases if c.row == row.name] for row in ROWS}
        assert all(batches[row.name] == ([1, 4, 8, 16] if row.device == "cuda" else [1]) for row in ROWS)
        assert {(row.option, row.graph) for row in ROWS if row.device == "cuda"} >= {
            ("eager", None),
            ("compile", None),
            ("onnxruntime-cuda", True),
            ("tensorrt", False),
            ("tensorrt", True),
        }


@pytest.mark.gpu
def test_on_a_gpu_the_kit_proves_an_engine(bundle, tmp_path):  # noqa: F811
    """The command itself, in miniature: whichever GPU engine is installed must be faithful."""
    command = [sys.executable, "-m", "benchmarks.gpu_report", "--bundle", bundle.path, "--out", tmp_path / "r"]
    command += ["--work", tmp_path / "w", "--seconds", "1", "--batch", "1"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment(ROOT))
    assert run.returncode in (0, 2), run.stderr
    if run.returncode == 2:
        pytest.skip(run.stderr.splitlines()[-1])
    assert "Proven: " in run.stderr.splitlines()[-1]
