"""The throughput benchmark: its rows, rows that break, resuming, and whole runs."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from benchmarks.common.facts import code_digest
from benchmarks.common.resident import FailedError, RefusedError, Resident
from benchmarks.render import profile as render_profile, throughput as render_throughput
from benchmarks.throughput import __main__ as throughput, eager, peers, profiling, session as throughput_session
from benchmarks.throughput.builds import Builder
from benchmarks.throughput.layers import block_of, blocks_of_nodes, in_order
from benchmarks.throughput.options import Options, parse
from benchmarks.throughput.rows import BUILDS, ENGINES, REFERENCE, ROWS, Build, Footprint, Row
from benchmarks.throughput.setup import Setup
from benchmarks.throughput.turns import Schedule
from lare2_rt.engines import registry
from lare2_rt.engines.difference import difference
from tests.conftest import ROOT
from tests.helpers.processes import environment

FAKE_ROWS = "tests.fakes.rows"
FAKE_BUILDS = {"reference": Build(f"{FAKE_ROWS}:prepare", ())}


def silent(line):
    pass


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
        builds = [*BUILDS.values(), *profiling.profile_builds("{}", ensemble=4).values()]
        for function in [row.opener for row in ROWS] + [build.function for build in builds]:
            module, name = function.split(":")
            source = (ROOT / module.replace(".", "/")).with_suffix(".py")
            assert f"\ndef {name}(setup: Setup" in source.read_text(), function
        for code in [row.code for row in ROWS] + [build.code for build in builds]:
            code_digest(*code)
        for build in builds:
            assert set(build.needs) <= {*BUILDS, "sizes"}

    def test_engines_are_the_registrys(self):
        """Each engine of a CPU has a row through the public runtime, without a line about it in the benchmarks."""
        known = {entry.name for entry in registry.ENGINES if entry.device == "cpu"}
        assert set(ENGINES) == known == {row.name for row in ROWS if row.kind == "ours"}

    def test_every_build_is_needed(self):
        needed = {need for row in ROWS for need in row.needs}
        needed |= {need for build in BUILDS.values() for need in build.needs}
        assert set(BUILDS) == needed | {"reference"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rows", "eager,tensorrt"], "rows are eager, "),
        (["--threads", "0"], "set --threads to 1 to"),
        (["--rounds", "0"], "--rounds must be positive"),
        (["--memory", "nan"], "--memory must be positive"),
        (["--images", "nowhere"], "--images"),
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
    return Row(name, kind, f"{name} row", "a test", f"{FAKE_ROWS}:{name}", (), ("lare2_ref",), Footprint(1e6, 0))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, embedded, photos):
    """A work folder whose fake reference is prepared, for tests to copy."""
    work = tmp_path_factory.mktemp("throughput") / "work"
    work.mkdir()
    setup = Setup("fake", True, str(embedded), str(work), 1, tuple(str(p) for p in photos[:2]))
    Builder(setup, FAKE_BUILDS, identity=throughput_session.identity_of(setup), report=silent).get("reference")
    return setup


@pytest.fixture
def fake_setup(prepared, tmp_path, monkeypatch):
    """A setup whose reference is a fake too, so that whole runs take seconds and no torch."""
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
        assert "code 7: the library says goodbye" in rows["exits"]["reason"]
        assert rows["killed"]["reason"].endswith("; close other programs")
        assert "ValueError: no such operator; the trace is in logs/raises.log" in rows["raises"]["reason"]
        assert "ValueError: no such operator" in (Path(fake_setup.work) / "logs/raises.log").read_text()
        assert rows["refuses"]["reason"] == "the fake engine is not installed; pip install fake"
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
        assert "`spins` ‡" in render_throughput.speed_table(report)
        assert "`good` ‡" not in render_throughput.speed_table(report)
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
            "one": Build(f"{FAKE_ROWS}:count", (), arguments=("one",)),
            "two": Build(f"{FAKE_ROWS}:count", (), arguments=("two",), needs=("one",)),
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
        builder = self.builder(fake_setup, {"bad": Build(f"{FAKE_ROWS}:fail", ())})
        with pytest.raises(FailedError, match=r"build-bad failed: RuntimeError: the exporter gave up") as first:
            builder.get("bad")
        assert first.value.remedy == "the trace is in logs/build-bad.log"
        with pytest.raises(FailedError) as second:
            builder.get("bad")
        assert second.value is first.value

    def test_a_missing_library_is_a_refusal(self, fake_setup):
        build = Build(f"{FAKE_ROWS}:count", (), arguments=("one",), imports=("no_such_library",))
        with pytest.raises(RefusedError, match="no_such_library is not installed") as caught:
            self.builder(fake_setup, {"one": build}).get("one")
        assert caught.value.remedy


def test_a_worker_ends_with_its_parent(fake_setup, tmp_path):
    code = (
        "import os, pathlib; from benchmarks.common.resident import Resident\n"
        f"worker = Resident('orphan', pathlib.Path({str(tmp_path)!r}), {{}})\n"
        "print(worker.pid, flush=True); os._exit(0)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment(ROOT), capture_output=True, text=True, check=True
    )
    status = Path(f"/proc/{run.stdout.strip()}/status")
    with Resident("waiting", tmp_path, {}) as waiting:  # takes as long as the orphan would take to start
        waiting.ask("call", "benchmarks.common.facts:now", (), ())
    assert not status.exists() or "zombie" in status.read_text()


def throughput_command(folder, *arguments):
    """Run the command on mini, in a process of its own; what it builds is kept in ``folder`` for the next."""
    command = [sys.executable, "-m", "benchmarks.throughput", "--limit", "2", "--work", folder / "work", *arguments]
    with FileLock(folder / "turn"):  # tests of other workers use the same folder
        run = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment(ROOT), timeout=1800)
    assert run.returncode == 0, run.stderr
    return run


@pytest.fixture(scope="session")
def measured(once):
    """The folder of a run of all rows but torch-compile, whose C++ takes minutes: work, report and what it printed."""

    def make(folder):
        rows = ",".join(row.name for row in ROWS if row.name != "torch-compile")
        run = throughput_command(folder, "--rounds", "1", "--rows", rows, "--out", folder / "report.json")
        (folder / "printed").write_text(run.stdout)

    return once("throughput", make)


@pytest.mark.slow
def test_every_row_computes_the_same(measured):
    """The real thing: whatever is usable here agrees with the reference to rounding, and every figure is there."""
    report = json.loads((measured / "report.json").read_text())
    assert (report["schema"], report["model"]) == ("lare2-rt/throughput/1", "mini")
    rows = {row["name"]: row for row in report["rows"]}
    for row in rows.values():
        if row["status"] == "measured":
            assert row["fidelity"]["lare"]["worst_relative_l2"] < 1e-3, row["name"]
            assert row["fidelity"]["logit"]["over_standard_deviation"] < 1e-2, row["name"]
        if row["status"] == "measured" and row["name"] in ("onnxruntime", "openvino", "winograd"):
            for name in ("latent", "noise_prediction", "embedding"):
                assert 0 < row["fidelity"][name]["worst_relative_l2"] < 3e-4, (row["name"], name)
            assert row["fidelity"]["noise_prediction"]["graph_differs_by"] < 1e-4, row["name"]
    for name in ("eager", "eager-accurate", "eager-official", "onnxruntime-plain", "onnxruntime-chain", "onnxruntime"):
        assert rows[name]["status"] == "measured", rows[name]
    # Fresh noise for every image: what the timed runs compute is not what the fidelity run computes.
    assert rows["eager-official"]["settings"]["noise"].startswith("drawn")
    # Rounding, and no more: the same weights, noise and pixels went through both.
    reference, ours = rows["eager"], rows["onnxruntime"]
    for name, limit in (("latent", 3e-5), ("noise_prediction", 3e-5), ("embedding", 3e-5), ("lare", 3e-5)):
        assert 0 < ours["fidelity"][name]["worst_relative_l2"] < limit, name
        assert 0 <= reference["fidelity"][name]["worst_relative_l2"] < limit, name
    assert ours["fidelity"]["noise_prediction"]["graph_differs_by"] < 1e-6
    assert ours["builds"] == {}  # what only measures is no cost of the row
    assert 0 < ours["share_of_peak"] < 1
    assert sum(report["flop"].values()) > 6e9
    assert set(report["layout"]) == {"vae", "unet", "clip"}
    (session,) = report["sessions"]
    assert set(session["probes"]) == {"start", "end"}
    assert reference["memory"]["sum_peak_bytes"] > reference["memory"]["peak_bytes"] > 2e8
    assert [line.split()[0] for line in (measured / "printed").read_text().splitlines()] == list(rows)
    assert render_throughput.readme_table(report).count("\n| ") == len(rows) + 1


@pytest.mark.slow
def test_torch_compile_takes_each_component_whole(tmp_path, monkeypatch):
    """As the row compiles them, but for the C++ that inductor would write: one graph each, which computes the same."""
    compile_module, compiled = peers.torch.compile, []

    def without_inductor(module, *, options, **arguments):
        assert options == {"freezing": True}
        compiled.append(type(module).__name__)
        return compile_module(module, backend="aot_eager", **arguments)

    monkeypatch.setattr(peers.torch, "compile", without_inductor)
    setup = parse(["--limit", "1", "--threads", "1", "--work", str(tmp_path)]).setup
    (picture,) = setup.pictures()
    ours = peers.open_compiled(setup, None).run(picture)
    theirs = eager.EagerRunner(eager.load_plain(setup), dict.fromkeys(eager.TUNED, "contiguous"), 1).run(picture)
    assert compiled == ["EncodeStep", "NoiseStep", "ClipBackbone", "Egre"]
    assert set(ours) <= set(theirs)
    for name, value in ours.items():
        assert difference(value, theirs[name]).relative_l2 < 1e-5, name


@pytest.mark.slow
def test_measured_rows_are_found_again(measured, tmp_path):
    first = json.loads((measured / "report.json").read_text())["rows"]
    again = throughput_command(measured, "--rounds", "1", "--rows", "eager,onnxruntime", "--out", tmp_path / "again")
    assert again.stderr.count("measured by an earlier run with the same configuration") == 2
    rows = json.loads((tmp_path / "again").read_text())["rows"]
    assert rows == [row for row in first if row["name"] in ("eager", "onnxruntime")]


@pytest.mark.slow
def test_profile_end_to_end(measured, tmp_path, monkeypatch):
    """With half of the other numbers of draws and images."""
    assert profiling.points(4) == [(1, 1), (2, 1), (4, 1), (4, 2), (4, 4), (8, 1)]
    monkeypatch.setattr(profiling, "ENSEMBLES", (1, 4))
    monkeypatch.setattr(profiling, "BATCHES", (1, 2))
    command = ["--profile", "--limit", "2", "--work", measured / "work", "--out", tmp_path / "profile.json"]
    with FileLock(measured / "turn"):
        assert throughput.main(list(map(str, command))) == 0
    report = json.loads((tmp_path / "profile.json").read_text())
    sizes = [(s["engine"], s["ensemble"], s["batch"]) for s in report["sizes"]]
    assert sizes == [(name, *size) for size in ((1, 1), (4, 1), (4, 2)) for name in ("eager", "onnxruntime")]
    assert all(size["peak_bytes"] > 1e8 and len(size["seconds"]) == 3 for size in report["sizes"])
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
