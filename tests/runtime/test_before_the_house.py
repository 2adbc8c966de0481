"""What the version before the large refactoring wrote is opened and gone on with; what it offered is still there.

``data/before_the_house/README.md`` says how the data were made. Results are bound to an engine, so every run names it.
"""

import csv
import hashlib
import json
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import lare2_rt
from tests.conftest import ROOT
from tests.helpers.offered import ENTRIES, offered

DATA = ROOT / "tests/data/before_the_house"
IMAGES = sorted(path.name for path in (DATA / "images").iterdir())
ENGINE = ("--engine", "onnxruntime", "--threads", "1")
FORMATS = ("jsonl", "csv", "parquet")


@pytest.fixture(scope="module")
def expected():
    return load(DATA / "expected.json")


@pytest.fixture
def images(command, monkeypatch, tmp_path):
    """The images in the working directory: their names in results hold no folder."""
    monkeypatch.chdir(shutil.copytree(DATA / "images", tmp_path / "images"))


@pytest.fixture
def calibrated(embedded, tmp_path):
    folder = shutil.copytree(embedded, tmp_path / "calibrated")
    shutil.copyfile(DATA / "calibrated/manifest.json", folder / "manifest.json")
    return folder


def load(path):
    return json.loads(path.read_text())


def sha256_of(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def written(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(path):
    """(source, error, logits) of each result of a file, in order."""
    if path.suffix == ".csv":
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        for row in rows:
            row["source"] = row["source"].lstrip("'")
            row["logits"] = None if row["error"] else [float(row["logit_real"]), float(row["logit_generated"])]
    elif path.suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
    else:
        rows = load(path) if path.suffix == ".json" else list(map(json.loads, path.read_text().splitlines()))
    return [(row["source"], row["error"] or None, row["logits"]) for row in rows]


def assert_same(new, old, at=""):
    """Assert that JSON is the same but for times, versions and the last bits of numbers."""
    if isinstance(old, dict):
        assert list(new) == list(old), at
        for name in old.keys() - {"timings_ms", "version", "versions", "build_key"}:
            assert_same(new[name], old[name], f"{at}.{name}")
    elif isinstance(old, list):
        assert len(new) == len(old), at
        for number, pair in enumerate(zip(new, old, strict=True)):
            assert_same(*pair, f"{at}[{number}]")
    else:
        assert new == (pytest.approx(old, rel=1e-5, abs=1e-4) if isinstance(old, float) else old), at


def assert_logits(got, expected):
    """Bits depend on the CPU: logits agree to 1e-5 of their size."""
    assert got.keys() == expected.keys()
    for name, logits in expected.items():
        assert got[name] == (logits and pytest.approx(logits, rel=0, abs=1e-5 * np.abs(logits).max())), name


def assert_all_there(path, old):
    """Assert that a finished file holds each image once, in order, and what it held before."""
    rows = rows_of(path)
    assert [source for source, _, _ in rows] == IMAGES
    assert rows[: len(old)] == old
    assert_logits({name: x for name, _, x in rows}, {name: x for name, _, x in rows_of(DATA / "results.json")})


@pytest.mark.parametrize("name", ["embedded", "calibrated"])
def test_bundles_open(command, expected, request, name):
    folder, old = request.getfixturevalue(name), expected[name]
    code, out, _ = command("inspect", folder, "--format", "json", "--verify")
    manifest, decision = json.loads(out), old["decision"]
    assert code == 0
    assert [manifest[part] for part in ("id", "lare_id", "decision")] == [old["id"], old["lare_id"], decision]
    with lare2_rt.Detector.load(folder, engine="onnxruntime", threads=1) as detector:
        rule, provenance = detector.info.rule, detector.info.provenance
        found = {image: detector.detect(DATA / "images" / image) for image in old["images"]}
    assert (provenance.bundle_id, provenance.crops) == (old["id"], decision.get("crops", 1))
    assert (rule.real_below, rule.generated_from) == (decision["real_below"], decision["generated_from"])
    assert [result.verdict for result in found.values()] == [image["verdict"] for image in old["images"].values()]
    assert_logits({n: list(x.logits) for n, x in found.items()}, {n: x["logits"] for n, x in old["images"].items()})
    assert {path.name: sha256_of(path) for path in folder.glob("*.onnx")} == expected["embedded"]["graphs"]


def test_rebuilt_default(expected, tmp_path):
    """What names LaRE and the components is known before anything is exported."""
    from lare2_export.build.options import BuildOptions
    from tests.helpers.quick_build import build_quickly

    build_quickly(tmp_path / "engines", BuildOptions())
    # Not the id: unet_step of the embedded bundle has other bits under the same component keys.
    new, old = load(tmp_path / "engines/manifest.json"), expected["rebuilt"]
    assert new["lare_id"] == old["lare_id"]
    if new["build"] != old["versions"]:
        pytest.skip("component keys name the versions of the exporter, and others are installed")
    keys = {
        name: {f"b{v['batch']}.{v['precision']}": v["component_key"] for v in variants}
        for name, variants in new["components"].items()
    }
    assert keys == old["component_keys"]


def test_schema(expected):
    """Only descriptions may differ: the same documents are accepted and refused."""
    old = DATA / "detection-1.schema.json"
    assert sha256_of(old) == expected["schema_sha256"]
    assert undescribed(load(ROOT / "docs/schema/detection-1.schema.json")) == undescribed(load(old))


def undescribed(part):
    if not isinstance(part, dict):
        return part
    return {name: undescribed(x) for name, x in part.items() if name != "description" or isinstance(x, dict)}


@pytest.mark.usefixtures("images")
def test_results_look_the_same(command, tmp_path):
    for form in ("json", "csv", "parquet", "txt"):
        assert command("infer", *IMAGES, "--out", tmp_path / f"results.{form}", *ENGINE)[0] == 1
    assert_same(load(tmp_path / "results.json"), load(DATA / "results.json"))
    new, old = (pq.read_schema(folder / "results.parquet") for folder in (tmp_path, DATA))
    assert new.equals(old, check_metadata=True)
    new, old = (list(csv.reader((folder / "results.csv").open(newline=""))) for folder in (tmp_path, DATA))
    assert new[0] == old[0]
    assert [row[:2] for row in new] == [row[:2] for row in old]
    new, old = ([line.split() for line in (f / "results.txt").read_text().splitlines()] for f in (tmp_path, DATA))
    assert [line[:3] for line in new if len(line) > 1] == [line[:3] for line in old if len(line) > 1]


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("form", FORMATS)
def test_resume_extends_a_complete_file(command, tmp_path, form):
    target, old = tmp_path / f"results.{form}", DATA / f"first/results.{form}"
    shutil.copyfile(old, target)
    assert command("infer", *IMAGES, "--resume", "--out", target, *ENGINE)[0] == 1
    assert_all_there(target, rows_of(old))
    assert form == "parquet" or target.read_bytes().startswith(old.read_bytes())


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("form", FORMATS)
def test_resume_goes_on_after_a_kill(command, tmp_path, form):
    target, partial = tmp_path / f"results.{form}", tmp_path / f"results.{form}.partial"
    shutil.copyfile(DATA / "killed" / partial.name, partial)
    whole = partial.read_bytes()
    whole = whole[: whole.rindex(b"\n") + 1]
    begun = tmp_path / ("begun.csv" if form == "csv" else "begun.jsonl")
    begun.write_bytes(whole)
    assert command("infer", *IMAGES, "--resume", "--out", target, *ENGINE)[0] == 1
    assert len(rows_of(begun)) == 2
    assert_all_there(target, rows_of(begun))
    assert not partial.exists()
    assert form == "parquet" or target.read_bytes().startswith(whole)


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("name", ["results_older.csv", "results_without_note.csv"])
def test_resume_goes_on_with_fewer_columns(command, tmp_path, name):
    target = tmp_path / "results.csv"
    shutil.copyfile(DATA / name, target)
    assert command("infer", *IMAGES, "--resume", "--out", target, *ENGINE)[0] == 1
    assert_all_there(target, rows_of(DATA / name))
    assert target.read_bytes().startswith((DATA / name).read_bytes())


@pytest.mark.parametrize(("name", "shards"), [("features", [2, 1, 2]), ("features_begun", [2, 2, 1])])
def test_extract_continues(command, expected, tmp_path, name, shards):
    from lare2_rt.tools.features.reader import open_features

    first = np.load(DATA / "features/lare-00000.npy")
    folder = shutil.copytree(DATA / name, tmp_path / name)
    before = written(folder)
    assert command("extract", DATA / "images", "--out", folder, *ENGINE)[0] == 1  # one image is damaged
    after = written(folder)
    assert [file for file in before if file.endswith(".npy") and after[file] != before[file]] == []
    assert [file for file in after if file.endswith(".partial") or file.startswith("journal")] == []
    for kind in ("lare", "embedding"):
        assert [len(np.load(path)) for path in sorted(folder.glob(f"{kind}-*.npy"))] == shards
    features = open_features(folder, lare_id=expected["embedded"]["lare_id"])
    maps = features.batch(features.find([sha256_of(DATA / "images" / image) for image in expected["decodable"]]))
    assert maps.shape == (5, 4, 32, 32)
    assert np.array_equal(maps[0], first[0])  # was there before
    np.testing.assert_allclose(maps[:2], first, rtol=0, atol=1e-5 * np.abs(first).max())


def test_index_opens(command, tmp_path):
    from lare2_rt.tools.datasets.table import read_index

    index = read_index(DATA / "index.parquet", root=DATA / "labelled")
    assert list(index.sha256) == [sha256_of(index.file(row)) for row in range(len(index))]
    assert command("audit", DATA / "index.parquet", "--root", DATA / "labelled", "--format", "json")[0] == 0
    assert command("index", DATA / "labelled", "--out", tmp_path / "index.parquet")[0] == 0
    new, old = pq.read_table(tmp_path / "index.parquet"), pq.read_table(DATA / "index.parquet")
    assert new.equals(old)
    assert new.schema.metadata.keys() == old.schema.metadata.keys()


def test_stored_scores_count(command, expected, calibrated, tmp_path):
    if metadata.version("onnxruntime") != expected["versions"]["onnxruntime"]:
        pytest.skip("stored scores count only for the version of ONNX Runtime that made them")
    out, scores = tmp_path / "evaluation", tmp_path / "scores"
    shutil.copytree(DATA / "evaluation/scores", out / "scores")
    assert command("evaluate", DATA / "labelled", "--out", out, "--resamples", "50", *ENGINE)[0] == 0
    assert written(out / "scores") == written(DATA / "evaluation/scores")  # nothing was scored again
    assert_same(load(out / "evaluation.json"), load(DATA / "evaluation/evaluation.json"))
    shutil.copytree(DATA / "calibrated/scores", scores)
    options = ("--fpr", "0.2", "--crops", "4", "--scores", scores, "--report", tmp_path / "report.json")
    assert command("calibrate", DATA / "labelled", "--out", tmp_path / "new", *options, *ENGINE)[0] == 0
    assert written(scores) == written(DATA / "calibrated/scores")
    # The id follows the last bits of the thresholds.
    assert_same({**load(tmp_path / "new/manifest.json"), "id": ""}, {**load(calibrated / "manifest.json"), "id": ""})
    report, old = load(tmp_path / "report.json"), load(DATA / "calibrated/report.json")
    assert_same({**report, "bundle": ""}, {**old, "bundle": ""})


@pytest.mark.parametrize("entry", ENTRIES)
def test_commands_and_options(entry, expected, monkeypatch):
    now = offered(entry, monkeypatch)
    for name, params in expected["commands"][entry].items():
        assert {param: now[name].get(param) for param in params} == params, name
