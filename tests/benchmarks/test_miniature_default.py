"""The embedded bundle out of the miniature: its lists of pictures, the bound that decides, and what is committed."""

import csv
import itertools
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks.miniature import default as miniature_default
from benchmarks.miniature.protocol import GENERATORS, SEEN
from benchmarks.render.miniature import DEFAULT
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.tools.datasets.build import build_index
from lare2_rt.tools.evaluation.items import select
from tests.conftest import ROOT

RESULT = ROOT / "benchmarks/results/miniature-default.json"


def drawn(split):
    """Two crops of each of three photographs; the validation pictures have no unseen generator."""
    draw = np.random.default_rng(len(split))
    names = ("real", "roundtrip", *(GENERATORS if split == "test" else (SEEN,)))
    first = 0 if split == "test" else 10
    return SimpleNamespace(
        pictures={name: draw.integers(0, 256, (6, 128, 128, 3), np.uint8) for name in names},
        group=np.repeat([first, first + 1, first + 2], 2),
    )


@pytest.fixture
def lists(tmp_path):
    work = SimpleNamespace(sets=drawn)
    written = miniature_default.write_pictures(work, tmp_path / "pictures")
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "pictures").rglob("*.png")}
    assert miniature_default.write_pictures(work, tmp_path / "pictures") == written
    assert {path: path.stat().st_mtime_ns for path in again} == again
    return written


def test_lists_are_what_the_commands_take(lists):
    """Splits, sources and generators as ``lare2-rt`` reads them: no photograph in two splits, every picture twice."""
    index = build_index(lists["all"]).index
    assert not any(index.error)
    test, validation = select(index, "test"), select(index, "val")
    assert test.generators == dict.fromkeys(sorted(GENERATORS), 12)
    assert validation.generators == {SEEN: 12}
    assert (~test.generated).sum() == 2 * 12
    assert not {item.source for item in test.items} & {item.source for item in validation.items}
    assert len({item.source for item in test.items}) == 3
    assert {tuple(size) for size in zip(index.width, index.height, strict=True)} == {(128, 128), (256, 256)}


def test_pictures_are_kept_exactly(lists):
    path = lists["all"].parent / "test/real/0003-128.png"
    assert np.array_equal(np.asarray(Image.open(path)), drawn("test").pictures["real"][3])


def test_kinds_of_real_pictures(lists):
    for kind, names in miniature_default.LISTS.items():
        with lists[kind].open(newline="") as stream:
            folders = {row["path"].split("/")[1] for row in csv.DictReader(stream) if row["split"] == "test"}
        assert folders == set(names), kind


class Commands:
    """Stands for the commands that ``judge`` runs: notes them, and writes what they would."""

    def __init__(self, low):
        self.low, self.lines = low, []

    def __call__(self, *words):
        words = [str(word) for word in words]
        self.lines.append(words)
        after = dict(itertools.pairwise(words))
        if "--model" in words or "calibrate" in words:
            (out := Path(after["--out"])).mkdir()
            (out / "manifest.json").write_text("calibrated" if "calibrate" in words else "built")
        if "calibrate" in words:
            Path(after["--report"]).write_text('{"auc": 0.7}')
        if "evaluate" in words:
            area = {"value": 0.7, "low": self.low, "high": 0.8}
            clean = {"overall": {"metrics": {"auc": area, "ece": area, "brier": area}}, "generators": {}}
            model = {"bundle": {}, "decision": {}, "conditions": [clean]}
            (out := Path(after["--out"])).mkdir(exist_ok=True)
            models = [model] * words.count("--bundle")
            (out / "evaluation.json").write_text(json.dumps({"data": {}, "models": models}))


@pytest.mark.parametrize(("low", "ships"), [(0.61, "calibrated"), (0.6, "built"), (0.4, "built")])
def test_the_bound_decides_what_ships(tmp_path, monkeypatch, low, ships):
    commands = Commands(low)
    monkeypatch.setattr(miniature_default, "_run", commands)
    lists = dict.fromkeys(miniature_default.LISTS, tmp_path / "list.csv")
    found = miniature_default.judge(lists, tmp_path / "model", tmp_path / "out", tmp_path, also=tmp_path / "also.csv")
    assert (tmp_path / "out/manifest.json").read_text() == ships
    assert found["decision"] == {"bound": 0.6, "auc_low": low, "ships_calibrated": ships == "calibrated"}
    assert set(found["held_out"]) == set(miniature_default.LISTS)
    assert set(found["held_out"]["as calibrated"]["before"]["metrics"]) == {"auc", "ece"}
    assert "before" not in found["held_out"]["all"]
    assert "before" not in found["elsewhere"]
    # Nothing is fitted on what judges: calibration takes its default split, which is the validation pictures.
    (calibrate,) = [line for line in commands.lines if "calibrate" in line]
    assert "--split" not in calibrate
    assert commands.lines[-1][-2:] == ["--split", "test"]


@pytest.mark.parametrize("failing", ["build_engines.py", "lare2-rt calibrate", "lare2-rt evaluate"])
def test_a_command_that_fails_ends_it_in_one_line(tmp_path, monkeypatch, capsys, failing):
    commands = Commands(0.7)

    def run(line, **options):
        failed = failing.split()[-1] in " ".join(line)
        if not failed:
            commands(*line[1:])
        return subprocess.CompletedProcess(line, 2 if failed else 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(
        miniature_default, "write_pictures", lambda work, folder: dict.fromkeys(["as calibrated"], folder)
    )
    arguments = ["--work", str(tmp_path), "--model", str(tmp_path / "m"), "--out", str(tmp_path / "o"), "--quick"]
    assert miniature_default.main(arguments) == 2
    assert capsys.readouterr().err == f"miniature_default: stopped by {failing}, exit code 2\n"
    (tmp_path / "o").mkdir()
    assert miniature_default.main(arguments) == 2
    assert "exists already" in capsys.readouterr().err


class TestCommitted:
    report = json.loads(RESULT.read_text())

    def test_the_embedded_bundle_is_the_one_that_was_judged(self, embedded):
        manifest = open_bundle(embedded).manifest
        judged = self.report["held_out"]["as calibrated"]["after" if self.ships else "before"]
        assert manifest.id == judged["bundle"]["id"]
        assert manifest.decision.demonstration
        assert manifest.decision.calibration == ("calibrated" if self.ships else "uncalibrated")
        assert manifest.decision.real_below == judged["decision"]["real_below"]
        assert manifest.decision.generated_from == judged["decision"]["generated_from"]
        assert manifest.rule.temperature == judged["decision"]["temperature"]
        assert manifest.rule.bias == judged["decision"]["bias"]

    def test_the_bound_was_kept(self):
        low = self.report["held_out"]["all"]["after"]["metrics"]["auc"]["low"]
        assert self.ships == (low > miniature_default.BOUND)

    def test_every_table_renders(self):
        for name, render in DEFAULT.items():
            lines = render(self.report).splitlines()
            assert len(lines) > 2, name
            assert len({line.count("|") for line in lines}) == 1, name

    @property
    def ships(self):
        return self.report["decision"]["ships_calibrated"]
