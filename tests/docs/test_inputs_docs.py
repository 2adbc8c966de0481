"""docs/inputs.md and docs/doctor.md: their commands and their Python run, and what they say of exit codes is so."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lare2_rt.engines import registry
from lare2_rt.host import console
from lare2_rt.pixels.limits import MAX_BYTES, MAX_PIXELS, MAX_SECONDS
from lare2_rt.tools.doctor import finding
from tests.conftest import ROOT
from tests.fakes.engine import use_engines

INPUTS, DOCTOR = ((ROOT / f"docs/{name}.md").read_text() for name in ("inputs", "doctor"))


def lines(page):
    return [line for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def album(tmp_path, monkeypatch):
    """What the commands name, and nothing else."""
    for name in ("photo.jpg", "album/a.jpg", "album/sub/b.jpg", "scans/1999/c.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (90, 120, 30)).save(tmp_path / name)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_inputs(album, capsys):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found = lines(INPUTS)
    assert len(found) == 5
    for line in found:
        run = subprocess.run(
            ["bash", "-c", line], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, (line, run.stderr)
    assert len((album / "results.csv").read_text().splitlines()) == 3
    sources = [json.loads(line)["source"] for line in (album / "verdicts.jsonl").read_text().splitlines()]
    assert sources == ["album/a.jpg", "album/sub/b.jpg"]
    (code,) = re.findall(r"```python\n(.*?)```", INPUTS, re.DOTALL)
    exec(compile(code, "inputs.md", "exec"), {})
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("photo.jpg unsure None")
    assert "broken.jpg None not an image" in second


def test_inputs_figures():
    rows = dict(re.findall(r"^\| `(--max-\w+)` \| (\S+(?: GiB)?) \|", INPUTS, re.MULTILINE))
    assert rows == {
        "--max-pixels": f"{MAX_PIXELS / 1e6:.1f}M",
        "--max-bytes": f"{MAX_BYTES >> 30} GiB",
        "--max-seconds": f"{MAX_SECONDS:g}",
    }


@pytest.mark.slow
def test_doctor(command, monkeypatch):
    use_engines(monkeypatch, registry.ENGINES[0])
    found = lines(DOCTOR)
    assert len(found) == 2
    for line in found:
        program, *arguments = shlex.split(line)
        assert program == "lare2-rt"
        code, out, said = command(*arguments)
        assert code == 0, out + said
    areas = {each["area"] for each in json.loads(out)["findings"]}
    assert areas == set(re.findall(r"^\| `(\w+)` \|", DOCTOR, re.MULTILINE))
    for status in finding.Status.__args__:
        assert f"`{status}`" in DOCTOR
    for name in finding.Finding.__dataclass_fields__:
        assert f"`{name}`" in DOCTOR


def test_exit_codes():
    page = (ROOT / "docs/output.md").read_text()
    for code in (value for name, value in vars(console).items() if name.startswith("EXIT_")):
        assert f"| {code} |" in page
