"""``lare2-rt evaluate``: right numbers, per generator, corrupted, resumed, and sentences where it cannot."""

import contextlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from sklearn import metrics

from lare2_rt import Detector
from lare2_rt.bundle.locate import embedded_bundle
from lare2_rt.errors import EngineError
from lare2_rt.tools.datasets.build import build_index
from lare2_rt.tools.datasets.table import write_index
from lare2_rt.tools.evaluation import figures
from lare2_rt.tools.evaluation.corruptions import CORRUPTIONS, corrupt
from lare2_rt.tools.evaluation.items import select
from lare2_rt.tools.evaluation.store import ScoreStore, score, scorer_of
from lare2_rt.tools.evaluation.summary import METRICS
from tests.conftest import ROOT
from tests.fakes.engine import FakeEngine, use_engines
from tests.helpers.labelled import run_command, write_set
from tests.helpers.processes import environment
from tests.helpers.tampering import read_manifest, reseal

QUICK = ("--resamples", "20", "--batch", "4")


@pytest.fixture
def evaluate(monkeypatch, tmp_path, request):
    """Run the command in an empty folder; drawing takes longest and is left to the test of the figures."""
    monkeypatch.chdir(tmp_path)
    if "figures" not in request.node.name:
        monkeypatch.setattr(figures, "available", lambda: False)
    return lambda *arguments: run_command("evaluate", *arguments, *QUICK)


@pytest.fixture
def labelled(tmp_path):
    return write_set(tmp_path / "set")


def report(folder):
    return json.loads((folder / "evaluation.json").read_text())


def scores(folder, condition="clean"):
    (path,) = folder.glob(f"scores/*/{condition}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()[1:] if line]


def test_numbers(evaluate, labelled, fake, tmp_path, untrained):
    code, out, err = evaluate(labelled, "--bundle", untrained, "--threshold", "0.6")
    assert code == 0, err
    found = report(tmp_path / "evaluation")
    assert (found["schema"], found["data"]["real"], found["data"]["generated"]) == ("lare2-rt/evaluation/1", 12, 12)
    assert found["data"]["groups"] == 12
    assert found["data"]["generators"] == {"glide": 6, "sd": 6}
    assert found["matrix"] is None
    (model,) = found["models"]
    (clean,) = model["conditions"]
    index = build_index(labelled).index
    logits = {record["sha256"]: record["logits"] for record in scores(tmp_path / "evaluation")}
    gaps = np.array([logits[sha256][1] - logits[sha256][0] for sha256 in index.sha256])
    probability, label = 1 / (1 + np.exp(-gaps)), index.label
    values = {name: interval["value"] for name, interval in clean["overall"]["metrics"].items()}
    assert values["auc"] == pytest.approx(metrics.roc_auc_score(label, probability))
    assert 0.5 < values["auc"] < 1
    assert values["average_precision"] == pytest.approx(metrics.average_precision_score(label, probability))
    assert values["accuracy_at_half"] == pytest.approx(metrics.accuracy_score(label, probability >= 0.5))
    # The model is untrained, so not even an explicit threshold gives verdicts.
    assert "decided_accuracy" not in values
    names = np.array(index.generator)
    part = (label == 0) | (names == "sd")
    assert clean["generators"]["sd"]["metrics"]["auc"]["value"] == pytest.approx(
        metrics.roc_auc_score(label[part], probability[part])
    )
    assert clean["generators"]["sd"]["real"] == 12
    assert sum(b["images"] for b in clean["reliability"]) == 24
    text = (tmp_path / "evaluation/evaluation.md").read_text()
    assert "| AUC |" in text
    assert "| oracle ACC |" in text
    assert f"| AUC | {values['auc']:.4f} [" in text
    assert f"{values['auc']:.4f}" in out
    assert "note: this model is untrained" in err


def bundle_with(folder, change):
    """A copy of the embedded bundle whose manifest ``change`` has edited."""
    raw = read_manifest(folder)
    change(raw)
    reseal(folder, raw)
    return folder


def calibrated(raw):
    raw["model"]["synthetic"] = False
    raw["decision"] = {"calibration": "calibrated", "real_below": 0.6, "generated_from": 0.7, "data": "test"}


def test_calibrated_bundle_has_metrics_of_verdicts(evaluate, labelled, fake, tmp_path, bundle_copy):
    bundle_with(bundle_copy, calibrated)
    code, _, err = evaluate(labelled, "--bundle", bundle_copy)
    assert code == 0, err
    values = report(tmp_path / "evaluation")["models"][0]["conditions"][0]["overall"]["metrics"]
    logits = {record["sha256"]: record["logits"] for record in scores(tmp_path / "evaluation")}
    index = build_index(labelled).index
    probability = np.array([1 / (1 + np.exp(np.subtract(*logits[sha256]))) for sha256 in index.sha256])
    unsure = (probability >= 0.6) & (probability < 0.7)
    assert 0 < unsure.mean() < 1
    assert values["unsure_share"]["value"] == pytest.approx(unsure.mean())
    real = index.label == 0
    assert values["false_positive_rate"]["value"] == pytest.approx((probability[real] >= 0.7).mean())
    assert values["miss_rate"]["value"] == pytest.approx((probability[~real] < 0.6).mean())
    right = metrics.accuracy_score(index.label, probability >= 0.7)
    assert values["accuracy_at_calibrated"]["value"] == pytest.approx(right)
    assert values["accuracy_at_half"]["value"] != values["accuracy_at_calibrated"]["value"]
    # With a threshold of the caller's own there is no calibrated one in use.
    assert evaluate(labelled, "--bundle", bundle_copy, "--threshold", "0.5", "--out", "own")[0] == 0
    assert "accuracy_at_calibrated" not in report(tmp_path / "own")["models"][0]["conditions"][0]["overall"]["metrics"]


def test_oracle_never_stands_as_plain_acc(evaluate, labelled, fake, tmp_path, bundle_copy):
    """Wherever its figure is shown it is called oracle; every other ACC names the threshold that it is at."""
    bundle_with(bundle_copy, calibrated)
    code, out, err = evaluate(labelled, "--bundle", bundle_copy, "--corrupt", "half")
    assert code == 0, err
    overall = report(tmp_path / "evaluation")["models"][0]["conditions"][0]["overall"]["metrics"]
    values = {name: interval["value"] for name, interval in overall.items()}
    oracle = values.pop("oracle_accuracy")
    shown = f"{oracle:.4f}"
    assert shown not in {f"{value:.4f}" for value in values.values()}, "another figure hides what this test looks for"
    text = (tmp_path / "evaluation/evaluation.md").read_text()
    for name, content in (("report", text), ("terminal", out)):
        lines = [line for line in content.splitlines() if shown in line]
        assert lines, name
        assert all("oracle ACC" in line for line in lines), name
    named = [words for words in METRICS.values() if "ACC" in words]
    assert len(named) == 7
    assert all(re.search("at 0.5|calibrated threshold|of verdicts|^oracle ACC$", words) for words in named)
    for heading in re.findall(r"[^|\n]*ACC[^|\n]*", text.split("## What the words mean")[0] + out):
        assert heading.strip().split("  ")[0] in named, heading


def test_precision_reaches_the_engine(evaluate, labelled, fake):
    asked = []
    original = fake.open
    fake.open = lambda bundle, options: (asked.append(options.precision), original(bundle, options))[1]
    assert evaluate(labelled, "--precision", "fp16")[0] == 0
    assert evaluate(labelled)[0] == 0
    assert asked == ["fp16", None]


def test_without_torch(tmp_path):
    """From index to calibrated bundle where neither torch nor our own packages that need it can be imported."""
    bundle = shutil.copytree(embedded_bundle(), tmp_path / "bundle")
    bundle_with(bundle, lambda raw: raw.update(decision={"calibration": "uncalibrated"}))
    write_set(tmp_path / "set", real=60, generated=60, splits=("val", "test"))
    code = """
import sys
for name in ("torch", "lare2_ref", "lare2_export", "diffusers", "transformers", "open_clip", "sklearn"):
    sys.modules[name] = None
from tests.fakes.engine import FakeEngine, entry
from lare2_rt.engines import registry
from lare2_rt.cli import main
registry.ENGINES = (entry(FakeEngine()),)
for line in sys.stdin.read().splitlines():
    sys.argv = ["lare2-rt", *line.split()]
    try:
        main()
    except SystemExit as left:
        assert left.code == 0, line
"""
    commands = (
        "index set/set.csv --audit",
        "extract index.parquet --out features --bundle bundle",
        "calibrate index.parquet --bundle bundle --out new --fpr 0.1",
        "evaluate index.parquet --bundle new --corrupt half --resamples 5",
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        input="\n".join(commands),
        cwd=tmp_path,
        env=environment(ROOT),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    overall = report(tmp_path / "evaluation")["models"][0]["conditions"][0]["overall"]
    assert (overall["real"], overall["generated"]) == (30, 30)
    assert "accuracy_at_calibrated" in overall["metrics"]


def test_stopped_run_goes_on(evaluate, labelled, fake, tmp_path):
    assert evaluate(labelled, "--out", "whole")[0] == 0

    def stop(call, output):
        if call == 3:
            raise EngineError("the device is gone", remedy="try again")

    fake.calls, fake.script = 0, stop
    code, _, err = evaluate(labelled, "--out", "parts")
    assert code == 1
    assert "stopped: the device is gone; try again" in err
    assert not (tmp_path / "parts/evaluation.json").exists()
    assert len(scores(tmp_path / "parts")) == 8
    fake.calls, fake.script = 0, None
    assert evaluate(labelled, "--out", "parts")[0] == 0
    assert fake.calls == 4
    for name in ("evaluation.json", "evaluation.md"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    fake.calls = 0
    assert evaluate(labelled, "--out", "parts")[0] == 0
    assert fake.calls == 0


def test_interrupt_keeps_scores(evaluate, labelled, fake, tmp_path):
    def interrupt(call, output):
        if call == 2:
            raise KeyboardInterrupt

    fake.script = interrupt
    code, _, err = evaluate(labelled)
    assert code == 130
    assert "run the same command again to go on" in err
    assert len(scores(tmp_path / "evaluation")) == 4


def test_torn_and_foreign_lines_are_scored_again(evaluate, labelled, fake, tmp_path):
    assert evaluate(labelled)[0] == 0
    before = (tmp_path / "evaluation/evaluation.json").read_bytes()
    (path,) = (tmp_path / "evaluation").glob("scores/*/clean.jsonl")
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    fake.calls = 0
    assert evaluate(labelled)[0] == 0
    assert fake.calls == 1
    path.write_bytes(b'{"schema": "another"}\n' + content)
    fake.calls = 0
    assert evaluate(labelled)[0] == 0
    assert fake.calls == 6
    assert (tmp_path / "evaluation/evaluation.json").read_bytes() == before


@pytest.mark.parametrize("engine", ["fake", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_corrupted_images_are_scored_anew(engine, embedded, photos, tmp_path, monkeypatch):
    """LaRE and all else is computed from the corrupted pixels, and stored apart from the clean scores."""
    if engine == "fake":
        use_engines(monkeypatch, FakeEngine())
    for name, photo in zip(("a", "b"), photos, strict=False):
        shutil.copy(photo, tmp_path / f"{name}{photo.suffix}")
    (tmp_path / "list.txt").write_text("".join(f"{p.name} {i % 2}\n" for i, p in enumerate(sorted(tmp_path.iterdir()))))
    items = select(build_index(tmp_path / "list.txt").index, None).items
    with Detector.load(embedded) as detector, contextlib.closing(scorer_of(detector)) as scorer:
        found = {}
        for corruption in (None, CORRUPTIONS["jpeg30"]):
            store = ScoreStore(tmp_path / "scores", scorer, corruption)
            found[corruption] = score(scorer, items, store=store, corruption=corruption).logits
        damaged = [corrupt(i.path, CORRUPTIONS["jpeg30"], policy=scorer.policy, key=i.sha256) for i in items]
        expected = [detector.detect(image).logits for image in damaged]
    assert np.array_equal(found[CORRUPTIONS["jpeg30"]], np.array(expected))
    assert not np.array_equal(found[None], found[CORRUPTIONS["jpeg30"]])
    assert len(scores(tmp_path, "jpeg30")) == len(scores(tmp_path)) == len(items)


def test_corruption_report(evaluate, labelled, fake, tmp_path):
    code, _, err = evaluate(labelled, "--corrupt", "jpeg50,noise")
    assert code == 0, err
    (model,) = report(tmp_path / "evaluation")["models"]
    clean, jpeg, noise = model["conditions"]
    assert (clean["name"], jpeg["name"], noise["name"]) == ("clean", "jpeg50", "noise5")
    assert clean["stability"] is None
    before = np.array([r["logits"][1] - r["logits"][0] for r in scores(tmp_path / "evaluation")])
    after = np.array([r["logits"][1] - r["logits"][0] for r in scores(tmp_path / "evaluation", "noise5")])
    temperature, bias = model["decision"]["temperature"], model["decision"]["bias"]
    after, before = (1 / (1 + np.exp(-(gaps / temperature + bias))) for gaps in (after, before))
    shift = np.abs(after - before).mean()
    assert noise["stability"]["mean_shift"] == pytest.approx(shift)
    assert "| noise5 |" in (tmp_path / "evaluation/evaluation.md").read_text()


def test_several_bundles_make_a_matrix(evaluate, labelled, fake, tmp_path, bundle_copy):
    bundle_with(bundle_copy, calibrated)
    other = shutil.copytree(bundle_copy, tmp_path / "other")
    bundle_with(other, lambda raw: raw["decision"].update(generated_from=0.8))
    code, _, err = evaluate(labelled, "--bundle", bundle_copy, "--bundle", other)
    assert code == 0, err
    found = report(tmp_path / "evaluation")
    assert found["matrix"]["columns"] == ["glide", "sd"]
    for metric in ("auc", "balanced_accuracy_at_half"):
        for row, model in zip(found["matrix"][metric], found["models"], strict=True):
            generators = model["conditions"][0]["generators"]
            assert row == [generators[name]["metrics"][metric]["value"] for name in ("glide", "sd")]
    text = (tmp_path / "evaluation/evaluation.md").read_text()
    rows = found["matrix"]["balanced_accuracy_at_half"]
    means = [sum(column) / 2 for column in zip(*rows, strict=True)]
    shown = " | ".join(f"{value:.1%}" for value in (*means, sum(means) / 2))
    assert (
        "## Cross-generator matrix\n\nBalanced ACC at 0.5; each row is one model.\n\n| model | glide | sd | mean |"
        in text
    )
    assert f"| mean over models | {shown} |" in text
    code, _, err = evaluate(labelled, "--bundle", other, "--bundle", other)
    assert code == 2
    assert "given twice" in err


def test_failing_images_are_named_and_left_out(evaluate, labelled, fake, tmp_path):
    index = build_index(labelled).index
    write_index(tmp_path / "index.parquet", index)
    (tmp_path / "set/0-0003.png").unlink()
    (tmp_path / "set/1-0004.png").write_bytes((tmp_path / "set/1-0005.png").read_bytes())
    code, _, err = evaluate(tmp_path / "index.parquet")
    assert code == 1
    assert "clean: 0-0003.png: cannot be read (no such file or directory); check the path" in err
    assert "clean: 1-0004.png: the file is another one than when the index was written" in err
    found = report(tmp_path / "evaluation")
    overall = found["models"][0]["conditions"][0]["overall"]
    assert (overall["real"], overall["generated"]) == (11, 11)
    assert found["data"]["index_sha256"]
    assert len(found["models"][0]["conditions"][0]["failures"]) == 2


def test_duplicates_count_once_and_must_agree(evaluate, labelled, fake, tmp_path):
    shutil.copy(tmp_path / "set/1-0000.png", tmp_path / "set/copy.png")
    labelled.write_text(labelled.read_text() + "copy.png,1,sd,test,x\n")
    assert evaluate(labelled)[0] == 0
    data = report(tmp_path / "evaluation")["data"]
    assert (data["generated"], data["duplicates"]) == (12, 1)
    labelled.write_text(labelled.read_text().replace("copy.png,1", "copy.png,0"))
    code, _, err = evaluate(labelled)
    assert code == 2
    assert "the same file with different labels" in err


def test_hostile_names(evaluate, tmp_path, fake):
    labelled = write_set(tmp_path / "set", generators=("<b>|$x^", "[red]\x1b"))
    index = build_index(labelled).index
    name = "a|\n<script>[b]\x1b[31m.png"
    (tmp_path / "set/0-0000.png").rename(tmp_path / "set" / name)
    write_index(tmp_path / "i.parquet", index.select(range(24)))
    code, out, err = evaluate(tmp_path / "i.parquet")
    assert code == 1  # the renamed file is missing
    text = (tmp_path / "evaluation/evaluation.md").read_text()
    assert "\x1b" not in text + out + err
    assert "&lt;b&gt;\\|$x^" in text
    assert "<b>" not in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--split", "val"), "no image in split 'val': it has test"),
        (("--split", "holdout"), "no image in split 'holdout'"),
        (("--corrupt", "fog"), "there is no corruption 'fog'"),
        (("--bundle", "nowhere"), "nowhere is not a bundle folder"),
        (("--out", "set/set.csv"), "cannot create"),
    ],
)
def test_usage_errors(evaluate, labelled, fake, arguments, sentence):
    code, _, err = evaluate(labelled, *arguments)
    assert code == 2
    assert sentence in err


def test_one_class_is_refused(evaluate, labelled, fake):
    labelled.write_text("".join(line for line in labelled.open() if not line.startswith("0-")))
    code, _, err = evaluate(labelled)
    assert code == 2
    assert "split 'test' has no readable real image" in err


def test_set_without_splits_is_taken_whole(evaluate, tmp_path, fake):
    labelled = write_set(tmp_path / "set", splits=("",))
    assert evaluate(labelled)[0] == 0
    assert report(tmp_path / "evaluation")["data"]["split"] == "all"


def test_figures(evaluate, labelled, fake, tmp_path):
    assert evaluate(labelled, "--corrupt", "half")[0] == 0
    names = {path.name for path in (tmp_path / "evaluation/figures").iterdir()}
    assert names == {"roc.png", "reliability-1-mini.png", "generators-1-mini.png", "corruptions-1-mini.png"}
    text = (tmp_path / "evaluation/evaluation.md").read_text()
    first = {path.name: path.read_bytes() for path in (tmp_path / "evaluation/figures").iterdir()}
    for name, content in first.items():
        assert content.startswith(b"\x89PNG")
        assert f"(figures/{name})" in text
    assert evaluate(labelled, "--corrupt", "half")[0] == 0
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "evaluation/figures").iterdir()}


def test_without_matplotlib_there_is_a_sentence(evaluate, labelled, fake, tmp_path):
    code, _, err = evaluate(labelled)
    assert code == 0
    assert "Figures need matplotlib, which is not installed" in err
    assert "Figures need matplotlib" in (tmp_path / "evaluation/evaluation.md").read_text()
    assert not (tmp_path / "evaluation/figures").exists()
