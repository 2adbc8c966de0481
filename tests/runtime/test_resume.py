"""``--resume``: a kill at any moment loses nothing and doubles nothing, and results of other runs are never mixed."""

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
from PIL import Image

from lare2_rt.bundle.manifest import Manifest
from lare2_rt.columns import csv_columns
from lare2_rt.detection import DecisionRule
from lare2_rt.host.locks import acquire
from lare2_rt.results.parquet import read_records
from lare2_rt.results.partial import read_earlier
from tests.conftest import ROOT
from tests.helpers.commands import listing
from tests.helpers.processes import environment

FORMATS = ("jsonl", "csv", "parquet")
SIZE = {"jsonl": 38_000, "csv": 9_000}  # bytes, about, of all forty results
CHILD = ROOT / "tests/helpers/infer_child.py"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Forty pictures, two of them broken, one with a hostile name, one whose name is no text."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(40):
        name = {7: "two\nlines.png", 9: "=1+1.png", 11: os.fsdecode(b"\xff%.png")}.get(i, f"{i:02}.png")
        Image.new("RGB", (8, 8), (6 * i,) * 3).save(folder / name)
    (folder / "05.png").write_bytes(b"no image")
    (folder / "39.png").write_bytes(b"")
    return folder


def rows(path):
    """What does not change from run to run, in order."""
    if path.suffix == ".csv":
        found = list(csv.DictReader(io.StringIO(path.read_text(), newline="")))
        return [{name: value for name, value in row.items() if name != "total_ms"} for row in found]
    found = list(read_records(path)) if path.suffix == ".parquet" else map(json.loads, path.read_text().splitlines())
    return [{name: value for name, value in row.items() if name != "timings_ms"} for row in found]


def arguments(pictures, target, *more):
    return ("infer", str(pictures), "--resume", "--out", str(target), "--threshold", "0.5", *more)


def start(pictures, target, *more, pause=0.0):
    line = [sys.executable, str(CHILD), str(pause), *arguments(pictures, target, *more)]
    return subprocess.Popen(line, env=environment(ROOT), stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """The rows of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    found = {}
    for form in FORMATS:
        child = start(pictures, folder / f"r.{form}", "--no-isolate")
        child.communicate()
        assert child.returncode == 1
        found[form] = rows(folder / f"r.{form}")
        SIZE[form] = (folder / f"r.{form}").stat().st_size
        assert listing(folder) == sorted(f"r.{done}" for done in found)
    assert len(found["jsonl"]) == 40
    assert found["jsonl"] == found["parquet"]
    return found


def killed_and_resumed(pictures, folder, form, seed):
    """Kill a run at a random moment, again and again, until one ends; returns (number of kills, target)."""
    chance, target, kills = random.Random(seed), folder / f"r.{form}", 0
    while True:
        child = start(pictures, target, "--no-isolate", pause=0.01)
        partial = folder / f"r.{form}.partial"
        # From before the first result until after the last; the first kill always hits.
        wanted = int(chance.random() * SIZE["csv" if form == "csv" else "jsonl"] * (1.1 if kills else 0.8))
        patience = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < patience:
            try:
                if partial.stat().st_size >= wanted:
                    break
            except FileNotFoundError:  # not yet, or not any more
                pass
            time.sleep(chance.random() * 0.02)
        child.kill()
        _, said = child.communicate()
        assert "Traceback" not in said
        if child.returncode != -signal.SIGKILL:
            assert child.returncode == 1, said  # two files are no images
            return kills, target
        kills += 1
        assert kills < 60


@pytest.mark.parametrize(
    ("form", "seed"),
    [("jsonl", 1), *(pytest.param(*more, marks=pytest.mark.slow) for more in (("csv", 2), ("parquet", 3)))],
)
def test_kill_and_resume(pictures, whole, tmp_path, form, seed):
    check_kills(pictures, whole, tmp_path, form, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 20))
def test_kill_and_resume_often(pictures, whole, tmp_path, seed):
    check_kills(pictures, whole, tmp_path, FORMATS[seed % 3], seed)


def mask():
    os.umask(before := os.umask(0))
    return before


def check_kills(pictures, whole, tmp_path, form, seed):
    kills, target = killed_and_resumed(pictures, tmp_path, form, seed)
    assert kills, "the test must kill something"
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask()
    assert rows(target) == whole[form]
    assert listing(tmp_path) == [target.name]


@pytest.mark.parametrize("form", FORMATS)
def test_cut_at_every_byte_of_the_last_lines(command, fake, pictures, whole, tmp_path, form):
    """Whatever a kill leaves of the file in the making, the next run makes it whole."""
    target, partial = tmp_path / f"r.{form}", tmp_path / f"r.{form}.partial"
    lines = "csv" if form == "csv" else "jsonl"
    assert command(*arguments(pictures, tmp_path / f"full.{lines}", "--no-isolate"))[0] == 1
    content = (tmp_path / f"full.{lines}").read_bytes()
    begins = [0, *(at + 1 for at, byte in enumerate(content) if byte == 10)]
    for end in {
        0,
        1,
        begins[1] - 1,
        begins[1],
        begins[1] + 5,
        begins[20] - 1,
        begins[20],
        begins[-2] + 9,
        len(content),
    }:
        partial.write_bytes(content[:end])
        code, _, said = command(*arguments(pictures, target, "--no-isolate"))
        assert code == 1, said
        assert rows(target) == whole[form]
        assert not partial.exists()
        target.unlink()


@pytest.mark.parametrize("form", FORMATS)
def test_a_complete_file_takes_what_is_new(command, fake, pictures, whole, tmp_path, form):
    target, files = tmp_path / f"r.{form}", sorted(map(str, pictures.iterdir()))
    line = ("infer", "--resume", "--out", target, "--threshold", "0.5")
    assert command(*line, *files[20:])[0] == 1
    first = rows(target)
    calls = fake.calls
    code, _, said = command(*line, *files)
    assert code == 1
    assert "20 results are there from before, 20 images are left" in said
    assert rows(target)[:20] == first
    assert sorted(row["source"] for row in rows(target)) == sorted(row["source"] for row in whole[form])
    done, size = fake.calls, target.read_bytes()
    assert done - calls == 19  # one of them is no image
    # Nothing is left to do, and an earlier failure still counts.
    assert command(*line, *files)[0] == 1
    assert fake.calls == done
    assert form == "parquet" or target.read_bytes() == size
    assert listing(tmp_path) == ["here", target.name]


def test_a_path_given_twice_has_two_results(command, fake, pictures, tmp_path):
    target, name = tmp_path / "r.jsonl", str(pictures / "01.png")
    line = ("infer", "--resume", "--out", target)
    assert command(*line, name)[0] == 0
    assert command(*line, name, name)[0] == 0
    assert [row["source"] for row in rows(target)] == [name, name]
    assert command(*line, name, name)[0] == 0
    assert len(rows(target)) == 2


@pytest.mark.parametrize("form", FORMATS)
def test_an_interrupted_run_can_be_resumed_whether_it_said_so_or_not(command, fake, pictures, whole, tmp_path, form):
    target = tmp_path / f"r.{form}"
    for more in ((), ("--resume",)):

        def strike(call, output):
            if call == 10:
                os.kill(os.getpid(), signal.SIGINT)

        fake.calls, fake.script = 0, strike
        code, _, said = command("infer", pictures, "--out", target, "--threshold", "0.5", *more)
        assert code == 130
        assert f"{target}.partial" in said
        assert listing(tmp_path) == ["here", f"{target.name}.partial"]
        fake.script = None
        assert command(*arguments(pictures, target))[0] == 1
        assert rows(target) == whole[form]
        assert listing(tmp_path) == ["here", target.name]
        target.unlink()


def test_fail_on_counts_earlier_results(command, fake, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(Manifest, "rule", property(lambda self: DecisionRule("calibrated", 0.3, 0.7)))
    target, bright = tmp_path / "r.csv", str(pictures / "38.png")
    line = ("infer", "--resume", "--out", target, "--threshold", "0.5", "--fail-on", "generated")
    assert command(*line, bright)[0] == 3
    assert command(*line, bright)[0] == 3


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_what_cannot_be_resumed_is_left_alone(command, fake, pictures, tmp_path, form):
    target, partial = tmp_path / f"r.{form}", tmp_path / f"r.{form}.partial"
    picture = str(pictures / "01.png")
    line = ("infer", picture, "--resume", "--out", target)
    target.write_text("precious\n")
    code, _, said = command(*line)
    assert code == 2
    assert "choose another name" in said
    assert listing(tmp_path) == ["here", target.name]
    assert target.read_text() == "precious\n"
    target.unlink()

    assert command(*line, "--threshold", "0.4")[0] == 0
    content = target.read_bytes()
    code, _, said = command(*line, "--threshold", "0.6")
    assert code == 2
    assert "lower threshold: 0.4 there, 0.6 now" in said
    assert target.read_bytes() == content

    partial.write_bytes(b"other\n")
    code, _, said = command(*line, "--threshold", "0.4")
    assert code == 2
    assert "hold different results" in said
    partial.unlink()
    lock = acquire(partial, "exclusive")
    code, _, said = command(*line, "--threshold", "0.4")
    lock.release(remove=True)
    assert code == 2
    assert "another lare2-rt is writing" in said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "name it with --out"),
        (("--out", "r.json"), "not json"),
        (("--out", "r.txt"), "not table"),
        (("--out", "r.csv", "--force"), "choose one of them"),
        (("--out", "no/r.csv"), "does not exist"),
    ],
)
def test_refusals(command, pictures, more, words):
    code, _, said = command("infer", pictures, "--resume", *more)
    assert code == 2
    assert words in said


def test_damage_in_the_midst_is_named(tmp_path):
    from lare2_rt import UsageError

    path = tmp_path / "r.csv"
    path.write_text(",".join(csv_columns()) + "\n" + "x,y\n" + "cut")
    with pytest.raises(UsageError, match=r"line 2 of .*r\.csv") as caught:
        read_earlier(path, "csv")
    assert caught.value.remedy


def without(path, *names, reverse=False):
    """Make a CSV file one of a version that had fewer columns, or another order."""
    found = list(csv.DictReader(io.StringIO(path.read_text(), newline="")))
    kept = [name for name in csv_columns() if name not in names][:: -1 if reverse else 1]
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, kept, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("names", [("note",), ("real_below", "generated_from", "crops", "note"), ()])
def test_an_older_csv_goes_on_in_its_own_columns(command, fake, pictures, tmp_path, names, reverse):
    target, partial = tmp_path / "r.csv", tmp_path / "r.csv.partial"
    line = ("infer", "--resume", "--out", target, "--threshold", "0.5")
    some = [str(pictures / f"{i:02}.png") for i in range(5)]
    assert command(*line, *some[:2])[0] == 0
    without(target, *names, reverse=reverse)
    before = target.read_bytes()
    assert command(*line, *some[:4])[0] == 0
    assert [row["source"] for row in rows(target)] == some[:4]
    assert target.read_bytes().startswith(before)
    partial.write_bytes(target.read_bytes()[:-10])  # killed
    target.unlink()
    assert command(*line, *some)[0] == 0
    assert [row["source"] for row in rows(target)] == some
    assert len({tuple(row) for row in rows(target)}) == 1


def test_what_an_older_csv_names_is_checked(command, fake, pictures, tmp_path):
    target, picture = tmp_path / "r.csv", str(pictures / "01.png")
    line = ("infer", "--resume", "--out", target, "--threshold", "0.5")
    assert command(*line, picture)[0] == 0
    without(target, "note", "crops")
    content = target.read_bytes()
    for more in (("--threshold", "0.6"), ("--crops", "9")):  # no choice of windows: it was one
        assert command(*line, picture, *more)[0] == 2
        assert target.read_bytes() == content


@pytest.mark.parametrize("head", ["source,verdict", "source,verdict,error,new", "source,verdict,error,source"])
def test_other_columns_are_refused(tmp_path, head):
    from lare2_rt import UsageError

    (tmp_path / "r.csv").write_text(head + "\n")
    with pytest.raises(UsageError) as caught:
        read_earlier(tmp_path / "r.csv", "csv")
    assert caught.value.remedy


def test_parquet_has_the_fields_of_the_record(whole, command, fake, pictures, tmp_path):
    assert command("infer", pictures / "01.png", "--out", tmp_path / "r.parquet")[0] == 0
    assert command("infer", pictures / "01.png", "--out", tmp_path / "r.jsonl")[0] == 0
    (row,) = read_records(tmp_path / "r.parquet")
    record = json.loads((tmp_path / "r.jsonl").read_text())
    assert row.keys() == record.keys()
    for name in ("decision", "bundle", "engine"):
        assert row[name] == record[name]
    assert pq.read_metadata(tmp_path / "r.parquet").num_rows == 1
    assert command("infer", pictures / "01.png", "--format", "parquet")[0] == 2


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_older_records_with_fewer_fields_go_on(command, fake, pictures, tmp_path, form):
    target, some = tmp_path / f"r.{form}", [str(pictures / f"{i:02}.png") for i in range(3)]
    line = ("infer", "--resume", "--out", target, "--threshold", "0.5")
    assert command(*line, *some[:2])[0] == 0
    if form == "parquet":
        pq.write_table(pq.read_table(target).drop_columns(["crops", "windows"]), target)
    else:
        older = [{name: row[name] for name in row if name not in ("crops", "windows")} for row in rows(target)]
        target.write_text("".join(json.dumps({**row, "timings_ms": {}}) + "\n" for row in older))
    assert command(*line, *some, "--crops", "9")[0] == 2
    assert command(*line, *some)[0] == 0
    found = rows(target)
    assert [row["source"] for row in found] == some
    assert [row.get("crops") for row in found] == [None, None, 1]
    assert command(*line, *some)[0] == 0
    assert rows(target) == found
