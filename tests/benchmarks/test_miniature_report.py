"""The miniature's report: tables, one report beside another, every stage once, and what is committed."""

import json
import re
from dataclasses import replace

import pytest

from benchmarks.miniature import __main__ as miniature
from benchmarks.miniature.compare import compare, in_words
from benchmarks.miniature.photos import read_table, split_groups
from benchmarks.miniature.protocol import FULL, QUICK, SEEN, key_of
from benchmarks.miniature.report import data_facts
from benchmarks.miniature.stages import Work
from benchmarks.render.miniature import AGAIN, MINIATURE
from lare2_ref.sources import open_model_folder
from lare2_rt.errors import UsageError
from tests.conftest import ROOT
from tests.helpers.miniature_sample import assert_tables, sample_report

RESULT = ROOT / "benchmarks/results/miniature.json"
RESULT_AGAIN = ROOT / "benchmarks/results/miniature-again.json"


def test_every_table_renders():
    report = sample_report()
    assert_tables(report)
    assert "| egre | scratch | 0.600 (0.550 to 0.650) |" in MINIATURE["miniature-ablation"](report)
    assert "| lare | — | 0.600" in MINIATURE["miniature-raw"](report)
    assert "| 200 | 0.6000 ± 0.0500 |" in MINIATURE["miniature-timesteps"](report)
    for part in ("why", "noise", "timesteps_trained", "cost"):
        name = f"miniature-{part.replace('_', '-')}"
        assert MINIATURE[name]({**report, part: None}).startswith("*Not measured yet: `python -m benchmarks.miniature")


class TestCompare:
    def changed(self, value):
        report = json.loads(json.dumps(sample_report()))
        report["noise"]["fixed 1"][SEEN]["network"]["value"] = value
        return report

    def test_a_report_is_within_its_own_intervals(self):
        report = sample_report()
        compared = compare(report, report)
        assert compared["outside"] == compared["left_out"] == []
        assert set(compared["parts"]) == set(report) - {"data", "cost"}
        assert compared["parts"]["differences"] == {"figures": 10, "inside": 10, "numbers": 30, "same": 30}
        assert all(part["numbers"] > 0 for part in compared["parts"].values())
        assert "outside" not in in_words(compared)

    @pytest.mark.parametrize(("value", "inside"), [(0.55, 1), (0.65, 1), (0.549, 0), (0.651, 0)])
    def test_a_figure_that_leaves_its_interval_is_named(self, value, inside):
        compared = compare(self.changed(value), sample_report())
        part = compared["parts"]["noise"]
        assert part["figures"] - part["inside"] == 1 - inside
        assert part["numbers"] - part["same"] == 1
        assert compared["outside"] == ([] if inside else [f"noise/fixed 1/{SEEN}/network"])
        assert in_words(compared).count(f"outside: noise/fixed 1/{SEEN}/network") == 1 - inside

    def test_an_interval_reaches_as_far_as_its_own_figure(self):
        assert compare(self.changed(0.7), self.changed(0.7))["outside"] == []
        assert compare(self.changed(0.71), self.changed(0.7))["outside"] == [f"noise/fixed 1/{SEEN}/network"]

    def test_parts_that_one_lacks_are_named(self):
        report = {**sample_report(), "why": None}
        for one, other in ((report, sample_report()), (sample_report(), report)):
            compared = compare(one, other)
            assert compared["left_out"] == ["why"]
            assert in_words(compared).endswith("\n  in one report only: why")
            assert "why" not in compared["parts"]

    def test_a_figure_that_one_lacks_is_refused(self):
        report = self.changed(0.6)
        del report["noise"]["fixed 1"]
        for one, other in ((report, sample_report()), (sample_report(), report)):
            with pytest.raises(UsageError, match="noise has other entries in the two reports"):
                compare(one, other)

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (None, "cannot be read as a report"),
            ("{", "cannot be read as a report"),
            ("[]", "is no report of the miniature"),
            (
                '{"schema": "lare2-rt/miniature/1", "key": "of-others"}',
                r"other photographs \(of-others, and this run is",
            ),
        ],
    )
    def test_another_file_is_refused_before_anything_is_computed(self, tmp_path, monkeypatch, capsys, content, says):
        monkeypatch.setattr(miniature, "report", lambda *a, **k: pytest.fail("computed"))
        if content is not None:
            (tmp_path / "other.json").write_text(content)
        arguments = ["--quick", "--work", str(tmp_path / "work"), "--compare", str(tmp_path / "other.json")]
        assert miniature.main(arguments) == 2
        assert re.search(says, capsys.readouterr().err)


@pytest.mark.slow
def test_every_stage_twice(tmp_path, capsys, monkeypatch):
    """From a clean folder, then from what was kept: the same report; its model folder builds (see test_export).

    Half as many photographs as ``--quick`` takes.
    """
    fewer = replace(QUICK, every=2 * QUICK.every)
    monkeypatch.setattr(miniature, "QUICK", fewer)
    work, out = tmp_path / "work", tmp_path / "report.json"
    arguments = ["--quick", "--work", str(work), "--out", str(out)]
    assert miniature.main([*arguments, "--model", str(tmp_path / "model")]) == 0
    first = json.loads(out.read_text())
    assert set(first["ablation"]) >= {"scratch/lare", "pretrained/egre", "scratch/egre-v7"}
    assert first["cost"] is None
    assert sum(part["photographs"] for part in first["data"]["splits"].values()) == -(-275 // fewer.every)
    assert_tables({**first, "cost": sample_report()["cost"]})
    assert not list(tmp_path.rglob("*.jpg"))
    assert miniature.main([*arguments, "--compare", str(out), "--images", str(tmp_path / "images")]) == 0
    figures = {path.name for path in (tmp_path / "images").iterdir()}
    assert figures == {"miniature-pictures.jpg", "miniature-ablation.svg", "miniature-timesteps.svg"}
    again = json.loads(out.read_text())
    compared = again.pop("compared")
    assert again == first
    assert all(part["same"] == part["numbers"] > 0 for part in compared["parts"].values())
    capsys.readouterr()
    first["ablation"]["scratch/lare"]["real"][SEEN]["auc"] = {"value": 2.0, "low": 2.0, "high": 2.0}
    (tmp_path / "other.json").write_text(json.dumps(first))
    assert miniature.main([*arguments, "--compare", str(tmp_path / "other.json")]) == 1
    assert f"outside: ablation/scratch/lare/real/{SEEN}/auc" in capsys.readouterr().err
    sources = open_model_folder(tmp_path / "model")
    assert sources.demonstration
    assert sources.vae().config.scaling_factor == 1.0
    sources.clip_backbone()
    sources.egre()
    assert miniature.main([*arguments, "--model", str(tmp_path / "model")]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.skipif(not RESULT.exists(), reason="the full run has not been committed")
class TestCommittedReport:
    report = json.loads(RESULT.read_text()) if RESULT.exists() else {}

    def test_it_is_of_this_protocol_and_these_photographs(self):
        assert self.report["protocol"] == json.loads(json.dumps(FULL.facts()))
        rows = read_table()
        of_group = split_groups(rows, FULL)
        assert self.report["key"] == key_of(FULL, {row.sha256: of_group[row.group] for row in rows})

    def test_its_data_are_those_of_the_table(self, tmp_path):
        assert data_facts(Work(tmp_path, FULL, lambda line: None)) == self.report["data"]


@pytest.mark.skipif(not RESULT_AGAIN.exists(), reason="a second run from nothing has not been committed")
class TestSecondRun:
    first = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    again = json.loads(RESULT_AGAIN.read_text()) if RESULT_AGAIN.exists() else {}

    def test_every_figure_lies_within_the_stated_interval(self):
        compared = compare(self.again, self.first)
        assert compared["outside"] == []
        assert compared["left_out"] == []
        assert all(part["inside"] == part["figures"] for part in compared["parts"].values())

    def test_it_says_so_itself(self):
        assert self.again["key"] == self.first["key"]
        assert self.again["data"] == self.first["data"]
        assert self.again["compared"] == compare(self.again, self.first)
        lines = AGAIN["miniature-again"](self.again).splitlines()
        assert len(lines) == 2 + len(self.again["compared"]["parts"])
