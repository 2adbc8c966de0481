"""One table of columns: what is added to it appears in every format, in the schema and in the documentation."""

import csv
import io
import json

import pyarrow.parquet as pq

from benchmarks.render import columns as rendered
from lare2_rt import columns
from lare2_rt.columns import Column, csv_columns
from lare2_rt.detection import DecisionRule, Provenance, failed
from lare2_rt.results.parquet import read_records
from lare2_rt.results.writers import parquet_writer, writer_for
from tests.conftest import ROOT

RESULT = failed(
    "a.png",
    "no image; convert it",
    provenance=Provenance("b", "0" * 64, "", "reference", "1", "cpu", "fp32", 1, 2, ""),
    rule=DecisionRule("calibrated", 0.3, 0.7, demonstration=True),
)
ADDED = Column("decision.shown", "rule.demonstration", {"type": "boolean"}, "it only shows the tool", csv={19: "shown"})


def written(form):
    stream = io.StringIO()
    writer = writer_for(form, stream)
    writer.add(RESULT)
    writer.end()
    return stream.getvalue()


def test_a_column_is_one_line(monkeypatch, tmp_path):
    before = csv_columns()
    monkeypatch.setattr(columns, "COLUMNS", (*columns.COLUMNS, ADDED))
    assert json.loads(written("jsonl"))["decision"]["shown"] is True
    (row,) = csv.DictReader(io.StringIO(written("csv"), newline=""))
    assert tuple(row) == (*before, "shown")
    assert row["shown"] == "True"
    with (tmp_path / "r.parquet").open("wb") as stream:
        writer = parquet_writer(stream)
        writer.add(RESULT)
        writer.end()
    (record,) = read_records(tmp_path / "r.parquet")
    assert record["decision"]["shown"] is True
    assert str(pq.read_schema(tmp_path / "r.parquet").field("decision").type.field("shown").type) == "bool"
    decision = rendered.json_schema()["properties"]["decision"]
    assert decision["required"][-1] == "shown"
    assert decision["properties"]["shown"] == {"type": "boolean", "description": "it only shows the tool"}
    assert "| `decision.shown` | true or false | it only shows the tool |" in rendered.record_table()
    assert rendered.csv_table().endswith("| `shown` | `decision.shown` |")


def test_places_in_csv_are_counted_without_gaps():
    places = sorted(place for place, _, _, _ in columns.cells())
    assert places == list(range(1, len(places) + 1))


def test_schema_and_page_are_made_of_the_table():
    assert (ROOT / rendered.SCHEMA_FILE).read_text(encoding="utf-8") == rendered.schema_text()
    page = (ROOT / "docs/output.md").read_text(encoding="utf-8")
    for name, table in rendered.TABLES.items():
        assert f"<!-- table: {name} -->\n\n{table()}\n\n<!-- end of table -->" in page
