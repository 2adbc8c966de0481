"""What ``lare2-rt infer`` can be given: folders, patterns, lists, standard input, formats; and how a run ends."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lare2_rt import ImageError, UsageError
from lare2_rt.bundle.manifest import Manifest
from lare2_rt.detection import DecisionRule
from lare2_rt.host.text import parse_amount
from lare2_rt.pixels.decode import is_heif, open_image
from lare2_rt.tools.inputs import expand, expand_names, read_list
from tests.conftest import ROOT
from tests.helpers import damage
from tests.helpers.commands import SUMMARY, sentences
from tests.helpers.processes import environment


def tree(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def picture(path, brightness=128):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (brightness,) * 3).save(path)
    return path


class TestFolders:
    def test_links_are_followed_and_each_folder_is_read_once(self, tmp_path, monkeypatch):
        tree(tmp_path, "album/b/2.jpg", "album/a/1.JPG", "album/note.txt", "album/c.heic", "disk/x/3.png")
        monkeypatch.chdir(tmp_path)
        links = {
            "album/up": "..",  # a circle, and a way to what lies beside
            "album/self": ".",
            "album/z": "a",  # there under its own name already
            "album/linked": "../disk",
            "album/again": "../disk",  # the first of the two names counts
            "album/dead.jpg": "nowhere",
        }
        for name, target in links.items():
            Path(name).symlink_to(target)
        own = ["album/a/1.JPG", "album/again/x/3.png", "album/b/2.jpg", "album/c.heic", "album/dead.jpg"]
        assert expand(["album"]) == own
        assert expand(["album/linked"]) == ["album/linked/x/3.png"]
        Path("album/again").unlink()
        Path("album/linked").unlink()
        assert expand(["album"])[-1] == "album/up/disk/x/3.png"

    def test_many_links_do_not_multiply(self, tmp_path):
        """Thirty folders, each with two links to the next: read by every path, that would be a billion."""
        for i in range(30):
            tree(tmp_path, f"{i:02}/{i}.jpg")
            for name in ("l", "m"):
                (tmp_path / f"{i:02}/{name}").symlink_to(f"../{i + 1:02}")
        assert len(expand([str(tmp_path / "00")])) == 30
        assert len(expand([str(tmp_path / "00/**/*.jpg")])) == 30

    @pytest.mark.parametrize(
        "pattern",
        ["**/*.jpg", "a/**", "a/**/*.jpg", "a/**/b/*.jpg", "**", "*/**/*.jpg", "./a/**/*.jpg", "**/.*", "a/*.jpg"],
    )
    def test_patterns_mean_what_they_mean_in_glob(self, tmp_path, monkeypatch, pattern):
        import glob

        tree(tmp_path, "a/x.jpg", "a/b/y.jpg", "a/b/.h/z.jpg", "a/.q.jpg", "c.jpg", "a/b/d/w.txt")
        monkeypatch.chdir(tmp_path)
        assert expand([pattern]) == sorted(p for p in glob.glob(pattern, recursive=True) if not os.path.isdir(p))
        whole = os.path.join(tmp_path, pattern)
        assert expand([whole]) == sorted(p for p in glob.glob(whole, recursive=True) if not os.path.isdir(p))


class TestLists:
    def test_reading(self):
        def read(content, null=False):
            return read_list(io.BytesIO(content), null=null, name="l.txt")

        assert read(b"\xef\xbb\xbfa.jpg\r\n\nb c.jpg\n#d\n\xff.jpg") == ["a.jpg", "b c.jpg", "#d", "\udcff.jpg"]
        assert read(b"two\nlines.jpg\0b\r\0\0", null=True) == ["two\nlines.jpg", "b\r"]
        for content in (b"", b"\n\n", b"\xef\xbb\xbf"):
            with pytest.raises(UsageError, match=r"l\.txt names no file"):
                read(content)
        with pytest.raises(UsageError, match="add --null"):
            read(b"a\0b")

    def test_names_are_literal_and_folders_are_folders(self, tmp_path, monkeypatch):
        tree(tmp_path, "a.jpg", "[a].jpg", "f/b.jpg")
        monkeypatch.chdir(tmp_path)
        assert expand_names(["[a].jpg", "*.jpg", "f"]) == ["[a].jpg", "*.jpg", "f/b.jpg"]

    def test_command(self, command, fake, tmp_path):
        names = ["b.png", "two\nlines.png", "a.png"]
        for name in names:
            picture(tmp_path / "here" / name)
        (tmp_path / "l").write_text("b.png\na.png\n")
        (tmp_path / "z").write_bytes("\0".join(names).encode())
        code, out, _ = command("infer", "a.png", "--list", tmp_path / "l", "--format", "jsonl")
        assert (code, [json.loads(line)["source"] for line in out.splitlines()]) == (0, ["a.png", "b.png", "a.png"])
        code, out, _ = command("infer", "--list", tmp_path / "z", "--null", "--format", "jsonl")
        assert (code, [json.loads(line)["source"] for line in out.splitlines()]) == (0, names)
        for arguments, words in (
            (["--list", "nowhere"], "nowhere"),
            (["--list", tmp_path], "is a directory"),
            (["a.png", "--null"], "add --list FILE"),
            (["-", "--list", "-"], "put the other images into files"),
            ([], "--list FILE"),
        ):
            code, _, said = command("infer", *arguments)
            assert (code, len(said.splitlines())) == (2, 1)
            assert words in said


class TestStandardInput:
    def test_one_image(self, command, rocket):
        _, out, _ = command("infer", "-", rocket, "--format", "jsonl", stdin=rocket.read_bytes())
        first, second = map(json.loads, out.splitlines())
        assert (first["source"], second["source"]) == ("<stdin>", str(rocket))
        assert first["logits"] == second["logits"]

    def test_between_others(self, command, fake, small):
        _, out, _ = command("infer", *small[:2], "-", small[0], "--format", "jsonl", stdin=small[3].read_bytes())
        names = [*map(str, small[:2]), "<stdin>", str(small[0])]
        assert [json.loads(line)["source"] for line in out.splitlines()] == names

    def test_a_list(self, command, fake, small):
        for content, more in ((f"{small[0]}\n", ()), (f"{small[0]}\0", ("--null",))):
            _, out, _ = command("infer", "--list", "-", *more, "--format", "jsonl", stdin=content.encode())
            assert json.loads(out)["source"] == str(small[0])

    def test_refusals(self, command, fake):
        for content, more in ((b"", ()), (bytes(3000), ("--max-bytes", "2k"))):
            code, _, err = command("infer", "-", *more, stdin=content)
            (sentence,) = sentences(err)
            assert (code, sentence.partition(":")[0]) == (1, "<stdin>")
            assert ("2000 bytes" in sentence) == bool(more)
        code, _, err = command("infer", "-", "--resume", "--out", "r.jsonl", stdin=b"x")
        assert code == 2
        assert "give the image as a file" in err

    def test_a_terminal(self, command, monkeypatch):
        pty = pytest.importorskip("pty")
        leader, follower = pty.openpty()
        with os.fdopen(follower) as terminal:
            monkeypatch.setattr(sys, "stdin", terminal)
            code, _, err = command("infer", "-")
        os.close(leader)
        assert code == 2
        assert "is a terminal" in err

    def test_closed(self, command, monkeypatch):
        monkeypatch.setattr(sys, "stdin", None)
        assert command("infer", "-")[0] == 2


class TestHeic:
    @pytest.fixture
    def content(self):
        pytest.importorskip("pillow_heif")
        rows, columns = np.ogrid[:64, :96]
        return damage.encoded(
            "HEIF", np.stack([rows * 4 + 0 * columns, columns * 2 + 0 * rows, rows + columns], 2).astype(np.uint8)
        )

    def test_is_decoded(self, content):
        assert is_heif(content)
        assert open_image(content).size == (96, 64)

    def test_avif_and_others_are_not_taken_for_it(self):
        for form in ("AVIF", "JPEG", "PNG"):
            assert not is_heif(damage.encoded(form, np.zeros((16, 16, 3), np.uint8)))
        assert not is_heif(b"")
        assert not is_heif(b"\0\0\0\x18ftyp")

    def test_without_the_extra(self, content, monkeypatch, command, fake, tmp_path):
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        with pytest.raises(ImageError) as raised:
            open_image(content)
        assert "pip install pillow-heif" in raised.value.remedy
        picture(tmp_path / "here/album/a.png")
        (tmp_path / "here/album/b.heic").write_bytes(content)
        code, _, said = command("infer", "album", "--no-isolate")
        assert code == 1
        (sentence,) = sentences(said)
        assert sentence == f"album/b.heic: {raised.value}"

    def test_broken_extra(self, content, tmp_path, monkeypatch):
        (tmp_path / "pillow_heif.py").write_text("raise OSError('libheif.so.1')")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "pillow_heif")
        with pytest.raises(ImageError, match=r"libheif\.so\.1") as raised:
            open_image(content)
        assert raised.value.remedy.startswith("pip install --force-reinstall")


class TestEnd:
    @pytest.fixture
    def album(self, tmp_path):
        for i in range(5):
            picture(tmp_path / f"here/{i}.png", 50 * i)
        (tmp_path / "here/2.png").write_bytes(b"no image")

    @pytest.fixture
    def judging(self, monkeypatch):
        monkeypatch.setattr(Manifest, "rule", property(lambda self: DecisionRule("calibrated", 0.55, 0.7)))

    def test_summary(self, command, fake, album, judging):
        _, _, said = command("infer", ".")
        last = said.splitlines()[-1].removeprefix("lare2-rt: ")
        assert SUMMARY.match(last)
        assert last.endswith(" s: 2 generated, 1 real, 1 unsure, 1 failed")
        assert not SUMMARY.search(command("infer", "0.png")[2].splitlines()[-1])

    def test_fail_fast(self, command, fake, album, tmp_path):
        code, out, said = command("infer", ".", "--fail-fast", "--format", "jsonl")
        assert code == 1
        assert [json.loads(line)["source"] for line in out.splitlines()] == ["./0.png", "./1.png", "./2.png"]
        assert "3 of 5 images: --fail-fast" in said
        assert command("infer", ".", "--fail-fast", "--out", "r.jsonl")[0] == 1
        assert (tmp_path / "here/r.jsonl.partial").exists()
        assert command("infer", "0.png", "--fail-fast")[0] == 0

    def test_fail_on_generated(self, command, fake, album, judging):
        assert command("infer", "0.png", "1.png", "--fail-on", "generated")[0] == 0
        assert command("infer", "0.png", "4.png", "--fail-on", "generated")[0] == 3
        assert command("infer", "2.png", "--fail-on", "generated")[0] == 1
        assert command("infer", ".", "--fail-on", "generated")[0] == 3  # weighs more than the file that failed

    def test_a_gate_that_could_never_close(self, command, fake, album, untrained):
        arguments = ("--fail-on", "generated", "--threshold", "0.5", "--bundle", str(untrained))
        code, out, said = command("infer", ".", *arguments)
        assert (code, out) == (2, "")
        assert "choose another bundle" in said
        assert fake.calls == 0

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--max-pixels", "many"], "--max-pixels is 'many'"),
            (["--max-pixels", "0"], "pixels must lie between 1 and"),
            (["--max-bytes", "-1"], "--max-bytes is '-1'"),
            (["--max-seconds", "0"], "seconds must lie between"),
            (["--max-seconds", "5", "--no-isolate"], "leave --no-isolate out"),
            (["--max-pixels", "500M", "--no-isolate"], "leave --no-isolate out"),
        ],
    )
    def test_limits_that_are_none(self, command, fake, album, arguments, words):
        code, _, said = command("infer", "0.png", *arguments)
        assert code == 2
        assert words in said

    def test_amounts(self):
        assert [parse_amount(text, "x") for text in ("7", "5M", "0.5G", "20 kB", " 1b ")] == [
            7,
            5_000_000,
            500_000_000,
            20_000,
            1,
        ]


def memory_of(pid):
    """Resident bytes of a process and its children."""
    # A process belongs to the thread that started it.
    children = [child for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]
    total = 0
    for each in (pid, *children):
        text = Path(f"/proc/{each}/status").read_text()
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")) * 1024
    return total


@pytest.mark.slow
@pytest.mark.parametrize(("form", "more"), [("jsonl", ()), ("parquet", ("--no-isolate",))])
def test_ten_thousand_files(tmp_path, form, more):
    """Memory stays flat after the first 500, with that of the decoding processes, and the order is kept."""
    folder = tmp_path / "pictures"
    generator = np.random.default_rng(3)
    names = [f"{number:05}.png" for number in range(10_000)]
    folder.mkdir()
    for name in names:
        Image.fromarray(generator.integers(0, 256, (24, 24, 3), np.uint8)).save(folder / name)
    target = tmp_path / f"r.{form}"
    line = [sys.executable, "-m", "tests.helpers.infer_child", "0", "infer", str(folder), "--out", str(target)]
    child = subprocess.Popen([*line, "--resume", *more], env=environment(ROOT))
    partial, size, samples = tmp_path / f"r.{form}.partial", 0, []
    while child.poll() is None:
        try:
            done = partial.stat().st_size
            size = size or (len(partial.read_bytes().split(b"\n")[0]) if done > 5000 else 0)
            if size and done > 500 * size:
                samples.append(memory_of(child.pid))
        except (FileNotFoundError, StopIteration):  # it has just ended
            pass
        time.sleep(0.05)
    assert child.returncode == 0
    assert len(samples) > 20
    print(f"{form} {more}: {samples[0] / 1e6:.0f} MB after 500, {max(samples) / 1e6:.0f} MB at most")
    assert max(samples) - samples[0] < 50_000_000
    if form == "parquet":
        from lare2_rt.results.parquet import read_records

        found = [record["source"] for record in read_records(target)]
    else:
        found = [json.loads(text)["source"] for text in target.read_text().splitlines()]
    assert found == [str(folder / name) for name in names]
