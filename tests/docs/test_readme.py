"""What the README says is true: commands print what is shown, engines run as it says, the claim is the report's."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from benchmarks.render.claim import claim
from lare2_rt.engines.registry import ENGINES, entry_of
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
REPORT = ROOT / "benchmarks/results/throughput-synthetic-sd15.json"
# Engine, install, run, hardware, status.
ENGINE_ROWS = re.findall(r"^\| `([\w-]+)` \| `(.+?)` \| `(.+?)` \| (.+?) \| (.+?) \|$", README, re.MULTILINE)


def normal(text):
    """Versions, thread counts and milliseconds differ between machines; everything else may not."""
    text = re.sub(r"onnxruntime \S+", "onnxruntime X", text)
    text = re.sub(r"\d+ threads", "N threads", text)
    text = re.sub(r"─+", "─", text)
    text = re.sub(r"[ ]+\d+$", " MS", text, flags=re.MULTILINE)
    return re.sub(r"[ ]+", " ", text).strip()


def test_shown_output_is_the_true_output(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")  # away from an ./engines that a developer may have built
    command, shown = re.search(r"<!-- output: lare2-rt (.*?) -->\n```text\n(.*?)```", README, re.DOTALL).groups()
    run = subprocess.run(
        [sys.executable, "-m", "lare2_rt", *command.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert normal(run.stderr + run.stdout) == normal(shown)


def test_python_example_runs(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    expected = re.search(r"#\s*(.*)$", code, re.MULTILINE).group(1)
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    verdict, probability, *shape = run.stdout.split(maxsplit=2)
    assert expected.startswith(f"{verdict} {probability[:5]}")
    assert expected.endswith(" ".join(shape).strip())


def test_ci_finds_the_two_lines():
    """Each pattern that CI looks for is in one line, which begins with an installation."""
    patterns = re.findall(r"grep -m1 '(.+?)' README\.md", (ROOT / ".ci/run").read_text())
    assert len(patterns) == 2
    for pattern in patterns:
        (line,) = re.findall(rf"^.*{pattern}.*$", README, re.MULTILINE)
        assert line.startswith("pip install ")


def test_it_is_short():
    assert len(README.splitlines()) < 220


def test_every_option_of_the_build_is_explained():
    """Each option of build_engines.py has a help text, and a default where it has one."""
    import typer.main

    from lare2_export.cli import app

    command = typer.main.get_command(app)
    for parameter in command.params:
        assert parameter.help, parameter.name
        if parameter.default is None and not getattr(parameter, "is_flag", False):
            # Nothing is shown for it, so the text has to say what happens without it.
            assert re.search("default|instead", parameter.help, re.IGNORECASE), parameter.name


def test_the_claim_is_the_reports():
    report = json.loads(REPORT.read_text())
    assert claim(report) in README.split("\n## ")[0]
    ours = [row for row in report["rows"] if row["kind"] == "ours" and row["status"] == "measured"]
    best = max(ours, key=lambda row: row["speedup"])
    for part in (f"{best['speedup']:.2f} times", f"`{best['name']}`", report["machine"]["cpu"]):
        assert part in claim(report)
    best["rounds"]["steady"] = 0
    second = max((row for row in ours if row is not best), key=lambda row: row["speedup"])
    assert f"`{second['name']}`" in claim(report), "a disturbed row is no claim"
    second["fidelity"]["lare"]["worst_relative_l2"] = None
    assert f"`{second['name']}`" not in claim(report).split("Peers")[0], "nor a broken one"
    assert "measure it again" in claim({**report, "rows": [row for row in report["rows"] if row["kind"] != "ours"]})


def test_the_table_has_every_engine():
    assert [name for name, *_ in ENGINE_ROWS] == [entry.name for entry in ENGINES]
    for (_, install, run, hardware, status), entry in zip(ENGINE_ROWS, ENGINES, strict=True):
        assert install == f"pip install '.[{entry.extra}]'"
        assert f" --engine {entry.name} " in run
        assert (hardware, "not run" in status) == {"cpu": ("CPU", False), "cuda": ("NVIDIA GPU", True)}[entry.device]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        pytest.param(name, line, marks=[pytest.mark.slow] * (name != "onnxruntime"), id=name)
        for name, _, line, *_ in ENGINE_ROWS
    ],
)
def test_the_command_of_each_engine(tmp_path, name, line):
    """It runs where the engine is installed, and says what is missing where it is not."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    program, *arguments = shlex.split(line)
    assert program == "lare2-rt"
    if "--bundle" in arguments:  # one with half-precision graphs: here the embedded one, which has none
        at = arguments.index("--bundle")
        del arguments[at : at + 2]
    run = subprocess.run(
        [sys.executable, "-m", "lare2_rt", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if run.returncode == 0:
        assert f" on {name} " in run.stderr
        assert "examples/photo.jpg" in run.stdout
    else:
        assert run.returncode == 2
        assert entry_of(name).install in run.stderr or "--half" in run.stderr, run.stderr
        assert len(run.stderr.splitlines()) == 1
