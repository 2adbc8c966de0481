"""The output contract: what every format gives is what the committed schema and the documentation say."""

import csv
import io
import json
import re

import pytest
from jsonschema import Draft202012Validator

from lare2_rt.columns import csv_columns
from lare2_rt.detection import DecisionRule, Detection, Provenance, failed
from lare2_rt.host import console
from lare2_rt.results.parquet import read_records
from tests.conftest import ROOT
from tests.helpers.commands import call

SCHEMA = json.loads((ROOT / "docs/schema/detection-1.schema.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs/output.md").read_text(encoding="utf-8")


def check(record):
    Draft202012Validator(SCHEMA).validate(record)


def wrong(record):
    return not Draft202012Validator(SCHEMA).is_valid(record)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, rocket):
    folder = tmp_path_factory.mktemp("schema")
    (folder / "good.jpg").write_bytes(rocket.read_bytes())
    (folder / "bad.jpg").write_bytes(rocket.read_bytes()[:5000])
    return folder


def infer(folder, *options):
    """Standard output for a good, a damaged and a missing image."""
    run = call("infer", "good.jpg", "bad.jpg", "no.jpg", *options, folder=folder)
    assert run.returncode == 1, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def outputs(folder):
    """Standard output of each format."""
    options = {"json": ("--threshold", "0.25"), "jsonl": (), "csv": ()}
    return {form: infer(folder, "--format", form, *more) for form, more in options.items()}


def records(form, text):
    return json.loads(text) if form == "json" else [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_json_is_valid(outputs, form):
    found = records(form, outputs[form])
    assert [record["source"] for record in found] == ["good.jpg", "bad.jpg", "no.jpg"]
    assert [record["error"] is None for record in found] == [True, False, False]
    for record in found:
        check(record)
    assert found[0]["decision"]["explicit"] == (form == "json")
    assert {"decode", "total", "vae_encoder", "unet_step", "clip_backbone", "egre"} <= set(found[0]["timings_ms"])


def test_parquet_is_valid(outputs, folder):
    """Read back, its records are those of JSON Lines, and the same schema holds."""
    infer(folder, "--out", "r.parquet")
    found = list(read_records(folder / "r.parquet"))
    for record, other in zip(found, records("jsonl", outputs["jsonl"]), strict=True):
        check(record)
        assert record["timings_ms"].keys() == other["timings_ms"].keys()
        assert {**record, "timings_ms": None} == {**other, "timings_ms": None}


def test_csv_carries_the_same_values(outputs):
    rows = list(csv.DictReader(io.StringIO(outputs["csv"], newline="")))
    assert list(rows[0]) == list(csv_columns())
    for row, record in zip(rows, records("jsonl", outputs["jsonl"]), strict=True):
        real, generated = record["logits"] or (None, None)
        expected = {
            "source": record["source"],
            "verdict": record["verdict"],
            "probability": record["probability"],
            "logit_real": real,
            "logit_generated": generated,
            "lare_mean": record["lare_mean"],
            "error": record["error"],
            "calibration": record["decision"]["calibration"],
            "bundle_name": record["bundle"]["name"],
            "bundle_id": record["bundle"]["id"],
            "engine": record["engine"]["name"],
            "engine_version": record["engine"]["version"],
            "precision": record["engine"]["precision"],
            "real_below": record["decision"]["real_below"],
            "generated_from": record["decision"]["generated_from"],
            "crops": record["crops"],
            "note": record["decision"]["note"],
        }
        shown = {name: "" if value is None else str(value) for name, value in expected.items()}
        total = row.pop("total_ms")
        assert row == shown
        assert (float(total) > 0) if record["error"] is None else total == ""


def paths(schema, prefix=""):
    """Yield the dotted name of every described field."""
    for name, part in schema["properties"].items():
        yield prefix + name
        if "properties" in part:
            yield from paths(part, f"{prefix}{name}.")


def objects(schema, record):
    """Yield each described object with its part of a record."""
    yield schema, record
    for name, part in schema["properties"].items():
        if "properties" in part:
            yield from objects(part, record[name])


def test_schema_knows_every_field_and_lets_new_ones_in(outputs):
    Draft202012Validator.check_schema(SCHEMA)
    record = records("jsonl", outputs["jsonl"])[0]
    for part, value in objects(SCHEMA, record):
        assert set(part["required"]) == set(part["properties"]) == set(value)
        for name in list(value):
            assert {"type", "const", "enum"} & set(part["properties"][name]), name
            kept = value.pop(name)
            assert wrong(record), name
            value[name] = kept
        value["a_new_field"] = 1
    check(record)


@pytest.mark.parametrize(
    ("row", "change"),
    [
        (0, {"schema": "lare2-rt/detection/2"}),
        (0, {"source": None}),
        (0, {"error": ""}),
        (0, {"error": "failed; try again"}),  # an error beside a result
        (0, {"verdict": "fake"}),
        (0, {"verdict": None}),
        (0, {"probability": 1.5}),
        (0, {"probability": None}),
        (0, {"probability": "0.5"}),
        (0, {"logits": [1.0]}),
        (0, {"logits": None}),
        (0, {"lare_mean": -1}),
        (0, {"decision": {}}),
        (0, {"bundle": {"name": "mini", "id": "short", "path": "embedded"}}),
        (0, {"engine": None}),
        (0, {"timings_ms": {}}),
        (0, {"timings_ms": {"decode": 1, "total": -1}}),
        (1, {"error": None}),
        (1, {"verdict": "unsure"}),
        (1, {"probability": 0.5}),
    ],
)
def test_schema_refuses(outputs, row, change):
    record = records("jsonl", outputs["jsonl"])[row]
    check(record)
    assert wrong(record | change)


@pytest.mark.parametrize(
    "rule",
    [
        DecisionRule("untrained"),
        DecisionRule("uncalibrated"),
        DecisionRule("uncalibrated").with_threshold(0),
        DecisionRule("calibrated", 0.2, 0.8),
    ],
)
def test_every_rule_is_valid(rule):
    provenance = Provenance("b", "0" * 64, "", "reference", "torch 2", "cuda:0", "fp16", 4, 2, "")
    for result in (
        failed("\udcff\n", "no; do", provenance=provenance, rule=rule),
        Detection("x", provenance, rule, rule.verdict(1.0), 1.0, (-9.0, 9.0), timings={"decode": 1, "total": 2}),
    ):
        record = json.loads(json.dumps(result.as_dict()))
        if result.ok:
            record["lare_mean"] = 0.0
        check(record)


def documented(heading):
    """The names in the first column of the table under the heading."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([a-z0-9_.]+)` \|", section, re.MULTILINE)


def test_page_describes_every_field_and_column():
    assert documented("The record") == list(paths(SCHEMA))
    assert documented("CSV") == list(csv_columns())


def test_page_says_where_null_may_be():
    for name in paths(SCHEMA):
        part = SCHEMA
        for step in name.split("."):
            part = part["properties"][step]
        nullable = "null" in part.get("type", ()) or None in part.get("enum", ())
        (row,) = re.findall(rf"^\| `{re.escape(name)}` \| ([^|]+) \|", PAGE, re.MULTILINE)[:1]
        assert nullable == ("null" in row), name


def test_page_gives_the_exit_codes_of_the_command():
    rows = re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)
    assert list(map(int, rows)) == [
        0,
        console.EXIT_FILES,
        console.EXIT_USAGE,
        console.EXIT_FOUND,
        console.EXIT_INTERRUPTED,
        console.EXIT_TERMINATED,
    ]
