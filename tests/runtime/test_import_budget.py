"""What detecting imports: every file of ours is read, compiled and kept in mind by whoever starts or maintains it."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

FILES, LINES = 45, 5000
FOREIGN = ("typer", "rich", "jinja2", "pyarrow", "torch", "pandas", "openvino", "onnx", "tensorrt")
# Prints the modules that a fresh process has imported after the code in the first argument.
PROBE = """
import json, sys
exec(sys.argv[1])
print(json.dumps({name: getattr(module, "__file__", None) for name, module in sys.modules.items()}))
"""


def imported(code, folder, *arguments):
    """Modules and their files after ``code``, in an empty folder and without what a test run sets up."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE, code, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def detecting(tmp_path_factory, rocket):
    code = (
        "from lare2_rt import Detector\n"
        "with Detector.load(engine='onnxruntime') as detector:\n"
        "    assert detector.detect(sys.argv[2]).ok"
    )
    return imported(code, tmp_path_factory.mktemp("empty"), rocket)


def test_files_and_lines(detecting):
    ours = {file for name, file in detecting.items() if name.split(".")[0] == "lare2_rt"}
    lines = 0
    for file in ours:
        with open(file) as stream:  # noqa: PTH123 - one of a few dozen
            lines += len(stream.readlines())
    assert 20 < len(ours) <= FILES
    assert 2000 < lines <= LINES


def test_nothing_foreign(detecting):
    loaded = {name.split(".")[0] for name in detecting}
    assert "onnxruntime" in loaded
    assert loaded.isdisjoint(FOREIGN)


def test_no_other_engine_and_no_workbench(detecting):
    packages = {".".join(name.split(".")[:3]) for name in detecting if name.startswith("lare2_rt.")}
    engines = {"openvino", "winograd", "tensorrt", "onnxruntime_gpu", "cache", "gpu", "cuda_runtime"}
    assert "lare2_rt.engines.onnxruntime" in packages
    assert packages.isdisjoint(f"lare2_rt.engines.{name}" for name in engines)
    assert not any(name.startswith(("lare2_rt.tools", "lare2_rt.results", "lare2_rt.cli")) for name in packages)


def test_the_package_itself_costs_nothing(tmp_path):
    loaded = {name.split(".")[0] for name in imported("import lare2_rt", tmp_path)}
    assert "lare2_rt" in loaded
    assert loaded.isdisjoint({"numpy", "PIL", "pydantic", *FOREIGN})


def test_no_production_file_has_more_than_300_lines():
    rooms = ("runtime/lare2_rt", "export", "lare2_ref", "benchmarks")
    lengths = {path: path.read_text().count("\n") for room in rooms for path in (ROOT / room).rglob("*.py")}
    assert len(lengths) > 200
    assert {path.name: lines for path, lines in lengths.items() if lines > 300} == {}
