"""``lare2-rt extract``: right maps, once per content, and the same bytes however often the run was killed."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lare2_rt import Detector, EngineError, UsageError
from lare2_rt.pixels.ahead import Decoder
from lare2_rt.tools.datasets.build import build_index
from lare2_rt.tools.datasets.table import write_index
from lare2_rt.tools.features.extract import Extraction, ExtractOptions
from lare2_rt.tools.features.reader import open_features
from lare2_rt.tools.features.sources import sources_of
from tests.conftest import PHOTOS, ROOT
from tests.fakes.engine import use_engines
from tests.helpers.commands import without_privileges
from tests.helpers.extract_child import MapEngine
from tests.helpers.image_sets import here, picture, snapshot, tree
from tests.helpers.processes import environment

CHILD = ROOT / "tests/helpers/extract_child.py"


def ten_pictures(folder):
    """Ten contents, one of them twice."""
    names = [f"train/real/{i}.jpg" for i in range(5)] + [f"test/fake/x/{i}.png" for i in range(5)]
    root = tree(folder / "set", names)
    (root / "test/real").mkdir()
    (root / "test/real/again.jpg").write_bytes((root / "train/real/0.jpg").read_bytes())
    return root


@pytest.fixture
def photos(tmp_path):
    return ten_pictures(tmp_path)


@pytest.fixture
def fake(monkeypatch):
    engine = MapEngine()
    use_engines(monkeypatch, engine)
    return engine


@pytest.fixture
def command(monkeypatch, tmp_path):
    return here(monkeypatch, tmp_path)


def sentences(run):
    lines = run.stderr.splitlines()
    assert all(line.startswith("lare2-rt: ") for line in lines), run.stderr
    return [line.removeprefix("lare2-rt: ") for line in lines if not line.startswith("lare2-rt: bundle mini (")]


class TestMaps:
    def test_are_those_of_the_detector(self, tmp_path, embedded):
        """Maps, logits and probabilities, to the last bit, from the real engine."""
        folder = tmp_path / "photos"
        folder.mkdir()
        for path in PHOTOS[:2]:
            (folder / path.name).symlink_to(path)
        with Extraction.open(sources_of(folder), tmp_path / "f", ExtractOptions(embeddings=True)) as extraction:
            rows = list(extraction.run())
        assert [row.path for row in rows] == sorted(path.name for path in PHOTOS[:2])
        features = open_features(tmp_path / "f")
        with Detector.load(embedded) as detector:
            assert features.lare_id == detector.bundle.manifest.lare_id
            for i, detection in enumerate(detector.detect_many(folder / path for path in features.path)):
                assert np.array_equal(features.lare(i), detection.lare)
                assert tuple(features.logits[i].tolist()) == detection.logits
                assert features.probability[i] == detection.probability == rows[i].probability
        assert np.isfinite(features.embeddings(range(len(features)))).all()
        assert features.embeddings([0]).std() > 0

    @pytest.mark.parametrize("batch", [1, 4])
    def test_batches_and_shards(self, fake, photos, tmp_path, batch):
        (photos / "train/real/bad.jpg").write_text("no image")
        write_index(tmp_path / "i.parquet", build_index(photos).index)
        options = ExtractOptions(batch=batch, shard=3, embeddings=True)
        with Extraction.open(sources_of(tmp_path / "i.parquet"), tmp_path / "f", options) as extraction:
            assert (extraction.known, extraction.missing) == (0, 10)
            rows = list(extraction.run())
        assert [(row.shard, row.row) for row in rows] == [(i // 3, i % 3) for i in range(10)]
        features = open_features(tmp_path / "f")
        assert fake.calls == -(-10 // batch)
        for i, path in enumerate(features.path):
            number = int(Path(path).stem) if "again" not in path else 0
            from PIL import Image

            red, green, blue = np.asarray(Image.open(photos / path).convert("RGB")).reshape(-1, 3).mean(0)
            assert features.lare(i)[0, 0, 0] == pytest.approx(red, abs=0.01), number
            assert features.lare(i)[0, 0, 2] - features.lare(i)[0, 0, 1] == pytest.approx(green, abs=0.01)
            assert features.embedding(i)[0] == pytest.approx(blue, abs=0.01)
        assert [(path, error[:12]) for _, path, error in features.failures] == [("train/real/bad.jpg", "not an image")]

    @pytest.mark.parametrize("batch", [1, 4])
    def test_images_are_decoded_while_the_engine_computes(self, fake, photos, tmp_path, monkeypatch, batch):
        """Each call of the engine ends only when an image of the next one has been decoded, but for the last call."""
        decoded = threading.Condition()
        count = 0
        original = Decoder.decode

        def counting(*arguments, **options):
            nonlocal count
            pixels = original(*arguments, **options)
            with decoded:
                count += 1
                decoded.notify_all()
            return pixels

        def wait(call, output):
            with decoded:
                assert decoded.wait_for(lambda: count >= min(10, call * batch + 1), timeout=20)

        monkeypatch.setattr(Decoder, "decode", counting)
        fake.script = wait
        with Extraction.open(sources_of(photos), tmp_path / "f", ExtractOptions(batch=batch)) as extraction:
            assert len(list(extraction.run())) == 10

    def test_aligned_with_an_index(self, fake, photos, tmp_path):
        index = build_index(photos).index
        write_index(tmp_path / "i.parquet", index)
        with Extraction.open(sources_of(tmp_path / "i.parquet"), tmp_path / "f") as extraction:
            list(extraction.run())
        features = open_features(tmp_path / "f")
        rows = features.find(index.sha256)
        assert len(rows) == 11
        assert rows.min() == 0
        assert sorted(set(rows.tolist())) == list(range(10))
        assert features.info.index_sha256 is not None
        assert features.batch(rows).shape == (11, 4, 32, 32)


class TestOncePerContent:
    def extract(self, source, out, **options):
        with Extraction.open(sources_of(source), out, ExtractOptions(**options)) as extraction:
            return len(list(extraction.run()))

    def test_moved_and_renamed(self, fake, photos, tmp_path):
        assert self.extract(photos, tmp_path / "f") == 10
        before = snapshot(tmp_path / "f")
        (photos / "train/real/3.jpg").rename(photos / "train/real/new name.jpg")
        (photos / "test/fake/x").rename(photos / "test/fake/y")
        assert self.extract(photos, tmp_path / "f") == 0
        assert snapshot(tmp_path / "f") == before
        (photos / "train/real/more.jpg").write_bytes(picture(77, form="JPEG"))
        assert self.extract(photos, tmp_path / "f") == 1
        assert fake.calls == 11
        after = snapshot(tmp_path / "f")
        assert after["lare-00000.npy"] == before["lare-00000.npy"]
        assert len(open_features(tmp_path / "f")) == 11

    def test_a_changed_file_is_another_content(self, fake, photos, tmp_path):
        self.extract(photos, tmp_path / "f")
        (photos / "train/real/3.jpg").write_bytes(picture(78, form="JPEG"))
        assert self.extract(photos, tmp_path / "f") == 1

    def test_changed_and_vanished_since_the_index(self, fake, photos, tmp_path):
        """The index says what a file was; a map of something else must not go by that name."""
        write_index(tmp_path / "i.parquet", build_index(photos).index)
        (photos / "train/real/3.jpg").write_bytes(picture(78, form="JPEG"))
        (photos / "train/real/4.jpg").unlink()
        (photos / "train/real/0.jpg").unlink()  # there is a copy of it
        assert self.extract(tmp_path / "i.parquet", tmp_path / "f") == 10
        features = open_features(tmp_path / "f")
        assert len(features) == 8
        assert {path: error for _, path, error in features.failures} == {
            "train/real/3.jpg": "it changed since it was indexed; index again",
            "train/real/4.jpg": "no such file; check the path",
        }

    def test_root_of_moved_images(self, fake, photos, tmp_path):
        write_index(tmp_path / "i.parquet", build_index(photos).index)
        photos.rename(tmp_path / "elsewhere")
        sources = sources_of(tmp_path / "i.parquet", root=str(tmp_path / "elsewhere"))
        with Extraction.open(sources, tmp_path / "f") as extraction:
            assert not any(row.error for row in extraction.run())

    def test_embeddings_follow_the_folder(self, fake, photos, tmp_path):
        self.extract(photos / "train", tmp_path / "f", embeddings=True, shard=2)
        assert self.extract(photos, tmp_path / "f") == 5
        features = open_features(tmp_path / "f")
        assert features.embeddings(range(10)).shape[0] == 10
        assert features.info.shard == 2


class TestSources:
    def test_unlabelled_folders_and_lists(self, fake, photos, tmp_path):
        """Labels play no part."""
        plain = tree(tmp_path / "plain", ["a.png", "b/c.jpg"])
        (tmp_path / "list.txt").write_text("plain/b/c.jpg 0\nplain/a.png 1\n")
        assert [file.name for file in sources_of(plain).files] == ["a.png", "b/c.jpg"]
        listed = sources_of(tmp_path / "list.txt")
        assert [file.name for file in listed.files] == ["plain/b/c.jpg", "plain/a.png"]
        assert listed.index_sha256 is None

    def test_nothing(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(UsageError, match="no images in"):
            sources_of(tmp_path / "empty")
        with pytest.raises(UsageError, match="does not exist"):
            sources_of(tmp_path / "nowhere")

    def test_hostile_names(self, fake, command, tmp_path):
        names = [os.fsdecode(b"\xff%.png"), "two\nlines.png", "\x1b[31mred.png", "[b]x[/b].png"]
        root = tree(tmp_path / "set", names)
        (root / "\x1bbad\n.png").write_text("no image")
        run = command("extract", "set", "--out", "f")
        assert run.returncode == 1
        assert sentences(run)[0].startswith(r"\x1bbad\n.png: not an image")
        assert set(open_features(tmp_path / "f").path) == set(names)


class TestCommand:
    def test_all_good(self, command, fake, photos):
        run = command("extract", "set", "--out", "f", "--shard", "4")
        assert (run.returncode, run.stdout) == (0, "")
        (said,) = sentences(run)
        assert said.startswith("f: 10 maps; now 10 extracted, ")
        assert said.endswith(" images/s, 0 were there, 0 failed")
        run = command("extract", "set", "--out", "f")
        assert sentences(run) == ["f: 10 maps; now 0 extracted, 10 were there, 0 failed"]
        assert fake.calls == 10
        assert fake.closed == 2

    def test_failures_cost_a_sentence_each(self, photos, tmp_path):
        (photos / "empty.jpg").touch()
        secret = photos / "secret.jpg"
        secret.write_bytes(picture(50, form="JPEG"))
        secret.chmod(0)
        run = subprocess.run(
            [sys.executable, CHILD, "extract", "set", "--out", "f"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=without_privileges,
            env=environment(ROOT),
        )
        assert run.returncode == 1
        empty, secret_said, done = sentences(run)
        assert empty == "empty.jpg: the file is empty; copy or download it again"
        assert secret_said == "secret.jpg: no permission to read it; change its access rights"
        assert done.startswith("f: 10 maps; now 10 extracted")
        assert done.endswith("2 failed")
        assert [path for _, path, _ in open_features(tmp_path / "f").failures] == ["empty.jpg", "secret.jpg"]

    def test_what_the_engine_has_to_say_is_said(self, command, monkeypatch, photos, tmp_path):
        """Among it that compiling begins, and why ``auto`` took another engine."""

        class Compiling(MapEngine):
            def open(self, bundle, options):
                options.say("compiling the fast engine, once")
                raise EngineError("its compiler failed", remedy="update it")

        broken, other = Compiling(name="fast", compiled=True), MapEngine(name="other")
        use_engines(monkeypatch, broken, other)
        run = command("extract", "set", "--out", "f")
        assert run.returncode == 0, run.stderr
        assert "compiling the fast engine, once" in run.stderr
        assert "fast is not used: its compiler failed" in run.stderr
        with Extraction.open(sources_of(photos), tmp_path / "f") as extraction:
            assert [rejected.name for rejected in extraction.rejected] == ["fast"]

    def test_not_a_number(self, command, fake, photos, tmp_path):
        def script(call, output):
            if call == 2:
                output.logits[0] = np.nan

        fake.script = script
        run = command("extract", "set", "--out", "f")
        assert run.returncode == 1
        assert "NaN or infinity" in sentences(run)[0]
        assert len(open_features(tmp_path / "f")) == 9
        assert command("extract", "set", "--out", "f").returncode == 0
        assert len(open_features(tmp_path / "f")) == 10

    def test_an_engine_that_fails_in_the_middle(self, command, fake, photos, tmp_path):
        def script(call, output):
            if call == 6:
                raise EngineError("the device went away; restart")

        with Extraction.open(sources_of(photos), tmp_path / "unbroken", ExtractOptions(shard=2)) as extraction:
            list(extraction.run())
        fake.calls, fake.script = 0, script
        run = command("extract", "set", "--out", "f", "--shard", "2")
        assert run.returncode == 1
        (said,) = sentences(run)
        assert said.startswith("stopped after ")
        assert said.endswith(
            "of 10 images: the device went away; restart; what is finished is kept: run the same command again to go on"
        )
        fake.calls, fake.script = 0, None
        assert command("extract", "set", "--out", "f", "--shard", "2").returncode == 0
        assert fake.calls == 5
        assert snapshot(tmp_path / "f") == snapshot(tmp_path / "unbroken")

    def test_features_of_another_lare(self, command, fake, photos, tmp_path, bundle_copy):
        assert command("extract", "set", "--out", "f").returncode == 0
        described = json.loads((tmp_path / "f/features.json").read_text())
        (tmp_path / "f/features.json").write_text(json.dumps({**described, "lare_id": "f" * 64}))
        before = snapshot(tmp_path / "f")
        run = command("extract", "set", "--out", "f")
        assert (run.returncode, run.stdout) == (2, "")
        (said,) = sentences(run)
        assert said.startswith("f holds features of LaRE ffffffffffff and the bundle makes ")
        assert said.endswith("its weights, noise or preprocessing differ; choose another folder")
        assert snapshot(tmp_path / "f") == before

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("nowhere", "--out", "f"), "nowhere does not exist"),
            (("set", "--out", "missing/f"), "the folder missing does not exist; create it first"),
            (("set", "--out", "set"), "set is not empty and holds no features; choose another folder"),
            (("set", "--out", "f", "--engine", "none"), "there is no engine 'none'"),
            (("set", "--out", "f", "--bundle", "set"), "so it is not a bundle"),
        ],
    )
    def test_what_cannot_start(self, command, fake, photos, tmp_path, arguments, words):
        before = snapshot(tmp_path)
        run = command("extract", *arguments)
        assert (run.returncode, run.stdout) == (2, "")
        (said,) = sentences(run)
        assert words in said
        assert snapshot(tmp_path) == before
        assert fake.calls == 0

    def test_full_disk(self, command, fake, photos, tmp_path, monkeypatch):
        import errno

        def full(handle):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        command("extract", "set/train", "--out", "f", "--shard", "2")
        with monkeypatch.context() as patch:
            from lare2_rt.tools.features import shards

            patch.setattr(shards.os, "fsync", full)
            run = command("extract", "set", "--out", "f")
        assert run.returncode == 1
        (said,) = sentences(run)
        assert said == (
            "stopped after 0 of 5 images: cannot write into f: no space left on device; what is finished is kept: free "
            "some space and run the same command again"
        )
        assert command("extract", "set", "--out", "f").returncode == 0
        assert len(open_features(tmp_path / "f")) == 10


OPTIONS = ("--shard", "4", "--embeddings")


def runs(folder, *jobs, pause=0.0):
    """Run the command with an instant engine once per job: name of the feature folder, step at which it dies or 0.

    Returns for each the exit code (negative for a signal), the steps of writing, and the calls of the engine.
    """
    plan = [(["extract", "set", "--out", out, *OPTIONS], kill_at) for out, kill_at in jobs]
    run = subprocess.run(
        [sys.executable, CHILD, json.dumps(plan)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
        env=environment(ROOT, PAUSE=pause),
    )
    return [tuple(answer) for answer in json.loads(run.stdout)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """(Files, number of steps of writing) of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("unbroken")
    ten_pictures(folder)
    ((code, steps, calls),) = runs(folder, ("f", 0))
    assert (code, calls) == (0, 10)
    return snapshot(folder / "f"), steps


def killed(folder, unbroken, moments):
    """Kill a run at each of these shares of its steps of writing, then let it end; compare with an unbroken one."""
    expected, steps = unbroken
    at = [1 + int(moment * steps) for moment in moments]
    answers = runs(folder, *(job for i, step in enumerate(at) for job in ((f"f{i}", step), (f"f{i}", 0))))
    assert [code for code, _, _ in answers] == [-signal.SIGKILL, 0] * len(at)
    for i, step in enumerate(at):
        assert snapshot(folder / f"f{i}") == expected, f"killed at step {step} of {steps}"


class TestKilled:
    def test_at_three_moments(self, photos, tmp_path, unbroken):
        killed(tmp_path, unbroken, [random.Random(3).random() for _ in range(3)])

    @pytest.mark.slow
    def test_at_twenty_moments(self, photos, tmp_path, unbroken):
        killed(tmp_path, unbroken, [random.Random(20).random() for _ in range(20)])

    @pytest.mark.slow
    def test_with_the_real_engine(self, tmp_path, lare2_rt):
        """From outside, at times between the first row and the last, each run going on where the last one died."""
        root = tree(tmp_path / "set", [f"{i}.png" for i in range(40)])
        assert root.is_dir()
        assert lare2_rt("extract", "set", "--out", "unbroken", "--shard", "7", "--embeddings").returncode == 0
        draw, kills = random.Random(9), 0
        command = [sys.executable, "-m", "lare2_rt", "extract", "set", "--out", "f", "--shard", "7", "--embeddings"]
        journal = tmp_path / "f/journal.jsonl"
        while kills < 20:
            rows = journal.read_bytes().count(b"\n") if journal.exists() else 0
            with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
                while process.poll() is None and (journal.read_bytes().count(b"\n") if journal.exists() else 0) <= rows:
                    time.sleep(0.01)
                time.sleep(draw.uniform(0, 0.3))
                process.kill()
            kills += 1
            if process.returncode == 0:  # it was done before
                break
        assert kills > 10
        assert lare2_rt("extract", "set", "--out", "f", "--shard", "7", "--embeddings").returncode == 0
        assert snapshot(tmp_path / "f") == snapshot(tmp_path / "unbroken")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_ctrl_c_keeps_what_is_finished(self, photos, tmp_path, unbroken, number):
        command = [sys.executable, CHILD, "extract", "set", "--out", "f", *OPTIONS]
        options = {"cwd": tmp_path, "env": environment(ROOT, PAUSE=0.1), "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **options) as process:
            while process.poll() is None and not (tmp_path / "f/lare-00000.npy").exists():
                time.sleep(0.01)
            process.send_signal(number)
            _, err = process.communicate(timeout=30)
        assert process.returncode == 128 + number, err
        said = err.splitlines()[-1]
        word = "interrupted" if number == signal.SIGINT else "terminated"
        assert said.startswith(f"lare2-rt: {word} after ")
        assert said.endswith("of 10 images; what is finished is kept: run the same command again to go on")
        assert (tmp_path / "f/lare-00000.npy").stat().st_size == 128 + 4 * 4 * 32 * 32 * 4
        ((code, _, calls),) = runs(tmp_path, ("f", 0))
        assert code == 0
        assert calls <= 6
        assert snapshot(tmp_path / "f") == unbroken[0]


def test_progress_shows_rate_and_time_left(photos, tmp_path):
    """On a terminal, and on standard error only."""
    import pty

    leader, follower = pty.openpty()
    options = {"cwd": tmp_path, "env": environment(ROOT, PAUSE=0.1, TERM="xterm"), "stdout": subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, CHILD, "extract", "set", "--out", "f"], stderr=follower, **options
    ) as process:
        os.close(follower)
        seen = b""
        while True:
            try:
                chunk = os.read(leader, 65536)
            except OSError:
                break
            if not chunk:
                break
            seen += chunk
        out = process.stdout.read()
    os.close(leader)
    assert process.returncode == 0
    assert out == b""
    text = seen.decode()
    assert "extracting" in text
    assert "images/s" in text
    assert "/10" in text
    assert "0:00:0" in text
