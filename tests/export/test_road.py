"""The road of docs/training.md on the embedded model, from a folder of images to a report, by its very commands.

Images are drawn here: the embedded model has learned nothing, so a head on it may not tell real photographs from
generated ones at all, and ``calibrate`` refuses what does not rise with the truth.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from lare2_rt.bundle.opening import open_bundle
from lare2_rt.detection import probability_of_generated
from lare2_rt.tools.datasets.table import read_index
from tests.conftest import ROOT
from tests.helpers.processes import environment

PAGE = (ROOT / "docs/training.md").read_text()
PER_CLASS = 100  # a fifth of it is just what calibration at 5 % needs


def road():
    section = PAGE.split("## The road on the embedded model")[1].split("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    return block.strip().splitlines()


def drawn(folder):
    """Write noise of two kinds: real images coarse and of many shapes, generated ones fine and square."""
    draw = np.random.default_rng(0)
    for number in range(PER_CLASS):
        for kind, step, size in (("real", 8, (264 + number, 272)), ("fake/noise", 1, (256, 256))):
            coarse = draw.integers(0, 256, (-(-size[1] // step), -(-size[0] // step), 3), np.uint8)
            pixels = coarse.repeat(step, 0).repeat(step, 1)[: size[1], : size[0]]
            place = folder / kind / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place)


@pytest.fixture(scope="session")
def walked(once):
    """(folder, what each command said) after every line of the road; outputs of commands by their first words."""

    def walk(folder):
        drawn(folder / "photos")
        (folder / "export").mkdir()
        shutil.copy(ROOT / "export/build_engines.py", folder / "export/build_engines.py")
        said = {}
        for line in road():
            program, *arguments = shlex.split(line)
            start = {"python": [sys.executable], "lare2-rt": [sys.executable, "-m", "lare2_rt"]}[program]
            variables = environment(ROOT, ROOT / "export", ROOT / "runtime")
            done = subprocess.run(
                [*start, *arguments], cwd=folder, env=variables, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, (line, done.stdout, done.stderr)
            said[" ".join(line.split()[:3])] = {"out": done.stdout, "err": done.stderr}
        (folder / "said.json").write_text(json.dumps(said))

    folder = once("road", walk)
    return folder, json.loads((folder / "said.json").read_text())


pytestmark = pytest.mark.slow


def test_matched_copies_leak_nothing(walked):
    folder, said = walked
    out = next(done["out"] for name, done in said.items() if name.startswith("lare2-rt audit"))
    before, after = out.split("matched copies:")
    assert "leak: square" in before
    assert "leak:" not in after
    index = read_index(folder / "matched/index.parquet")
    assert {(row.split, row.label) for row in index.rows()} == {
        (s, k) for s in ("train", "val", "test") for k in (0, 1)
    }
    assert not {r.source for r in index.rows() if r.split == "test"} & {
        r.source for r in index.rows() if r.split != "test"
    }


def test_the_head_is_built_for_its_own_lare(walked):
    folder, said = walked
    card, bundle = json.loads((folder / "head/card.json").read_text()), open_bundle(folder / "engines")
    assert card["lare_id"] == bundle.manifest.lare_id
    build = next(done["err"] for name, done in said.items() if "build_engines" in name)
    assert "the head was trained on" not in build
    assert "official script" not in build
    assert bundle.manifest.decision.calibration == "uncalibrated"
    calibrated = open_bundle(folder / "engines-calibrated").manifest
    assert calibrated.decision.calibration == "calibrated"
    assert calibrated.id != bundle.manifest.id
    assert "split val" in calibrated.decision.data


def test_the_bundle_gives_what_training_measured(walked):
    """The card's figures on the test images, in torch, are the report's, but for ties that rounding breaks."""
    folder, _ = walked
    card = json.loads((folder / "head/card.json").read_text())
    found = json.loads((folder / "evaluation/evaluation.json").read_text())
    (model,) = found["models"]
    overall = model["conditions"][0]["overall"]
    for name in ("auc", "average_precision"):
        assert overall["metrics"][name]["value"] == pytest.approx(card["test"]["metrics"][name]["value"], abs=0.01)
    assert (overall["real"], overall["generated"]) == (card["test"]["real"], card["test"]["generated"])
    rule, index = model["decision"], read_index(folder / "matched/index.parquet")
    (path,) = folder.glob("evaluation/scores/*/clean.jsonl")
    logits = {r["sha256"]: r["logits"] for r in map(json.loads, path.read_text().splitlines()[1:])}
    rows = [row for row in index.rows() if row.split == "test"]
    scaled = [
        probability_of_generated(logits[r.sha256], temperature=rule["temperature"], bias=rule["bias"]) for r in rows
    ]
    called = np.array(scaled) >= rule["generated_from"]
    right = metrics.accuracy_score([row.label for row in rows], called)
    assert overall["metrics"]["accuracy_at_calibrated"]["value"] == pytest.approx(right)


def test_the_report_is_whole(walked):
    folder, _ = walked
    text = (folder / "evaluation/evaluation.md").read_text()
    names = re.findall(r"\(figures/([^)]+)\)", text)
    assert {name.split("-")[0].removesuffix(".png") for name in names} == {
        "roc", "reliability", "generators", "corruptions",
    }  # fmt: skip
    for name in names:
        with Image.open(folder / "evaluation/figures" / name) as figure:
            assert min(figure.size) > 200
            assert len(figure.convert("P").getcolors()) > 3
    conditions = json.loads((folder / "evaluation/evaluation.json").read_text())["models"][0]["conditions"]
    assert [condition["name"] for condition in conditions] == ["clean", "jpeg50", "blur2", "half"]
    assert not any(condition["failures"] for condition in conditions)
