"""The throughput benchmark: turns, figures, memory, rows that break, resuming, and the tables made of reports."""

import copy
import json
import math
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import fidelity  # noqa: E402
import render_components  # noqa: E402
import render_markdown  # noqa: E402
import render_profile  # noqa: E402
import render_tables  # noqa: E402
import throughput  # noqa: E402
import throughput_session  # noqa: E402
from throughput_blocks import block_of, blocks_of_nodes, in_order  # noqa: E402
from throughput_builds import Builder  # noqa: E402
from throughput_measure import compare  # noqa: E402
from throughput_memory import Footprint, Watch, refusal  # noqa: E402
from throughput_options import Options, parse  # noqa: E402
from throughput_process import FailedError, RefusedError, Resident  # noqa: E402
from throughput_rows import BUILDS, REFERENCE, ROWS, Build, Row  # noqa: E402
from throughput_setup import Setup  # noqa: E402
from throughput_turns import Schedule, Turn, percentiles, strayed, summary, take_turns  # noqa: E402

from lare2_rt.detection import DecisionRule  # noqa: E402
from lare2_rt.errors import UsageError  # noqa: E402

FAKES = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
FAKE_BUILDS = {"reference": Build("fake_rows:prepare", ())}


def silent(line):
    pass


class Script:
    """Two techniques whose times are written down beforehand; keeps who was asked for what, in order."""

    def __init__(self, reference, candidate):
        self.times = {"r": list(reference), "c": list(candidate)}
        self.asked = []

    def player(self, who):
        def play(image):
            self.asked.append((who, image))
            return Turn(self.times[who].pop(0), 0.001)

        return play

    def run(self, schedule):
        return take_turns(self.player("r"), self.player("c"), schedule, progress=lambda steady, played: None)


class TestTurns:
    def test_starter_and_images_alternate(self):
        script = Script([1.0] * 4, [0.5] * 4)
        rounds = script.run(Schedule(rounds=4, images=2))
        assert script.asked == [
            ("r", 0), ("c", 0), ("c", 1), ("r", 1), ("r", 0), ("c", 0), ("c", 1), ("r", 1)
        ]  # fmt: skip
        assert [r.reference_first for r in rounds] == [True, False, True, False]

    def test_a_strayed_round_is_repeated_on_its_own_image(self):
        script = Script([1.0, 1.3, 1.0, 1.05], [0.5, 5.0, 0.5, 0.5])
        schedule = Schedule(rounds=3, images=3)
        rounds = script.run(schedule)
        assert [r.image for r in rounds] == [0, 1, 1, 2]
        assert strayed(rounds, 0.1) == [False, True, False, False]
        figures = summary(rounds, schedule)
        assert figures["latency_ms"]["p99"] == 500  # what the disturbance did to the candidate does not count either
        assert figures["rounds"] == {"wanted": 3, "steady": 3, "strayed": 1, "tolerance": 0.1}
        assert [r["strayed"] for r in figures["raw"]] == [False, True, False, False]

    def test_a_candidate_cannot_lose_its_slow_rounds(self):
        schedule = Schedule(rounds=3, images=1)
        rounds = Script([1.0] * 3, [0.5, 5.0, 0.5]).run(schedule)
        assert len(rounds) == 3
        assert summary(rounds, schedule)["latency_ms"]["p99"] > 4900

    def test_repeats_are_bounded_and_something_is_left(self):
        schedule = Schedule(rounds=2, images=2, repeats=3)
        rounds = Script([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], [1.0] * 6).run(schedule)
        assert len(rounds) == 5
        assert summary(rounds, schedule)["rounds"]["steady"] == 1

    def test_tolerance_is_a_share_of_the_median(self):
        rounds = Script([1.0, 1.0, 1.099, 0.901, 1.11, 0.89], [1.0] * 6).run(Schedule(rounds=6, images=1, repeats=0))
        assert strayed(rounds, 0.1) == [False, False, False, False, True, True]


class TestFigures:
    def test_percentiles_interpolate(self):
        times = [0.001 * n for n in (5, 1, 2, 4, 3)]
        assert percentiles(times) == pytest.approx({"p50": 3.0, "p90": 4.6, "p99": 4.96})

    def test_speedup_is_the_median_of_ratios(self):
        schedule = Schedule(rounds=3, images=1, tolerance=10)
        figures = summary(Script([3.0, 1.0, 8.0], [1.0, 1.0, 2.0]).run(schedule), schedule, batch=2)
        assert figures["speedup"] == 3  # ratios 3, 1, 4; the ratio of the medians would be 3/1 too but for the next
        assert figures["speedup_range"] == [1, 4]
        assert figures["latency_ms"]["p50"] == 1000
        assert figures["reference_latency_ms"]["p50"] == 3000
        assert figures["images_per_second"] == 2
        uneven = summary(Script([2.0, 4.0, 9.0], [1.0, 4.0, 3.0]).run(schedule), schedule)
        assert uneven["speedup"] == 2
        assert uneven["reference_latency_ms"]["p50"] / uneven["latency_ms"]["p50"] == pytest.approx(4 / 3)

    def test_components_are_compared_within_their_round(self):
        schedule = Schedule(rounds=3, images=1, tolerance=10)
        turns = {"r": [(2.0, 1.0), (4.0, 2.0), (3.0, 6.0)], "c": [(1.0, 0.5), (1.0, 4.0), (1.0, 2.0)]}

        def player(who):
            def play(image):
                vae, unet = turns[who].pop(0)
                return Turn(10.0, 0.0, {"vae_encoder": vae, "unet_step": unet} | ({"other": 1.0} if who == "c" else {}))

            return play

        rounds = take_turns(player("r"), player("c"), schedule, progress=lambda *_: None)
        found = summary(rounds, schedule)["components"]
        assert found == {
            "vae_encoder": {"p50_ms": 1000.0, "reference_p50_ms": 3000.0, "speedup": 3.0},
            "unet_step": {"p50_ms": 2000.0, "reference_p50_ms": 2000.0, "speedup": 2.0},
        }

    def test_idle_share_belongs_to_the_one_that_rests(self):
        schedule = Schedule(rounds=1, images=1)
        rounds = take_turns(
            lambda image: Turn(2.0, 0.5), lambda image: Turn(1.0, 0.1), schedule, progress=lambda *_: None
        )
        assert summary(rounds, schedule)["idle_cpu_share"] == {"reference": 0.1, "candidate": 0.25}

    def test_fidelity_is_the_worst_image(self):
        truth = [{name: np.ones((1, 2)) for name in ("latent", "lare", "logits", "noise_prediction")} for _ in range(2)]
        ours = copy.deepcopy(truth)
        ours[1]["lare"][0, 0] = 1.5
        ours[1]["logits"][0] = (1.0, 1.25)
        del ours[0]["noise_prediction"], ours[1]["noise_prediction"]
        entry = compare(ours, truth, 0.5)
        assert entry["latent"]["worst_relative_l2"] == 0
        assert entry["lare"]["worst_relative_l2"] == pytest.approx(0.5 / 2**0.5)
        assert entry["lare"]["max_abs"] == 0.5
        assert entry["noise_prediction"] is None
        assert entry["logit"] == {"max_difference": 0.25, "over_standard_deviation": 0.5, "standard_deviation": 0.5}

    def test_broken_arrays_stay_valid_json(self):
        truth = [{name: np.ones((1, 2)) for name in ("lare", "logits")}]
        entry = compare([{name: np.full((1, 2), np.nan) for name in ("lare", "logits")}], truth, 0.5)
        assert entry["lare"] == {"worst_relative_l2": None, "max_abs": None, "not_finite": 2}
        json.dumps(entry, allow_nan=False)


class TestMemory:
    def test_refused_before_the_start_with_numbers_and_remedy(self):
        weights = 3_500_000_000
        reference, candidate = Footprint(1e9, 1.2).bytes(weights), Footprint(1e9, 2.6).bytes(weights)
        assert (reference, candidate) == (5_200_000_000, 10_100_000_000)
        assert refusal(reference, candidate, limit=20_000_000_000, available=16_000_000_000) is None
        tight = refusal(reference, candidate, limit=15_000_000_000, available=16_000_000_000)
        assert "10.1 GB beside the reference's 5.2 GB" in tight
        assert "limit of 15.0 GB; raise --memory" in tight
        full = refusal(reference, candidate, limit=20_000_000_000, available=12_000_000_000)
        assert "what is free of 12.0 GB; close other programs" in full

    def test_watch_calls_once_when_the_sum_passes(self):
        class Process:
            def __init__(self, *sizes):
                self.sizes = list(sizes)

            def resident_bytes(self):
                return self.sizes.pop(0) if len(self.sizes) > 1 else self.sizes[0]

        calls = []
        with Watch((Process(5), Process(1, 6, 7, 2)), 10, lambda: calls.append(1)) as watch:
            watch._ended.wait(1.2)
        assert (calls, watch.peak, watch.passed) == ([1], 12, True)


class TestRows:
    def test_every_row_is_in_the_docs_and_in_the_help(self, capsys):
        page = (ROOT / "docs/cpu.md").read_text()
        with pytest.raises(SystemExit):
            parse(["--help"])
        shown = capsys.readouterr().out
        for row in ROWS:
            assert f"`{row.name}`" in page
            assert re.search(rf"^  {re.escape(row.name)} +\S", shown, re.MULTILINE)

    def test_rows_and_builds_are_whole(self):
        names = [row.name for row in ROWS]
        assert len(set(names)) == len(names)
        assert names[0] == REFERENCE
        for row in ROWS:
            assert row.title
            assert row.stands_for
            assert set(row.needs) <= set(BUILDS)
        for function in [row.opener for row in ROWS] + [build.function for build in BUILDS.values()]:
            module, name = function.split(":")
            assert f"\ndef {name}(setup: Setup" in (BENCHMARKS / f"{module}.py").read_text(), function
        for build in BUILDS.values():
            assert set(build.needs) <= set(BUILDS)

    def test_every_build_is_needed(self):
        needed = {need for row in ROWS for need in row.needs}
        needed |= {need for build in BUILDS.values() for need in build.needs}
        assert set(BUILDS) == needed | {"reference"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rows", "eager,tensorrt"], "no row 'tensorrt'; rows are eager, "),
        (["--threads", "0"], "--threads must lie between 1 and"),
        (["--rounds", "0"], "must be positive"),
        (["--memory", "nan"], "must be positive"),
        (["--images", "nowhere"], "nowhere is not a folder"),
        (["--model", "nowhere"], "nowhere is not a model folder"),
    ],
)
def test_wrong_options_are_one_sentence(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert throughput.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def fake_row(name, kind="peer"):
    return Row(name, kind, f"{name} row", "a test", f"fake_rows:{name}", (), ("lare2_ref",), Footprint(1e6, 0))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, embedded, photos):
    """A work folder whose fake reference is prepared, for tests to copy."""
    work = tmp_path_factory.mktemp("throughput") / "work"
    work.mkdir()
    setup = Setup("fake", True, str(embedded), str(work), 1, tuple(str(p) for p in photos[:2]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", FAKES)
        identity = throughput_session.identity_of(setup)
        Builder(setup, FAKE_BUILDS, identity=identity, report=silent).get("reference")
    return setup


@pytest.fixture
def fake_setup(prepared, tmp_path, monkeypatch):
    """A setup whose reference is a fake too, so that whole runs take seconds and no torch."""
    monkeypatch.setenv("PYTHONPATH", FAKES)
    reference = replace(fake_row("good", "reference"), name=REFERENCE)
    monkeypatch.setattr(throughput_session, "ROWS", (reference,))
    monkeypatch.setattr(throughput_session, "BUILDS", FAKE_BUILDS)
    monkeypatch.setattr(throughput_session.Session, "_probe", lambda self: {"numpy": 2.0, "torch": 4.0})
    work = shutil.copytree(prepared.work, tmp_path / "work")
    return replace(prepared, work=str(work))


def options(setup, *names, limit=20_000_000_000, fresh=False, rounds=2):
    schedule = Schedule(rounds=rounds, images=2, repeats=1, tolerance=3, settle=0.01)
    rows = tuple(fake_row(name) for name in names)
    return Options(setup=setup, schedule=schedule, rows=rows, limit=limit, fresh=fresh, profile=False, out=None)


def session(setup, *names, report=silent, **changes):
    return throughput_session.Session(options(setup, *names, **changes), report).run()


class TestSession:
    def test_a_row_that_breaks_is_a_row_with_its_reason(self, fake_setup):
        report = session(fake_setup, "exits", "killed", "raises", "refuses", "wrong", "spins", "good")
        rows = {row["name"]: row for row in report["rows"]}
        assert [row["status"] for row in report["rows"]] == [
            "failed", "failed", "failed", "not usable", "measured", "measured", "measured"
        ]  # fmt: skip
        assert "ended with exit code 7 after writing 'the library says goodbye'" in rows["exits"]["reason"]
        assert "was killed, probably for lack of memory" in rows["killed"]["reason"]
        assert "ValueError: no such operator; the trace is in logs/raises.log" in rows["raises"]["reason"]
        assert "ValueError: no such operator" in (Path(fake_setup.work) / "logs/raises.log").read_text()
        assert rows["refuses"]["reason"] == "the fake engine is not installed: pip install fake"
        assert rows["wrong"]["fidelity"]["lare"]["worst_relative_l2"] is None
        assert rows["wrong"]["speedup"] > 1.2
        assert rows["good"]["fidelity"]["lare"]["worst_relative_l2"] == 0
        assert rows["good"]["settings"] == {"engine": "fake"}
        assert 30 < rows["good"]["components"]["unet_step"]["p50_ms"] < rows["good"]["latency_ms"]["p90"] + 1
        assert rows["good"]["load_s"] is not None
        assert 5e6 < rows["good"]["memory"]["peak_bytes"] < 1e9
        seconds = rows["good"]["latency_ms"]["p50"] / 1e3
        assert rows["good"]["gflops"] == pytest.approx(2e-3 / seconds)
        assert rows["good"]["share_of_peak"] == pytest.approx(2e-3 / seconds / 4)
        assert report["peak_gflops"] == 4
        # A library whose threads never sleep takes the CPU from the other process, and shows.
        assert rows["spins"]["idle_cpu_share"]["candidate"] > 0.03
        assert rows["good"]["idle_cpu_share"]["candidate"] < 0.02
        assert "`spins` ‡" in render_markdown.speed_table(report)
        assert "`good` ‡" not in render_markdown.speed_table(report)
        json.dumps(report, allow_nan=False)
        assert str(Path.home()) not in json.dumps(report)
        assert fake_setup.work not in json.dumps(report)

    def test_memory_is_refused_before_and_ended_during(self, fake_setup):
        (row,) = session(fake_setup, "good", limit=1_000_000)["rows"]
        assert row["status"] == "not usable"
        assert "raise --memory" in row["reason"]
        hungry, good = session(fake_setup, "hungry", "good", limit=350_000_000)["rows"]
        assert hungry["status"] == "failed"
        assert "passed the limit of 0.3 GB" in hungry["reason"] or "passed the limit of 0.4 GB" in hungry["reason"]
        assert good["status"] == "measured"

    def test_what_is_finished_is_found_again(self, fake_setup):
        def interrupt(line):
            if line.startswith("wrong"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            session(fake_setup, "raises", "good", "wrong", report=interrupt)
        lines = []
        report = session(fake_setup, "raises", "good", "wrong", report=lines.append)
        assert [row["status"] for row in report["rows"]] == ["failed", "measured", "measured"]
        assert "good: measured by an earlier run with the same configuration" in lines
        assert "raises: loading" in lines  # a failure is tried again
        assert len({row["session"] for row in report["rows"][1:]}) == 2 == len(report["sessions"])
        lines.clear()
        again = session(fake_setup, "good", "wrong", report=lines.append)
        assert not any("loading" in line or "opening" in line for line in lines)
        assert again["rows"] == report["rows"][1:]
        fresh = session(fake_setup, "good", fresh=True)["rows"][0]
        assert fresh["raw"] != report["rows"][1]["raw"]

    def test_a_changed_setting_is_another_configuration(self, fake_setup):
        first, other = (throughput_session.Session(options(fake_setup, "good", rounds=n), silent) for n in (2, 3))
        assert first._key(fake_row("good")) != other._key(fake_row("good"))
        more_memory = throughput_session.Session(options(fake_setup, "good", limit=30_000_000_000), silent)
        assert more_memory._key(fake_row("good")) == first._key(fake_row("good"))


class TestBuilds:
    def builder(self, setup, builds, identity="a", fresh=False):
        return Builder(setup, builds, identity=identity, report=silent, fresh=fresh)

    def test_made_once_and_again_when_anything_decisive_changes(self, fake_setup):
        builds = {
            "one": Build("fake_rows:count", (), arguments=("one",)),
            "two": Build("fake_rows:count", (), arguments=("two",), needs=("one",)),
        }
        count = lambda name: len((Path(fake_setup.work) / f"{name}.count").read_text().split())  # noqa: E731
        assert self.builder(fake_setup, builds).get("two").result == {"name": "two"}
        assert list(self.builder(fake_setup, builds).all_of(["two"])) == ["one", "two"]
        assert self.builder(fake_setup, builds).get("two").result == {"name": "two"}
        assert (count("one"), count("two")) == (1, 1)
        (Path(fake_setup.work) / "one.done.json").unlink()  # as after a kill
        self.builder(fake_setup, builds).get("two")
        assert (count("one"), count("two")) == (2, 1)
        self.builder(fake_setup, builds, identity="b").get("two")
        assert (count("one"), count("two")) == (3, 2)
        self.builder(fake_setup, builds, identity="b", fresh=True).get("one")
        assert (count("one"), count("two")) == (4, 2)

    def test_a_failure_is_remembered_within_a_run(self, fake_setup):
        builder = self.builder(fake_setup, {"bad": Build("fake_rows:fail", ())})
        with pytest.raises(FailedError, match=r"build-bad failed: RuntimeError: the exporter gave up") as first:
            builder.get("bad")
        with pytest.raises(FailedError) as second:
            builder.get("bad")
        assert second.value is first.value

    def test_a_missing_library_is_a_refusal(self, fake_setup):
        build = Build("fake_rows:count", (), arguments=("one",), imports=("no_such_library",))
        with pytest.raises(RefusedError, match="no_such_library is not installed"):
            self.builder(fake_setup, {"one": build}).get("one")


def test_a_worker_ends_with_its_parent(fake_setup, tmp_path):
    code = (
        "import os, pathlib, sys; from throughput_process import Resident\n"
        f"worker = Resident('orphan', pathlib.Path({str(tmp_path)!r}), {{}})\n"
        "print(worker._process.pid, flush=True); os._exit(0)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{BENCHMARKS}{os.pathsep}{os.environ['PYTHONPATH']}"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    status = Path(f"/proc/{run.stdout.strip()}/status")
    with Resident("waiting", tmp_path, {}) as waiting:  # takes as long as the orphan would take to start
        waiting.ask("call", "throughput_probe:now", (), ())
    assert not status.exists() or "zombie" in status.read_text()


@pytest.mark.slow
def test_eager_and_onnxruntime_end_to_end(tmp_path):
    """The real thing on mini: two rows, two rounds, in the command's own process."""
    out = tmp_path / "report.json"
    command = [sys.executable, BENCHMARKS / "throughput.py", "--rows", "eager,onnxruntime", "--rounds", "2"]
    command += ["--limit", "2", "--work", tmp_path / "work", "--out", out]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert run.returncode == 0, run.stderr
    report = json.loads(out.read_text())
    eager, ours = report["rows"]
    assert (report["schema"], report["model"]) == ("lare2-rt/throughput/1", "mini")
    assert (eager["status"], ours["status"]) == ("measured", "measured")
    # Rounding, and no more: the same weights, noise and pixels went through both.
    assert 0 < ours["fidelity"]["lare"]["worst_relative_l2"] < 3e-5
    for name, limit in (("latent", 3e-5), ("noise_prediction", 3e-5), ("embedding", 3e-5)):
        assert 0 < ours["fidelity"][name]["worst_relative_l2"] < limit, name
        assert 0 <= eager["fidelity"][name]["worst_relative_l2"] < limit, name
    assert ours["fidelity"]["noise_prediction"]["graph_differs_by"] < 1e-6
    assert ours["builds"] == {}  # what only measures is no cost of the row
    assert ours["fidelity"]["logit"]["over_standard_deviation"] < 1e-2
    assert 0 < ours["share_of_peak"] < 1
    assert sum(report["flop"].values()) > 6e9
    assert set(report["layout"]) == {"vae", "unet", "clip"}
    assert len(report["sessions"]) == 1
    assert set(report["sessions"][0]["probes"]) == {"start", "end"}
    assert eager["memory"]["sum_peak_bytes"] > eager["memory"]["peak_bytes"] > 2e8
    lines = run.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["eager", "onnxruntime"]
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert again.returncode == 0
    assert again.stderr.count("measured by an earlier run with the same configuration") == 2
    assert json.loads(out.read_text())["rows"] == report["rows"]
    assert render_markdown.readme_table(report).count("\n| ") == 3


@pytest.mark.slow
def test_every_row_computes_the_same(tmp_path):
    """All rows on mini: whatever is usable here agrees with the reference to rounding."""
    out = tmp_path / "report.json"
    command = [sys.executable, BENCHMARKS / "throughput.py", "--rounds", "1", "--limit", "2"]
    run = subprocess.run([*command, "--work", tmp_path, "--out", out], capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stderr
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    for row in rows.values():
        if row["status"] == "measured":
            assert row["fidelity"]["lare"]["worst_relative_l2"] < 1e-3, row["name"]
            assert row["fidelity"]["logit"]["over_standard_deviation"] < 1e-2, row["name"]
        if row["status"] == "measured" and row["name"] in ("onnxruntime", "openvino", "mnn", "staged"):
            for name in ("latent", "noise_prediction", "embedding"):
                assert 0 < row["fidelity"][name]["worst_relative_l2"] < 3e-4, (row["name"], name)
            assert row["fidelity"]["noise_prediction"]["graph_differs_by"] < 1e-4, row["name"]
    for name in ("eager-accurate", "eager-official", "torch-compile", "onnxruntime-plain", "onnxruntime-chain"):
        assert rows[name]["status"] == "measured", rows[name]
    # Fresh noise for every image: what the timed runs compute is not what the fidelity run computes.
    assert rows["eager-official"]["settings"]["noise"].startswith("drawn")


@pytest.mark.slow
def test_profile_end_to_end(tmp_path):
    out = tmp_path / "profile.json"
    command = [sys.executable, BENCHMARKS / "throughput.py", "--profile", "--work", tmp_path, "--out", out]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stderr
    report = json.loads(out.read_text())
    assert [(s["ensemble"], s["batch"]) for s in report["sizes"] if s["engine"] == "eager"] == [
        (1, 1), (2, 1), (4, 1), (4, 2), (4, 4), (8, 1)
    ]  # fmt: skip
    for name in ("eager", "onnxruntime"):
        assert {"conv_in", "mid_block.attentions.0", "up_blocks.3.resnets.1"} <= set(report["parts"][name]["blocks"])
    for part in report["parts"].values():
        assert [len(times) for times in part["components"].values()] == [3] * 4
    assert report["parts"]["onnxruntime"]["named_share"] > 0.5
    assert report["parts"]["winograd"]["named_share"] > 0.5
    assert "down_blocks.0.resnets.0" in report["parts"]["winograd"]["blocks"]
    assert report["parts"]["winograd"]["layers"]
    for render in render_profile.PROFILE.values():
        assert render(report).startswith("| ")


class TestBlocks:
    @pytest.mark.parametrize(
        ("layer", "block"),
        [
            ("unet.down_blocks.0.resnets.1.conv1/Conv", "down_blocks.0.resnets.1"),
            ("up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_q", "up_blocks.3.attentions.2"),
            ("mid_block.attentions.0", "mid_block.attentions.0"),
            ("unet.up_blocks.1.upsamplers.0/Resize.2", "up_blocks.1.upsamplers.0"),
            ("unet.conv_in/Conv", "conv_in"),
            ("down_blocks.0", None),
            ("unet.time_embedding.linear_1/Gemm", None),
            ("graph/Mul.2", None),
        ],
    )
    def test_names(self, layer, block):
        assert block_of(layer) == block

    def test_order_is_the_datas(self):
        blocks = ["other", "up_blocks.0.upsamplers.0", "conv_out", "up_blocks.0.resnets.1", "up_blocks.0.attentions.0"]
        blocks += ["mid_block.resnets.0", "down_blocks.10.resnets.0", "down_blocks.2.resnets.0", "conv_in"]
        assert in_order(blocks) == [
            "conv_in", "down_blocks.2.resnets.0", "down_blocks.10.resnets.0", "mid_block.resnets.0",
            "up_blocks.0.attentions.0", "up_blocks.0.resnets.1", "up_blocks.0.upsamplers.0", "conv_out", "other",
        ]  # fmt: skip

    def test_made_up_nodes_count_for_their_neighbours(self):
        layers = {"conv2d_1": "unet.down_blocks.0.resnets.0.conv1/Conv"}
        names = [
            ("graph/Mul", "Mul"), ("ReorderInput", "ReorderInput"), ("conv2d_1_nchwc", "Conv"),
            ("ReorderOutput_token_1", "ReorderOutput"), ("unet.mid_block.resnets.0.norm1/Reshape", "Reshape"),
            ("Transpose_7", "Transpose"), ("ReorderInput_2", "ReorderInput"), ("unet.conv_out/Conv", "Conv"),
        ]  # fmt: skip
        nodes = [{"name": name, "op": op} for name, op in names]
        first = "down_blocks.0.resnets.0"
        middle = "mid_block.resnets.0"
        assert blocks_of_nodes(nodes, layers) == [
            "other", first, first, first, middle, middle, "conv_out", "conv_out"
        ]  # fmt: skip


def measured_row(name, kind, **changes):
    row = {
        "name": name, "kind": kind, "title": "t", "stands_for": "s", "status": "measured", "session": "2026-11-24T10",
        "builds": {}, "import_s": 1.0, "load_s": 2.0, "first_run_s": 9.5, "settings": {}, "same_bits_again": True,
        "latency_ms": {"p50": 9123.4, "p90": 9200.0, "p99": 9300.0}, "reference_latency_ms": {"p50": 9124.0},
        "images_per_second": 0.1096, "speedup": 1.0, "speedup_range": [0.99, 1.01], "gflops": 110.2,
        "share_of_peak": 0.594, "rounds": {"wanted": 8, "steady": 8, "strayed": 0, "tolerance": 0.1},
        "idle_cpu_share": {"reference": 0.0, "candidate": 0.001},
        "memory": {"peak_bytes": 5.2e9, "resident_bytes": 4.9e9},
        "components": {"vae_encoder": {"p50_ms": 1640.0, "reference_p50_ms": 2470.0, "speedup": 1.506}},
        "fidelity": {
            "latent": {"worst_relative_l2": 1.1e-6, "max_abs": 1e-5}, "noise_prediction": None,
            "embedding": {"worst_relative_l2": 4e-7, "max_abs": 1e-6},
            "lare": {"worst_relative_l2": 3.14e-6, "max_abs": 2e-5},
            "logit": {"max_difference": 3e-6, "over_standard_deviation": 1.2e-5},
        },
    }  # fmt: skip
    return {**row, **changes}


def sample_report():
    ours = measured_row(
        "mnn", "ours", latency_ms={"p50": 5800.0, "p90": 5900.0, "p99": 5950.0}, speedup=1.573, share_of_peak=0.934,
        rounds={"wanted": 8, "steady": 6, "strayed": 10, "tolerance": 0.1},
        idle_cpu_share={"reference": 0.0, "candidate": 0.05},
        builds={"a": {"seconds": 100.4, "peak_bytes": 8e9}, "b": {"seconds": 20.0, "peak_bytes": 1e9}},
    )  # fmt: skip
    missing = {
        "name": "openvino", "kind": "ours", "title": "t", "stands_for": "s", "status": "not usable",
        "reason": "openvino is not installed: pip install 'a|b'",
    }  # fmt: skip
    return {
        "schema": "lare2-rt/throughput/1", "model": "synthetic-sd15", "peak_gflops": 185.4, "images": ["a"] * 4,
        "machine": {"cpu": "CPU X", "architecture": "x86_64", "threads": 2, "memory_gb": 25.3, "system": "Linux",
                    "python": "3.12.0"},
        "method": {"image_size": 256, "ensemble": 4, "batch": 1, "crop_size": 224, "timestep": 200},
        "settings": {"rounds": 8, "images": 4}, "packages": {"torch": "2.14.1", "numpy": "2.4.6"},
        "flop": {"vae_encoder": 272_722_165_760, "unet_step": 720_425_779_200},
        "layout": {"vae": "channels_last"},
        "layout_s": {"vae": {"contiguous": [2.5, 2.47], "channels_last": [2.33]}}, "logit_standard_deviation": 0.25,
        "sessions": [{"started": {"time": "2026-11-24T10", "load_average": [0.1, 0.2, 0.3]},
                      "probes": {"start": {"numpy": 180.0, "torch": 185.4}, "end": {"numpy": 181.0, "torch": 184.0}}}],
        "rows": [measured_row("eager", "reference"), ours, missing],
    }  # fmt: skip


def sample_profile():
    """As of a machine with onnxruntime and mnn: what tells its blocks, and what tells components alone."""
    components = {"vae_encoder": [2.0, 2.1, 2.2], "unet_step": [4.0, 4.1, 4.2]}
    graphs = {"components": components, "blocks": {"conv_in": 0.01, "other": 0.02}, "named_share": 0.9,
              "operators": {"Conv": 0.02, "Add": 0.01}}  # fmt: skip
    flop = {"vae_encoder": 300_000_000_000, "unet_step": 700_000_000_000}
    return {
        "flop": flop, "peak_gflops": 185.4,
        "parts": {
            "eager": {"components": components, "blocks": {"conv_in": [0.02, 0.03, 0.04], "other": [0.1, 0.2, 0.3]}},
            "onnxruntime": {**graphs, "winograd_flop": {name: count // 2 for name, count in flop.items()}},
            "mnn": {"components": components},
        },
        "sizes": [
            {"engine": engine, "ensemble": draws, "batch": 1, "seconds": [draws * 1.0] * 3, "peak_bytes": 5e9}
            for draws in (4, 1) for engine in ("eager", "onnxruntime")
        ],
    }  # fmt: skip


def sample_fidelity():
    report = sample_report()
    shared = {name: report[name] for name in ("model", "images", "machine", "packages", "logit_standard_deviation")}
    faithful = {"fidelity": report["rows"][0]["fidelity"], "flips": None, "passed": True}
    engines = {"onnxruntime": faithful, "mnn": {"reason": "a|b"}, "staged": {**faithful, "flips": 3, "passed": False}}
    limits = {"latent": 3e-4, "noise_prediction": 3e-4, "lare": 1e-3, "logit": 1e-2}
    return {**shared, "limits": limits, "engines": engines}


README_TABLE = """\
| row | ms an image | against eager | of peak | peak memory | LaRE error | logit error |
| --- | --: | --: | --: | --: | --: | --: |
| `eager` | 9123 | 1.00 × | 59 % | 5.2 GB | 3.1e-6 | 1.2e-5 σ |
| **`mnn` †‡** | 5800 | 1.57 × | 93 % | 5.2 GB | 3.1e-6 | 1.2e-5 σ |
| **`openvino`** | — | — | — | — | — | — |

- † `mnn`: the machine was disturbed, only 6 of 8 rounds were steady
- ‡ `mnn`: the resting process used the CPU (reference 0.0 %, candidate 5.0 % of one core)
- `openvino`: not usable: openvino is not installed: pip install 'a\\|b'

synthetic-sd15, CPU X, 2 threads, 2026-11-24; torch 2.14.1; 256 pixels, 4 draws, batch 1, float32; \
8 rounds over 4 photographs; best matrix product 185 GFLOP/s. Error of LaRE: relative L2 of the worst image against \
the reference; of the logit: largest difference in units of its standard deviation over the images."""


class TestTables:
    def test_readme_table(self):
        assert render_markdown.readme_table(sample_report()) == README_TABLE

    def test_other_tables(self):
        report = sample_report()
        speed = render_markdown.speed_table(report)
        assert (
            "| `eager` | 9123 | 9200 | 9300 | 9124 | 1.00 (0.99 to 1.01) | 0.11 | 110 | 59 % | 8 + 0 strayed |" in speed
        )
        fidelity = render_markdown.fidelity_table(report)
        assert "| `eager` | 1.1e-6 | — | 3.1e-6 | 2.0e-5 | 4.0e-7 | 3.0e-6 | 1.2e-5 | yes |" in fidelity
        start = render_markdown.start_table(report)
        assert "| 120 s | 8.0 GB | 1.0 s | 2.0 s | 9.5 s | 5.2 GB | 4.9 GB |" in start
        conditions = render_markdown.conditions_table(report)
        assert "start: numpy 180, torch 185; end: numpy 181, torch 184" in conditions
        assert "993.1 GFLOP (vae_encoder 27 %, unet_step 73 %)" in conditions
        assert "channels_last (contiguous 2470 ms, channels_last 2330 ms)" in conditions
        components = render_components.components_table(report)
        assert "| row | `vae_encoder` | `unet_step` |" in components
        assert "| `eager` | 1640 (1.51 ×) | — |" in components
        assert "| **`openvino`** | — | — |" in components
        assert "No row of ours, or no peer" in render_components.summary(report)
        slow, fast = (measured_row(name, "peer", speedup=ratio) for name, ratio in (("slow", 1.1), ("fast", 1.43)))
        summary_ = render_components.summary({**report, "rows": [slow, *report["rows"], fast]})
        assert "| fastest row | `mnn`, 5800 ms an image |" in summary_
        assert "| against eager beside it | 1.57 × |" in summary_
        assert "| against the fastest peer | 1.10 × `fast` |" in summary_
        assert "| its VAE encoder against eager's | 1.51 × |" in summary_
        broken = measured_row("x", "peer")
        broken["fidelity"]["lare"]["worst_relative_l2"] = None
        assert "| broken |" in render_markdown.readme_table({**report, "rows": [broken]})

    def test_every_table_renders(self):
        """Those too that no page asks for yet, where a missing key would not be seen."""
        samples = (
            (render_markdown.THROUGHPUT | render_components.TABLES, sample_report()),
            (render_profile.FIDELITY, sample_fidelity()),
            (render_profile.PROFILE, sample_profile()),
        )
        for tables, report in samples:
            for name, render in tables.items():
                shown = render(report)
                begin = {"throughput-plot": "![", "throughput-summary": "*No row of ours"}.get(name, "| ")
                assert shown.startswith(begin), name
                for part in shown.split("\n\n"):
                    widths = {line.replace("\\|", "").count("|") for line in part.splitlines() if line[0] == "|"}
                    assert len(widths) <= 1, (name, part)

    def test_profile_tables(self):
        report = sample_profile()
        components, sizes, blocks = (
            render_profile.PROFILE[f"profile-{name}"] for name in ("components", "sizes", "blocks")
        )
        assert "| `unet_step` | 700.00 | 437.50 | 4100 ms | 4100 ms | 4100 ms |" in components(report)
        assert "625 GFLOP would take 3371 ms at the 185 GFLOP/s" in components(report)
        assert "| `conv_in` | 30.0 | 10.0 |" in blocks(report)
        assert "90 % of onnxruntime's time" in blocks(report)
        assert "| 1 | 1 | 1000 | 5.0 GB | 1000 | 5.0 GB |" in sizes(report)
        del report["parts"]["onnxruntime"], report["peak_gflops"], report["sizes"][1]
        assert "| `unet_step` | 700.00 | — | 4100 ms | 4100 ms |" in components(report)
        assert "floor" not in components(report)
        assert "| `conv_in` | 30.0 |" in blocks(report)
        assert "| 4 | 1 | 4000 | 5.0 GB | — | — |" in sizes(report)

    def test_fidelity_on_photographs(self):
        shown = render_profile.fidelity_table(sample_fidelity())
        assert "| `onnxruntime` | 1.1e-6 | — | 3.1e-6 | 4.0e-7 | 1.2e-5 | — | yes |" in shown
        assert "| `mnn` | — | — | — | — | — | — | a\\|b |" in shown
        assert "| `staged` | 1.1e-6 | — | 3.1e-6 | 4.0e-7 | 1.2e-5 | 3 | **no** |" in shown

    def test_committed_pages_are_what_the_reports_say(self, capsys):
        assert render_tables.main(["--check"]) == 0, capsys.readouterr().out

    def test_pages_are_filled_and_checked(self, tmp_path, capsys):
        pytest.importorskip("matplotlib")
        (tmp_path / "benchmarks/results").mkdir(parents=True)
        (tmp_path / "docs").mkdir()
        page = tmp_path / "README.md"
        page.write_text("before\n<!-- table: throughput -->\nold\n<!-- end of table -->\nafter\n")
        arguments = ["--root", str(tmp_path)]
        assert render_tables.main(arguments) == 0
        assert "*Not measured yet: `python benchmarks/throughput.py --model-synthetic sd15`.*" in page.read_text()
        assert render_tables.main([*arguments, "--check"]) == 0
        result = tmp_path / "benchmarks/results/throughput-synthetic-sd15.json"
        result.write_text(json.dumps(sample_report()))
        capsys.readouterr()
        assert render_tables.main([*arguments, "--check"]) == 1
        shown = capsys.readouterr().out
        assert "README.md is out of date" in shown
        assert "docs/throughput.svg is out of date" in shown
        assert not (tmp_path / "docs/throughput.svg").exists()
        assert render_tables.main(arguments) == 0
        assert page.read_text() == (
            f"before\n<!-- table: throughput -->\n\n{README_TABLE}\n\n<!-- end of table -->\nafter\n"
        )
        ElementTree.parse(tmp_path / "docs/throughput.svg")
        plot = (tmp_path / "docs/throughput.svg").read_text()
        assert "mnn" in plot
        assert "openvino" not in plot  # it has no figures
        assert render_tables.main([*arguments, "--check"]) == 0
        moved = sample_report()
        moved["rows"][1]["speedup"] = 1.6
        result.write_text(json.dumps(moved))
        assert render_tables.main([*arguments, "--check"]) == 1

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("<!-- table: nonsense -->\n<!-- end of table -->\n", "asks for a table 'nonsense'"),
            ("<!-- table: throughput -->\nand no end\n", "without '<!-- end of table -->'"),
        ],
    )
    def test_wrong_pages_are_named(self, tmp_path, text, words, capsys):
        (tmp_path / "README.md").write_text(text)
        assert render_tables.main(["--root", str(tmp_path)]) == 2
        assert words in capsys.readouterr().err
        with pytest.raises(UsageError):
            render_tables.changes(tmp_path)


def profile_report():
    times = {"vae_encoder": [1.0, 2.0, 3.0], "unet_step": [4.0, 4.0, 4.0]}
    blocks = {"down_blocks.0.resnets.0": 0.1, "down_blocks.0.attentions.0": 0.2}
    graph = {"components": times, "blocks": blocks, "operators": {"MatMul": 0.2, "Conv": 0.1}, "named_share": 0.98}
    layer = {"batch": 4, "inputs": 320, "outputs": 640, "height": 16, "width": 16}
    choices = [{"tile": tile, "strips": strips, "seconds": 0.01 * strips} for tile in (2, 4) for strips in (1, 2)]
    first = {
        "component": "unet_step",
        "layer": layer,
        "count": 3,
        "direct": 0.02,
        "choices": choices,
        "chosen": {"tile": 4, "strips": 1},
    }
    layers = [first, {**first, "choices": choices[:2], "chosen": None}]
    less = {**graph, "layers": layers, "operators": {"MatMul": 0.25}, "blocks": {"down_blocks.0.attentions.0": 0.2}}
    return {
        "flop": {"vae_encoder": 200_000_000_000, "unet_step": 800_000_000_000}, "peak_gflops": 100.0,
        "parts": {
            "eager": {"components": times, "blocks": {name: [1.0] for name in blocks}},
            "onnxruntime": {**graph, "winograd_flop": {"vae_encoder": 200_000_000_000, "unet_step": 400_000_000_000}},
            "mnn": {"components": times},
            "winograd": less,
        },
    }  # fmt: skip


class TestProfileTables:
    def test_components_and_the_floor(self):
        shown = render_profile.PROFILE["profile-components"](profile_report())
        assert "| component | GFLOP | with F(4×4) | eager | onnxruntime | mnn | winograd |" in shown
        assert "| `vae_encoder` | 200.00 | 50.00 | 2000 ms |" in shown
        assert "| all | 1000.00 | 550.00 | 6000 ms |" in shown
        assert "550 GFLOP would take 5500 ms at the 100 GFLOP/s" in shown

    def test_blocks_and_operators(self):
        shown = render_profile.PROFILE["profile-blocks"](profile_report())
        assert "| `down_blocks.0.resnets.0` | 1000 | 100 | — |" in shown
        assert "| `MatMul` | 200 | 67 % | 250 | 100 % |" in shown
        assert "| `Conv` | 100 | 33 % | — | 0 % |" in shown

    def test_layers(self):
        shown = render_profile.PROFILE["profile-layers"](profile_report())
        assert "| unet_step: 320 → 640 at 16×16 | 3 | 20.0 | 10.0 | 10.0 | F(4×4) |" in shown
        assert "| unet_step: 320 → 640 at 16×16 | 3 | 20.0 | 10.0 | — | direct |" in shown


class TestFidelity:
    def entry(self, **changes):
        arrays = {name: {"worst_relative_l2": 1e-6, "max_abs": 1.0, "not_finite": 0} for name in fidelity.LIMITS}
        logit = {"max_difference": 1e-4, "over_standard_deviation": 1e-3, "standard_deviation": 0.1}
        return {**arrays, "embedding": {"worst_relative_l2": 1e-7}, "logit": logit, **changes}

    def test_verdicts_are_counted_by_the_bundles_rule(self):
        """Logits just on either side of a threshold; without thresholds there is nothing to count."""
        rule = DecisionRule("calibrated", real_below=0.3, generated_from=0.7, temperature=2.0, bias=0.1)

        def images(*gaps):
            return [{"logits": np.array([[0.0, gap]], np.float32)} for gap in gaps]

        edge = 2 * (math.log(0.7 / 0.3) - 0.1)
        truth = images(-9.0, 0.0, edge + 1e-4, 9.0)
        assert fidelity.flipped(truth, truth, rule) == 0
        assert fidelity.flipped(images(-9.0, 0.0, edge - 1e-4, 9.0), truth, rule) == 1
        assert fidelity.flipped(images(9.0, 9.0, edge + 1e-4, 0.0), truth, rule) == 3
        assert fidelity.flipped(truth, truth, DecisionRule("uncalibrated")) is None

    def test_every_limit_counts(self):
        assert fidelity.passes(self.entry())
        for name, limit in fidelity.LIMITS.items():
            assert not fidelity.passes(self.entry(**{name: {"worst_relative_l2": 1.01 * limit}}))
            assert not fidelity.passes(self.entry(**{name: {"worst_relative_l2": None}}))
            assert not fidelity.passes(self.entry(**{name: None}))
        logit = self.entry()["logit"]
        assert not fidelity.passes(self.entry(logit={**logit, "over_standard_deviation": 0.011}))
        assert not fidelity.passes(self.entry(logit={**logit, "standard_deviation": 0.009}))  # void, not passed

    def test_table(self):
        report = {
            "model": "synthetic-sd15", "images": ["a"] * 32, "limits": {**fidelity.LIMITS, "logit": 1e-2},
            "machine": {"cpu": "CPU X", "threads": 2}, "logit_standard_deviation": 0.14,
            "packages": {"onnxruntime": "1.32.0", "openvino": "2026.4.1", "mnn": "3.6.1"},
            "engines": {
                "winograd": {"fidelity": self.entry(), "passed": True},
                "staged": {"fidelity": self.entry(latent={"worst_relative_l2": 4e-4}), "passed": False},
                "mnn": {"reason": "mnn is not installed"},
            },
        }  # fmt: skip
        shown = render_profile.FIDELITY["fidelity-photographs"](report)
        assert "| allowed | 3.0e-4 | 3.0e-4 | 1.0e-3 | — | 1.0e-2 | 0 |  |" in shown
        assert "| `winograd` | 1.0e-6 | 1.0e-6 | 1.0e-6 | 1.0e-7 | 1.0e-3 | — | yes |" in shown
        assert "| `staged` | 4.0e-4 | 1.0e-6 | 1.0e-6 | 1.0e-7 | 1.0e-3 | — | **no** |" in shown
        assert "| `mnn` | — | — | — | — | — | — | mnn is not installed |" in shown
        assert "32 pictures" in shown

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--images", "nowhere"], "nowhere is not a folder"),
            (["--images", ".", "--engines", "tensorrt,fast"], "there is no engine 'fast'"),
            (["--images", ".", "--limit", "1"], "--limit must be at least 2"),
        ],
    )
    def test_wrong_options_are_one_sentence(self, arguments, words, capsys, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        assert fidelity.main(arguments) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


@pytest.mark.slow
def test_fidelity_end_to_end(photos, tmp_path):
    out = tmp_path / "fidelity.json"
    command = [sys.executable, BENCHMARKS / "fidelity.py", "--images", photos[-1].parent, "--limit", "2"]
    command += ["--engines", "onnxruntime,winograd", "--work", tmp_path, "--out", out]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert run.returncode in (0, 1), run.stderr
    report = json.loads(out.read_text())
    assert len(report["images"]) == 2
    for name in ("onnxruntime", "winograd"):
        entry = report["engines"][name]["fidelity"]
        for array in ("latent", "noise_prediction", "lare", "embedding"):
            assert 0 < entry[array]["worst_relative_l2"] < 3e-5, (name, array)
