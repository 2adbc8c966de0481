"""docs/evidence.md: its commands and its Python run, and its numbers are those of the code."""

import json
import re

import pytest

from lare2_rt.pixels.crop_grid import CROPS
from lare2_rt.tools.evidence import maps, maps as scale, panel, report
from lare2_rt.tools.evidence.run import panel_name
from tests.conftest import ROOT
from tests.fakes.engine import use_engines
from tests.helpers.image_sets import here, picture
from tests.runtime.test_crops import Windows

PAGE = (ROOT / "docs/evidence.md").read_text()


@pytest.fixture
def command(monkeypatch, tmp_path):
    use_engines(monkeypatch, Windows())
    return here(monkeypatch, tmp_path)


def test_commands_and_python(command, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for i in (1, 2):
        (tmp_path / f"photos/{i}.jpg").write_bytes(picture(i, form="JPEG", size=(500, 400)))
    lines = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(lines) == 3
    for line in lines:
        program, name, *arguments = line.split()
        assert program == "lare2-rt"
        if name == "calibrate":  # needs a trained bundle: that it takes the option is enough here
            run = command(name, *arguments)
            assert "INDEX" in run.stderr
            assert "crops" not in run.stderr
        else:
            run = command(name, *arguments, "--no-isolate")
            assert run.returncode == 0, (line, run.stderr)
    assert len(list((tmp_path / "panels").glob("*.png"))) == 2
    assert (tmp_path / "report.html").is_file()
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [record["windows"] for record in records] == [9, 9]
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    exec(compile(code, "evidence.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] == "(32, 32) (1, 14, 14)"
    assert (tmp_path / "panel.png").is_file()


def test_numbers_are_those_of_the_code():
    assert f"at {maps.OPACITY:.0%}".replace("%", " %") in PAGE
    assert scale.SHARE == 0.01
    assert "a hundredth of all values" in PAGE
    assert f"at most {panel.MOST} images" in PAGE
    assert f"{report.MOST_ROWS:,} rows" in PAGE
    assert (CROPS[:3], CROPS[-1]) == ((1, 4, 9), 100)
    assert "(1, 4, 9, … 100)" in PAGE
    assert panel_name("photo.jpg") in PAGE
    counted = json.loads((ROOT / "benchmarks/results/throughput-synthetic-sd15.json").read_text())["flop"]
    window, whole = counted["clip_backbone"] + counted["egre"], sum(counted.values())
    assert f"{window / 1e9:.1f}, so nine windows are a tenth more" in PAGE
    assert f"{whole / 1e9:.1f} GFLOP" in PAGE
    assert 8 * window / whole == pytest.approx(0.1, abs=0.01)
    assert 24 * window / whole < 1 / 3
