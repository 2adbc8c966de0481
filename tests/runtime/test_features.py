"""Feature folders: what they hold, what is refused, and that a crash at any step of writing changes no byte."""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lare2_rt import UsageError
from lare2_rt.errors import EngineError, OutputError
from lare2_rt.tools.features.layout import EngineBuild, FeatureSet, failed_row
from lare2_rt.tools.features.reader import open_features
from lare2_rt.tools.features.shards import npy_header
from lare2_rt.tools.features.writer import Finished, open_writer
from tests.helpers.image_sets import snapshot

SHAPE = (4, 2, 3)


def feature_set(**changes):
    fields = {
        "lare_id": "a" * 64,
        "bundle_id": "b" * 64,
        "bundle_name": "mini",
        "engine": "fake",
        "device": "cpu",
        "precision": "fp32",
        "builds": (EngineBuild(version="1", threads=1),),
        "shape": SHAPE,
        "embedding": None,
        "shard": 4,
        "index_sha256": None,
    }
    return FeatureSet(**{**fields, **changes})


def content(number):
    return f"{number:064x}"


def result(number, *, width=5):
    lare = np.full(SHAPE, number, np.float32) + np.arange(24, dtype=np.float32).reshape(SHAPE) / 100
    embedding = np.full(width, -number, np.float32)
    return Finished(content(number), f"p/{number}%.png", lare, embedding, (number / 3, -number / 7), 1 / (2 + number))


def write(folder, numbers, *, batch=1, failures=(), **changes):
    """What an extraction does: ask what is finished, compute the rest in order, finish."""
    writer = open_writer(folder, feature_set(**changes))
    try:
        todo = [n for n in numbers if content(n) not in writer.finished]
        for start in range(0, len(todo), batch):
            writer.append([result(n) for n in todo[start : start + batch]])
        writer.finish(list(failures))
    finally:
        writer.close()
    return len(todo)


class TestWhatIsThere:
    @pytest.mark.parametrize("batch", [1, 3, 7, 10])
    def test_rows(self, tmp_path, batch):
        write(
            tmp_path / "f", range(10), batch=batch, embedding=5, failures=[failed_row("", "gone.png", "no such file")]
        )
        assert sorted(path.name for path in (tmp_path / "f").iterdir()) == [
            *(f"embedding-{i:05d}.npy" for i in range(3)),
            "features.json",
            *(f"lare-{i:05d}.npy" for i in range(3)),
            "rows.parquet",
        ]
        features = open_features(tmp_path / "f", lare_id="a" * 64)
        assert len(features) == 10
        assert features.sha256 == tuple(content(n) for n in range(10))
        assert features.path[3] == "p/3%.png"
        assert features.failures == (("", "gone.png", "no such file"),)
        for n in range(10):
            assert np.array_equal(features.lare(n), result(n).lare)
            assert np.array_equal(features.embedding(n), result(n).embedding)
            assert features.logits[n].tolist() == [np.float32(n / 3), np.float32(-n / 7)]
            assert features.probability[n] == 1 / (2 + n)
        order = [9, 0, 5, 5, 2]
        maps = features.batch(order)
        assert maps.dtype == np.float32
        assert maps.shape == (5, *SHAPE)
        assert np.array_equal(maps, np.stack([result(n).lare for n in order]))
        assert np.array_equal(features.embeddings(order), np.stack([result(n).embedding for n in order]))
        assert features.batch([]).shape == (0, *SHAPE)

    def test_shards_are_plain_arrays(self, tmp_path):
        write(tmp_path / "f", range(6))
        for number, rows in ((0, [0, 1, 2, 3]), (1, [4, 5])):
            array = np.load(tmp_path / f"f/lare-{number:05d}.npy", allow_pickle=False)
            assert array.dtype == np.float32
            assert np.array_equal(array, np.stack([result(n).lare for n in rows]))

    def test_tables_and_json_as_agreed(self, tmp_path):
        write(tmp_path / "f", range(2), failures=[failed_row(content(9), "x", "broken")], index_sha256="c" * 64)
        described = json.loads((tmp_path / "f/features.json").read_text())
        assert described == {
            "schema": "lare2-rt/features/1",
            "lare_id": "a" * 64,
            "bundle_id": "b" * 64,
            "bundle_name": "mini",
            "engine": "fake",
            "device": "cpu",
            "precision": "fp32",
            "builds": [{"version": "1", "threads": 1}],
            "shape": list(SHAPE),
            "embedding": None,
            "dtype": "float32",
            "shard": 4,
            "count": 2,
            "index_sha256": "c" * 64,
        }
        table = pq.read_table(tmp_path / "f/rows.parquet")
        assert table.column_names == ["sha256", "path", "shard", "row", "logits", "probability", "error"]
        last = table.to_pylist()[-1]
        assert (last["sha256"], last["shard"], last["row"], last["error"]) == (content(9), -1, -1, "broken")
        assert math.isnan(last["probability"])

    def test_views_are_read_only_and_of_the_file(self, tmp_path):
        write(tmp_path / "f", range(2))
        view = open_features(tmp_path / "f").lare(0)
        assert isinstance(view.base, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1

    def test_find(self, tmp_path):
        write(tmp_path / "f", range(5), failures=[failed_row(content(7), "x", "broken")])
        features = open_features(tmp_path / "f")
        rows = features.find([content(4), content(7), content(99), content(0)])
        assert rows.tolist() == [4, -1, -1, 0]
        for wrong in (rows, [5], [[0]]):
            with pytest.raises(UsageError, match=r"rows must be a list of numbers from 0 to 4; leave out what find"):
                features.batch(wrong)
        with pytest.raises(UsageError, match="rows must be"):
            features.lare(-1)

    def test_nothing_but_failures(self, tmp_path):
        write(tmp_path / "f", [], failures=[failed_row("", "x", "broken")])
        assert len(open_features(tmp_path / "f")) == 0

    @pytest.mark.parametrize("rows", [0, 1, 9, 1023, 1024, 1 << 20])
    def test_headers_have_one_length(self, rows):
        """The header is written last, over a space that was left for it."""
        assert len(npy_header((rows, 4, 32, 32))) == len(npy_header((0, 4, 32, 32)))


class TestRefused:
    def test_another_lare(self, tmp_path):
        write(tmp_path / "f", range(3))
        before = snapshot(tmp_path)
        with pytest.raises(
            UsageError, match=r"holds features of LaRE aaaaaaaaaaaa, and ffffffffffff is needed: weights"
        ):
            open_features(tmp_path / "f", lare_id="f" * 64)
        with pytest.raises(OutputError, match=r"holds features of LaRE aaaaaaaaaaaa and the bundle makes ffffffffffff"):
            write(tmp_path / "f", range(5), lare_id="f" * 64)
        assert snapshot(tmp_path) == before

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"bundle_id": "f" * 64}, "with bundle id bbbb"),
            ({"engine": "other"}, "with engine fake, not other"),
            ({"precision": "fp16"}, "with precision fp32, not fp16"),
            ({"device": "cuda"}, "with device cpu, not cuda"),
            ({"embedding": 5}, "with embedding none, not 5"),
            ({"shard": 5}, "with shard 4, not 5"),
        ],
    )
    def test_rows_of_another_kind(self, tmp_path, changes, words):
        write(tmp_path / "f", range(3))
        before = snapshot(tmp_path)
        with pytest.raises(OutputError, match=f"{words}.*; choose another folder, or the same options"):
            write(tmp_path / "f", range(5), **changes)
        assert snapshot(tmp_path) == before

    def test_other_versions_are_noted(self, tmp_path):
        write(tmp_path / "f", range(3))
        write(tmp_path / "f", range(5), builds=(EngineBuild(version="2", threads=1),))
        info = open_features(tmp_path / "f").info
        assert [build.version for build in info.builds] == ["1", "2"]

    def test_two_at_once(self, tmp_path):
        writer = open_writer(tmp_path / "f", feature_set())
        with pytest.raises(OutputError, match=r"another extraction is writing into .*f; wait for it"):
            open_writer(tmp_path / "f", feature_set())
        writer.close()
        write(tmp_path / "f", range(3))

    def test_foreign_folders(self, tmp_path):
        (tmp_path / "f").mkdir()
        (tmp_path / "f/thesis.txt").write_text("precious")
        with pytest.raises(OutputError, match="is not empty and holds no features; choose another folder"):
            open_writer(tmp_path / "f", feature_set())
        assert snapshot(tmp_path) == {"f/thesis.txt": b"precious"}
        with pytest.raises(OutputError, match=r"cannot write into .*: file exists"):
            open_writer(tmp_path / "f/thesis.txt", feature_set())

    def test_not_features(self, tmp_path):
        with pytest.raises(UsageError, match=r"holds no features\.json; make it with 'lare2-rt extract"):
            open_features(tmp_path)
        with pytest.raises(UsageError, match=r"holds no features\.json"):
            open_features(tmp_path / "nowhere")
        write(tmp_path / "f", range(3))
        described = json.loads((tmp_path / "f/features.json").read_text())
        for text, words in (
            ("{", "is not valid JSON"),
            ("[]", "is not valid JSON"),
            (json.dumps({**described, "schema": "lare2-rt/features/9"}), "has schema 'lare2-rt/features/9' where"),
            (json.dumps({**described, "shape": [4, 0, 3]}), "is wrong at shape.1"),
            (json.dumps({**described, "shard": 10**9}), "is wrong at shard"),
            (json.dumps({**described, "more": 1}), "is wrong at more"),
        ):
            (tmp_path / "f/features.json").write_text(text)
            with pytest.raises(UsageError, match=words):
                open_features(tmp_path / "f")

    def test_unfinished(self, tmp_path):
        writer = open_writer(tmp_path / "f", feature_set())
        writer.append([result(0)])
        writer.close()
        with pytest.raises(UsageError, match="is not finished; run the same 'lare2-rt extract' again"):
            open_features(tmp_path / "f")

    def test_damaged_shards(self, tmp_path):
        write(tmp_path / "f", range(6), embedding=5)
        for name, damage in (
            ("lare-00000.npy", lambda path: path.unlink()),
            ("lare-00001.npy", lambda path: path.write_bytes(path.read_bytes()[:-4])),
            ("embedding-00000.npy", lambda path: path.write_bytes(b"\x93NUMPY" + b"x" * (path.stat().st_size - 6))),
            ("lare-00000.npy", lambda path: np.save(path, np.zeros((4, *SHAPE[:2], 4), np.float32))),
        ):
            shutil.copytree(tmp_path / "f", tmp_path / "copy", dirs_exist_ok=True)
            damage(tmp_path / "copy" / name)
            with pytest.raises(UsageError, match=f"{name} is missing or damaged; extract into another folder"):
                open_features(tmp_path / "copy")

    def test_no_embeddings(self, tmp_path):
        write(tmp_path / "f", range(3))
        with pytest.raises(UsageError, match="holds no embeddings; extract them with 'lare2-rt extract --embeddings'"):
            open_features(tmp_path / "f").embeddings([0])

    def test_wrong_shapes_from_the_engine(self, tmp_path):
        writer = open_writer(tmp_path / "f", feature_set(embedding=5))
        with pytest.raises(EngineError, match=r"the engine gave embedding as \[7\] instead of \[5\]; report it"):
            writer.append([result(0, width=7)])
        writer.close()


class TestAdding:
    def test_only_what_is_new(self, tmp_path):
        assert write(tmp_path / "f", range(6)) == 6
        before = snapshot(tmp_path / "f")
        assert write(tmp_path / "f", range(6)) == 0
        assert snapshot(tmp_path / "f") == before
        assert write(tmp_path / "f", [5, 20, 3, 21, 22]) == 3
        after = snapshot(tmp_path / "f")
        assert {name: after[name] for name in before if name.startswith("lare")} == {
            name: text for name, text in before.items() if name.startswith("lare")
        }
        features = open_features(tmp_path / "f")
        assert features.sha256 == tuple(content(n) for n in (*range(6), 20, 21, 22))
        assert np.array_equal(features.batch([6, 7, 8]), np.stack([result(n).lare for n in (20, 21, 22)]))

    def test_failures_are_tried_again(self, tmp_path):
        write(tmp_path / "f", [1, 2], failures=[failed_row(content(3), "x", "broken")])
        assert write(tmp_path / "f", [1, 2, 3]) == 1
        assert open_features(tmp_path / "f").failures == ()

    def test_another_order_while_unfinished(self, tmp_path):
        """Images were moved between the runs: what is finished stays, in the place that it has."""
        writer = open_writer(tmp_path / "f", feature_set())
        writer.append([result(n) for n in (3, 1, 2, 0, 8)])
        writer.close()
        assert write(tmp_path / "f", range(9)) == 4
        assert open_features(tmp_path / "f").sha256 == tuple(content(n) for n in (3, 1, 2, 0, 8, 4, 5, 6, 7))


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """No crash here takes the system with it, and hundreds of runs would wait for the disk most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Crash(BaseException):
    """The end of the process."""


@pytest.fixture
def crash_at(monkeypatch):
    """Let the n-th step of writing, and every one after it, raise; returns how many steps there were."""

    def arm(step, patch):
        count = 0

        def watched(original):
            def call(*arguments, **options):
                nonlocal count
                if getattr(arguments[0], "name", "") == ".lock":
                    return original(*arguments, **options)  # which the system lifts by itself when a process ends
                count += 1
                if step is not None and count >= step:
                    raise Crash
                return original(*arguments, **options)

            return call

        patch.setattr(os, "fsync", watched(os.fsync))
        for name in ("replace", "unlink", "mkdir"):
            patch.setattr(Path, name, watched(getattr(Path, name)))
        return lambda: count

    return arm


@pytest.mark.parametrize("embedding", [None, 5])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_crash_at_any_step_changes_no_byte(tmp_path, crash_at, monkeypatch, batch, embedding):
    """Each step of a run of 10 rows in shards of 4 is once its last; the next run makes what an unbroken one does."""
    failures = [failed_row("", "gone.png", "no such file")]

    def run(folder):
        return write(folder, range(10), batch=batch, embedding=embedding, failures=failures)

    with monkeypatch.context() as patch:
        steps = crash_at(None, patch)
        run(tmp_path / "unbroken")
        total = steps()
    expected = snapshot(tmp_path / "unbroken")
    assert total > 20
    for step in range(1, total + 1):
        folder = tmp_path / f"{step}"
        with monkeypatch.context() as patch:
            crash_at(step, patch)
            with pytest.raises(Crash):
                run(folder)
        journal = folder / "journal.jsonl"
        kept = journal.read_bytes().count(b"\n") if journal.exists() else 10 * (folder / "rows.parquet").exists()
        assert run(folder) == 10 - kept, step
        assert snapshot(folder) == expected, step


def test_crashes_one_after_the_other(tmp_path, crash_at, monkeypatch):
    """Every run dies a few rows after it took up the work of the one before."""
    write(tmp_path / "unbroken", range(10))
    runs = 0
    while True:
        with monkeypatch.context() as patch:
            crash_at(14, patch)
            try:
                write(tmp_path / "broken", range(10))
                break
            except Crash:
                runs += 1
        assert runs < 100
    assert runs > 1
    assert snapshot(tmp_path / "broken") == snapshot(tmp_path / "unbroken")


class TestTornWrites:
    """What a loss of power may leave of a file."""

    @pytest.fixture
    def unfinished(self, tmp_path):
        write(tmp_path / "unbroken", range(10), embedding=5)
        writer = open_writer(tmp_path / "f", feature_set(embedding=5))
        writer.append([result(n) for n in range(7)])
        writer.close()
        return tmp_path / "f"

    @pytest.mark.parametrize(
        ("name", "damage", "redone"),
        [
            ("journal.jsonl", lambda data: data[:-1], 4),
            ("journal.jsonl", lambda data: data[:-40], 4),
            ("journal.jsonl", lambda data: data + b'{"sha256": "', 3),
            ("journal.jsonl", lambda data: data + b"\0" * 500 + b"\n", 3),
            ("lare-00001.npy.partial", lambda data: data[:-1], 4),
            ("lare-00001.npy.partial", lambda data: data[:-96] + b"\0" * 96, 4),
            ("embedding-00001.npy.partial", lambda data: b"", 6),
            ("lare-00001.npy.partial", lambda data: data + b"rest" * 1000, 3),
        ],
    )
    def test_what_is_torn_is_computed_again(self, unfinished, tmp_path, name, damage, redone):
        path = unfinished / name
        path.write_bytes(damage(path.read_bytes()))
        assert write(unfinished, range(10), embedding=5) == redone
        assert snapshot(unfinished) == snapshot(tmp_path / "unbroken")

    def test_what_is_torn_does_not_stay_in_the_journal(self, unfinished):
        journal = unfinished / "journal.jsonl"
        whole = journal.read_bytes()
        journal.write_bytes(whole + b"\0" * 5000)
        writer = open_writer(unfinished, feature_set(embedding=5))
        writer.append([result(7)])
        writer.close()
        assert journal.read_bytes().startswith(whole)
        assert b"\0" not in journal.read_bytes()
        assert write(unfinished, range(10), embedding=5) == 2

    def test_what_no_crash_leaves_is_refused(self, unfinished):
        lines = (unfinished / "journal.jsonl").read_bytes().splitlines(keepends=True)
        (unfinished / "journal.jsonl").write_bytes(b"".join(lines[1:]))
        with pytest.raises(UsageError, match=r"journal\.jsonl is out of order; extract into another folder"):
            open_writer(unfinished, feature_set(embedding=5))
        (unfinished / "journal.jsonl").write_bytes(b"".join([*lines[:3], *lines[4:]]))
        with pytest.raises(UsageError, match=r"another number of rows than|is out of order"):
            open_writer(unfinished, feature_set(embedding=5))
        assert not (unfinished / ".lock").exists()
