"""docs/datasets.md: its commands run in the order given, its Python runs after them, its tables name what there is."""

import re

import pyarrow.parquet as pq
import pytest

from lare2_rt.tools.datasets.audit import MEANING
from lare2_rt.tools.datasets.layouts import LABELS
from lare2_rt.tools.datasets.table import read_index
from lare2_rt.tools.features.reader import open_features
from tests.conftest import ROOT
from tests.fakes.engine import use_engines
from tests.helpers.extract_child import MapEngine
from tests.helpers.image_sets import here, picture

PAGE = (ROOT / "docs/datasets.md").read_text()


@pytest.fixture
def command(monkeypatch, tmp_path):
    use_engines(monkeypatch, MapEngine())
    return here(monkeypatch, tmp_path)


def test_commands_and_python(command, tmp_path, capsys):
    for i, (kind, form) in enumerate((("real", "JPEG"), ("fake", "PNG")) * 4):
        path = tmp_path / f"photos/{kind}/{i}.{form.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i, form=form, size=(300 + i, 260)))
    lines = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(lines) == 3
    for line in lines:
        program, *arguments = line.split()
        assert program == "lare2-rt"
        run = command(*arguments)
        assert run.returncode == 0, (line, run.stderr)
    assert len(open_features("features")) == 8
    assert set(read_index("matched/index.parquet").split) == {"train", "val", "test"}
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    exec(compile(code, "datasets.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "1 unknown fake/1.png"
    assert printed[-1] == "(4, 32, 32)"
    columns = re.findall(r"^\| (`.*?) \| (?:string|int\d+) \|", PAGE, re.MULTILINE)
    assert re.findall(r"\w+", " ".join(columns)) == pq.read_table("index.parquet").column_names
    for name in pq.read_table("features/rows.parquet").column_names:
        assert f"`{name}`" in PAGE


def test_names_what_there_is():
    rows = re.findall(r"^\| (.+?) \|", PAGE, re.MULTILINE)
    for layout in LABELS:
        assert f"`{layout}`" in rows
    assert [row for row in rows if row.replace(" ", "_") in MEANING] == [fact.replace("_", " ") for fact in MEANING]
    for name in LABELS["folders"]:
        assert f"`{name}`" in PAGE
