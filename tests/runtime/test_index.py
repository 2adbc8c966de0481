"""``lare2-rt index``: what it writes and says, its exit codes, and what it does with hostile and broken sets."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lare2_rt.errors import UsageError
from lare2_rt.tools.datasets import build, facts
from lare2_rt.tools.datasets.table import read_index
from tests.helpers.commands import without_privileges
from tests.helpers.image_sets import here, picture, snapshot, tree
from tests.runtime.test_hostile import NAMES


@pytest.fixture
def photos(tmp_path):
    return tree(
        tmp_path / "set", [f"train/real/{i}.jpg" for i in range(3)] + [f"test/fake/flux/{i}.png" for i in range(2)]
    )


@pytest.fixture
def command(monkeypatch, tmp_path):
    return here(monkeypatch, tmp_path)


def sentences(run):
    lines = run.stderr.splitlines()
    assert all(line.startswith("lare2-rt: ") for line in lines), run.stderr
    return [line.removeprefix("lare2-rt: ") for line in lines]


def test_table_and_report(command, photos, tmp_path):
    run = command("index", "set", "--out", "i.parquet")
    assert (run.returncode, run.stderr) == (0, "")
    for words in ("layout                     folders", "images                     5", " test    flux             2"):
        assert words in run.stdout
    index = read_index(tmp_path / "i.parquet")
    assert index.layout == "folders"
    assert index.root == str(photos)
    assert [row.split for row in index.rows()] == ["test"] * 2 + ["train"] * 3
    run = command("index", "set", "--out", "j.parquet", "--format", "json", "--layout", "folders")
    report = json.loads(run.stdout)
    assert report["schema"] == "lare2-rt/index-report/1"
    assert report["counts"] == [
        {"split": "test", "generator": "flux", "images": 2},
        {"split": "train", "generator": "real", "images": 3},
    ]
    assert "audit" not in report
    assert (tmp_path / "i.parquet").read_bytes() == (tmp_path / "j.parquet").read_bytes()


def test_an_existing_index_is_replaced_only_when_told(command, photos, tmp_path):
    (tmp_path / "index.parquet").write_text("precious")
    run = command("index", "set")
    assert (run.returncode, run.stdout) == (2, "")
    (sentence,) = sentences(run)
    assert "--force" in sentence
    assert (tmp_path / "index.parquet").read_text() == "precious"
    assert command("index", "set", "--force").returncode == 0
    assert len(read_index(tmp_path / "index.parquet")) == 5


def test_broken_images_cost_a_sentence_each(lare2_rt, photos, tmp_path):
    (photos / "train/real/empty.jpg").touch()
    (photos / "train/real/cut.jpg").write_bytes(picture(7, form="JPEG", size=(300, 300))[:-400])
    secret = photos / "test/fake/flux/secret.png"
    secret.write_bytes(picture(8))
    secret.chmod(0)
    (photos / "closed/real").mkdir(parents=True)
    (photos / "closed").chmod(0)
    try:
        run = lare2_rt("index", "set", "--format", "json", preexec_fn=without_privileges)
    finally:
        (photos / "closed").chmod(0o700)
    assert run.returncode == 1
    said = sentences(run)
    assert [line.partition(":")[0] for line in said] == [
        "closed",
        "test/fake/flux/secret.png",
        "train/real/cut.jpg",
        "train/real/empty.jpg",
    ]
    report = json.loads(run.stdout)
    assert report["not_decodable"] == 3
    assert [item["path"] for item in report["failed"]] == [line.partition(":")[0] for line in said]
    index = read_index(tmp_path / "index.parquet")
    assert int(index.decodable.sum()) == 5
    assert len(index) == 8


def test_copies_across_splits_and_labels_are_named(command, photos):
    content = (photos / "train/real/0.jpg").read_bytes()
    (photos / "test/real").mkdir()
    (photos / "test/real/again.jpg").write_bytes(content)
    (photos / "test/fake/flux/again.jpg").write_bytes(content)
    run = command("index", "set", "--format", "json")
    assert run.returncode == 0
    group = "test/fake/flux/again.jpg, test/real/again.jpg, train/real/0.jpg"
    assert sentences(run) == [f"the same file with both labels: {group}", f"the same file in several splits: {group}"]
    report = json.loads(run.stdout)
    assert (report["copies_of_another"], report["in_several_splits"], report["with_both_labels"]) == (2, 1, 1)
    assert report["duplicates"] == [group.split(", ")]


def test_many_copies_are_counted(command, tmp_path):
    root = tree(tmp_path / "set", [f"train/real/{i}.jpg" for i in range(8)])
    tree(tmp_path / "set", [f"test/real/{i}.jpg" for i in range(8)])
    tree(root, ["test/fake/x.png"], start=50)
    said = sentences(command("index", "set"))
    assert len(said) == 6
    assert said[-1] == "the same file in several splits: 3 more"


def test_hostile_names(command, tmp_path):
    plain = [name for name in NAMES if "/" not in name]
    root = tree(tmp_path / "set", [f"{kind}/{name}" for name in plain for kind in ("real", "fake")])
    (root / "real/\x1b[31mcut\n.jpg").write_text("no image")
    run = command("index", "set", "--audit")
    assert run.returncode == 1
    (sentence,) = sentences(run)
    assert sentence.startswith(r"real/\x1b[31mcut\n.jpg: not an image in a supported format (JPEG, PNG")
    assert "\x1b" not in run.stdout + run.stderr
    index = read_index(tmp_path / "index.parquet")
    assert len(index) == 2 * len(plain) + 1
    assert all(Path(index.file(i)).is_file() for i in range(len(index)))


def test_generators_may_be_called_anything(command, tmp_path):
    evil = os.fsdecode(b"[red]\x1b[31m\xff\n")
    root = tree(tmp_path / "set", [f"{evil}/fake/1.png", f"{evil}/real/2.png"])
    for form in ("table", "json"):
        run = command("index", "set", "--format", form, "--force")
        assert run.returncode == 0, run.stderr
        assert "\x1b" not in run.stdout + run.stderr
    assert read_index(tmp_path / "index.parquet").generator[0] == "[red]\x1b[31m%FF\n"
    assert root.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "check the path"),
        (("empty",), "check the path, or give a list of images with their labels"),
        (("list.txt",), "list.txt line 2: the label is 'maybe'"),
        (("set", "--layout", "list"), "give a file with lines 'PATH LABEL'"),
        (("set", "--out", "missing/i.parquet"), "create it first"),
        (("set", "--out", "empty"), "name a file"),
    ],
)
def test_what_cannot_be_indexed(command, photos, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("set/train/real/0.jpg 0\nset/train/real/1.jpg maybe\n")
    before = sorted(tmp_path.iterdir())
    run = command("index", *arguments)
    assert (run.returncode, run.stdout) == (2, "")
    (sentence,) = sentences(run)
    assert words in sentence
    assert sorted(tmp_path.iterdir()) == before


def test_without_pyarrow_nothing_is_read_in_vain(command, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(facts, "_measured", None)
    run = command("index", "set")
    assert (run.returncode, run.stdout) == (2, "")
    (sentence,) = sentences(run)
    assert sentence.endswith("pip install pyarrow")


def test_killed_and_interrupted(photos, tmp_path):
    """Nothing half written is left under the index's name, and what was measured is not measured again."""
    before = snapshot(tmp_path)
    code = (
        "import sys, time; from lare2_rt.tools.datasets import facts; real = facts._measured\n"
        "def measured(path, read):\n"
        "    print(path, flush=True, file=sys.stdout); time.sleep(0.1); return real(path, read)\n"
        "facts._measured, facts._SETTLED = measured, -1.0\n"
        "from lare2_rt.cli import main; sys.argv[0] = 'lare2-rt'; main()"
    )
    command = [sys.executable, "-c", code, "index", "set", "--threads", "1"]
    options = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for number, expected in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        with subprocess.Popen(command, **options) as process:
            process.stdout.readline()
            time.sleep(0.05)
            process.send_signal(number)
            _, err = process.communicate(timeout=30)
        assert process.returncode == expected
        assert err == ("" if number == signal.SIGKILL else "lare2-rt: interrupted\n")
        assert snapshot(tmp_path) == before
    run = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_library_reports_progress(photos):
    seen = []
    build.build_index(photos, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(6)]
    with pytest.raises(UsageError):
        build.build_index(photos / "train/real/0.jpg/x")
