"""The leakage audit: its AUC is scikit-learn's, it finds what was put there and nothing else, and copies remove it."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.metrics import roc_auc_score

from lare2_rt.errors import OutputError
from lare2_rt.tools.datasets.audit import LEAK_FROM, audit_index
from lare2_rt.tools.datasets.build import build_index
from lare2_rt.tools.datasets.matched import MatchedOptions, write_matched
from lare2_rt.tools.datasets.table import IndexRow, index_of, read_index
from lare2_rt.tools.evaluation.scores import ranking
from tests.conftest import ROOT
from tests.helpers.image_sets import here, picture, snapshot, tree
from tests.helpers.refusals import refused

REAL_SET = Path(os.environ.get("LARE2_DATA", ROOT.parent / "shared/data"))


def index_with(n=200, *, real=None, generated=None, split="", both=None):
    """An index of n real and n generated images; callables change the row with number i of a class."""
    rows = []
    for label, change in ((0, real), (1, generated)):
        for i in range(n):
            row = IndexRow(
                path=f"{label}/{i}",
                label=label,
                generator="x" if label else "",
                split=split,
                source=f"{label}/{i}",
                width=512,
                height=384,
                format="JPEG",
                jpeg_quality=90,
                bytes=40_000 + i,
                sha256=f"{label}{i:063d}",
                error="",
            )
            for function in (both, change):
                row = row if function is None else replace(row, **function(i))
            rows.append(row)
    return index_of(rows, root="/nowhere", layout="folders")


class TestAuc:
    @pytest.mark.parametrize("seed", range(20))
    def test_is_scikit_learns(self, seed):
        random = np.random.default_rng(seed)
        n = int(random.integers(2, 300))
        labels = random.integers(0, 2, n)
        labels[:2] = (0, 1)
        scores = random.normal(size=n) if seed % 2 else random.integers(0, 5, n)  # without and with ties
        assert ranking(labels == 1, scores).curve().auc() == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)

    def test_extremes(self):
        for labels, scores, auc in (
            ([0, 0, 1, 1], [1.0, 2.0, 3.0, 4.0], 1),
            ([1, 1, 0, 0], [1.0, 2.0, 3.0, 4.0], 0),
            ([0, 1], [7.0, 7.0], 0.5),
        ):
            assert ranking(np.array(labels) == 1, np.array(scores)).curve().auc() == auc


class TestFindings:
    @pytest.mark.parametrize(
        ("fact", "change", "auc"),
        [
            ("size", lambda i: {"width": 1024, "height": 768}, 1.0),
            ("size", lambda i: {"width": 256, "height": 192}, 0.0),
            ("square", lambda i: {"width": 444, "height": 444}, 1.0),
            ("aspect", lambda i: {"width": 500, "height": 393}, 1.0),
            ("format", lambda i: {"format": "PNG", "jpeg_quality": -1}, 1.0),
            ("jpeg_quality", lambda i: {"jpeg_quality": 75}, 0.0),
            ("bytes_per_pixel", lambda i: {"bytes": 90_000}, 1.0),
        ],
    )
    def test_one_leak(self, fact, change, auc):
        report = audit_index(index_with(generated=change))
        finding = report.group("all").finding(fact)
        assert finding.auc == auc
        assert finding.distance == 0.5
        assert finding.verdict == ("content" if fact == "bytes_per_pixel" else "leak")
        assert finding.meaning

    def test_sizes_between_others(self):
        """Area as a score sees nothing where generated images lie in the middle; exact sizes do."""
        report = audit_index(index_with(real=lambda i: {"width": 512 + (128 if i % 2 else -128)}))
        assert report.group("all").finding("size").auc == pytest.approx(0.5)
        assert report.group("all").finding("exact_size").verdict == "leak"

    def test_many_sizes_are_no_leak_of_their_own(self):
        """Each size is there once, so each is pure; that is chance and nothing else."""
        random = np.random.default_rng(0)
        report = audit_index(index_with(both=lambda i: {"width": int(random.integers(300, 5000))}))
        assert report.group("all").finding("exact_size").auc == 0.5

    def test_no_leak(self):
        report = audit_index(index_with())
        assert report.leaks == ()
        assert [finding.auc for finding in report.groups[0].findings] == [0.5] * 7

    def test_by_chance(self):
        """Facts drawn without a look at the label are called leaks in about 5 of 100 sets, categories included."""
        random = np.random.default_rng(1)
        facts = ("size", "exact_size", "format", "bytes_per_pixel")
        struck = dict.fromkeys(facts, 0)
        for _ in range(60):
            index = index_with(
                60,
                both=lambda i: {
                    "width": int(random.choice([256, 384, 512, 768, 1024, 2048])),
                    "format": str(random.choice(["JPEG", "PNG", "WEBP"])),
                    "bytes": int(random.integers(10_000, 90_000)),
                },
            )
            group = audit_index(index).group("all")
            for fact in facts:
                struck[fact] += group.finding(fact).distance > group.finding(fact).chance
        assert all(count <= 9 for count in struck.values()), struck
        assert sum(struck.values()) > 2, "the bound is so wide that it finds nothing"

    def test_small_distances_do_not_matter(self):
        """In a large set far less than 0.05 is more than chance."""
        report = audit_index(index_with(5000, generated=lambda i: {"bytes": 40_000 + i + 150}))
        finding = report.group("all").finding("bytes_per_pixel")
        assert finding.chance < finding.distance < LEAK_FROM
        assert finding.verdict == "none"

    def test_busy_pictures_are_no_leak_unless_the_files_differ(self):
        smaller = {"bytes": 10_000}
        assert audit_index(index_with(generated=lambda i: smaller)).group("all").finding("bytes_per_pixel").verdict == (
            "content"
        )
        report = audit_index(index_with(generated=lambda i: {**smaller, "format": "WEBP"}))
        assert report.group("all").finding("bytes_per_pixel").verdict == "leak"

    def test_splits(self):
        leak = index_with(50, split="train", generated=lambda i: {"format": "PNG", "jpeg_quality": -1})
        clean = index_with(50, split="test")
        report = audit_index(index_of([*leak.rows(), *clean.rows()], root="/nowhere", layout="folders"))
        assert [group.group for group in report.groups] == ["all", "test", "train"]
        assert {group for group, finding in report.leaks if finding.fact == "format"} == {"all", "train"}
        assert report.group("train").finding("jpeg_quality").auc is None
        assert report.group("train").finding("jpeg_quality").verdict == "unknown"

    def test_one_class_or_none(self):
        index = index_with(5)
        for part in (index.select(index.label == 0), index.select([])):
            assert {finding.verdict for finding in audit_index(part).groups[0].findings} == {"unknown"}

    def test_broken_images_do_not_count(self):
        index = index_with(20, real=lambda i: {"error": "broken", "width": 0} if i % 2 else {})
        assert audit_index(index).groups[0].real == 10


@pytest.mark.skipif(not (REAL_SET / "manifest.csv").is_file(), reason=f"no {REAL_SET}/manifest.csv; set LARE2_DATA")
def test_a_real_set():
    """911 images with provenance: the shape leaks over the whole; in the test split nothing about the files does."""
    index = build_index(REAL_SET / "manifest.csv").index
    assert len(index) == 911
    assert not any(index.error)
    assert len(set(index.sha256)) == 911
    report = audit_index(index)
    whole, test = report.group("all"), report.group("test")
    assert whole.finding("square").auc == pytest.approx(0.851, abs=0.001)
    assert whole.finding("square").verdict == "leak"
    for fact in ("size", "exact_size", "square", "aspect", "format", "jpeg_quality"):
        assert test.finding(fact).auc == 0.5
        assert test.finding(fact).verdict == "none"
    assert test.finding("bytes_per_pixel").auc == pytest.approx(0.398, abs=0.001)
    assert test.finding("bytes_per_pixel").verdict == "content"
    assert (test.real, test.generated) == (55, 192)
    # The list of the set was made by another program.
    for row, line in zip(index.rows(), (REAL_SET / "manifest.csv").read_text().splitlines()[1:], strict=True):
        assert f",{row.width},{row.height},{row.format},{row.sha256},{row.bytes}," in line


@pytest.fixture
def leaky(tmp_path):
    """Real JPEGs of many sizes and generated square PNGs, both of noise, so that nothing but the files differs."""
    random = np.random.default_rng(5)
    for i in range(12):
        for kind in ("real", "fake"):
            size = (48, 48) if kind == "fake" else (40 + 3 * i, 33 + i)
            path = tmp_path / f"set/{'test' if i % 3 == 0 else 'train'}/{kind}/{i}.{'png' if kind == 'fake' else 'jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path, quality=60 + i)
    return tmp_path / "set"


class TestMatched:
    @pytest.mark.parametrize("form", ["jpeg", "png"])
    def test_removes_every_leak(self, leaky, tmp_path, form):
        index = build_index(leaky).index
        leaks = {finding.fact for _, finding in audit_index(index).leaks}
        assert leaks >= {"square", "aspect", "format", "bytes_per_pixel"}
        options = MatchedOptions(size=32, format=form, quality=90)
        made = write_matched(index, tmp_path / "matched", options)
        assert audit_index(made.index).leaks == ()
        again = read_index(tmp_path / "matched/index.parquet")
        assert list(again.rows()) == list(made.index.rows())
        assert (again.layout, again.root) == ("matched", str(tmp_path / "matched"))
        for new, old in zip(again.rows(), index.rows(), strict=True):
            assert (new.width, new.height, new.format) == (32, 32, form.upper())
            assert new.jpeg_quality == (90 if form == "jpeg" else -1)
            assert (new.label, new.generator, new.split) == (old.label, old.generator, old.split)
            assert new.source == old.sha256

    def test_is_the_centre_of_the_original(self, tmp_path):
        pixels = np.random.default_rng(2).integers(0, 256, (50, 61, 3), np.uint8)
        tree(tmp_path / "set", ["real/x.png"])
        Image.fromarray(pixels).save(tmp_path / "set/fake.png")
        (tmp_path / "set/fake").mkdir()
        (tmp_path / "set/fake.png").rename(tmp_path / "set/fake/x.png")
        index = build_index(tmp_path / "set").index
        made = write_matched(index, tmp_path / "m", MatchedOptions(size=20, format="png"))
        assert np.array_equal(np.asarray(Image.open(made.index.file(0))), pixels[15:35, 20:40])
        assert made.too_small == (1, 0)

    def test_files_hold_nothing_but_pixels(self, tmp_path):
        exif = Image.Exif()
        exif[0x010F] = "camera"
        exif[0x0112] = 6
        tree(tmp_path / "set", ["real/x.png"])
        (tmp_path / "set/fake").mkdir()
        (tmp_path / "set/fake/x.jpg").write_bytes(picture(3, form="JPEG", size=(40, 20), exif=exif, comment=b"made by"))
        for form in ("jpeg", "png"):
            made = write_matched(build_index(tmp_path / "set").index, tmp_path / form, MatchedOptions(16, form))
            image = Image.open(made.index.file(0))
            assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
            assert not image.getexif()

    def test_turned_as_cameras_say(self, tmp_path):
        pixels = np.random.default_rng(2).integers(0, 256, (40, 30, 3), np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6
        (tmp_path / "set/fake").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "set/fake/x.png", exif=exif)
        tree(tmp_path / "set", ["real/x.png"])
        made = write_matched(build_index(tmp_path / "set").index, tmp_path / "m", MatchedOptions(20, "png"))
        turned = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "set/fake/x.png")))
        assert turned.shape == (30, 40, 3)
        assert np.array_equal(np.asarray(Image.open(made.index.file(0))), turned[5:25, 10:30])

    def test_same_images_same_bytes(self, leaky, tmp_path):
        index = build_index(leaky).index
        for name, threads in (("a", 1), ("b", 3)):
            write_matched(index, tmp_path / name, MatchedOptions(32), threads=threads)
        first, second = (snapshot(tmp_path / name) for name in ("a", "b"))
        for files, name in ((first, "a"), (second, "b")):
            files["index.parquet"] = list(read_index(tmp_path / name / "index.parquet").rows())
        assert first == second
        assert len(first) == 26

    def test_an_unfinished_folder_is_completed(self, leaky, tmp_path, monkeypatch):
        index = build_index(leaky).index
        write_matched(index, tmp_path / "m", MatchedOptions(32))
        whole = snapshot(tmp_path / "m")
        (tmp_path / "m/index.parquet").unlink()
        copies = sorted((tmp_path / "m/train").rglob("*.jpg"))
        for path in copies[::2]:
            path.unlink()
        written = []
        from lare2_rt.tools.datasets import matched

        original = matched.write_bytes
        monkeypatch.setattr(
            matched, "write_bytes", lambda path, content: (written.append(path), original(path, content))
        )
        write_matched(index, tmp_path / "m", MatchedOptions(32))
        assert snapshot(tmp_path / "m") == whole
        assert sorted(written) == copies[::2]

    def test_other_options_and_foreign_folders_are_refused(self, leaky, tmp_path):
        index = build_index(leaky).index
        write_matched(index, tmp_path / "m", MatchedOptions(32))
        with refused("choose another folder", about="other options", kind=OutputError):
            write_matched(index, tmp_path / "m", MatchedOptions(16))
        with refused("choose a new folder", about="is not empty", kind=OutputError):
            write_matched(index, leaky, MatchedOptions(32))
        with refused("choose another folder", about="no/m", kind=OutputError):
            write_matched(index, tmp_path / "no/m", MatchedOptions(32))
        with refused("choose a smaller --matched-size", about="4000×4000"):
            write_matched(index, tmp_path / "n", MatchedOptions(4000))
        assert not (tmp_path / "n").exists()
        for name, value in (("size", 0), ("quality", 0), ("quality", 101)):
            with refused("give", about=f"not {value}"):
                MatchedOptions(**{name: value})

    def test_repeated_and_vanished_originals(self, leaky, tmp_path):
        original = leaky / "train/real/1.jpg"
        (leaky / "train/real/copy.jpg").write_bytes(original.read_bytes())
        index = build_index(leaky).index
        (leaky / "test/real/3.jpg").unlink()
        made = write_matched(index, tmp_path / "m", MatchedOptions(32))
        assert made.repeated == 1
        assert [(problem.path, problem.reason) for problem in made.problems] == [
            ("test/real/3.jpg", "no such file; check the path")
        ]
        assert len(made.index) == 23


class TestCommand:
    @pytest.fixture
    def command(self, monkeypatch, tmp_path):
        return here(monkeypatch, tmp_path)

    def test_audit(self, command, leaky, tmp_path):
        assert command("index", "set").returncode == 0
        run = command("audit")
        assert (run.returncode, run.stderr) == (0, "")
        assert "leak: format in all, test, train: JPEG, PNG, … as categories" in run.stdout
        assert "0.5 tells nothing" in run.stdout
        report = json.loads(command("audit", "--format", "json").stdout)
        assert report["audit"]["schema"] == "lare2-rt/audit/1"
        assert [group["group"] for group in report["audit"]["groups"]] == ["all", "test", "train"]

    def test_matched(self, command, leaky, tmp_path):
        run = command("index", "set", "--audit", "--matched", "m", "--matched-size", "36", "--format", "json")
        assert run.returncode == 0, run.stderr
        assert run.stderr == (
            "lare2-rt: note: 3 real and 0 generated images are smaller than 36×36 and left out; --matched-size chooses "
            "another size\n"
        )
        report = json.loads(run.stdout)
        assert report["matched"]["images"] == 21
        facts = {f["fact"]: f for f in report["matched_audit"]["groups"][0]["findings"]}
        assert facts["format"]["auc"] == facts["exact_size"]["auc"] == facts["jpeg_quality"]["auc"] == 0.5
        run = command("audit", "--matched", "m", "--matched-size", "36")
        assert run.returncode == 0
        assert "matched copies: 21 images in m/index.parquet" in run.stdout
        run = command("audit", "m/index.parquet")
        assert "leak:" not in run.stdout

    def test_no_index(self, command, tmp_path):
        run = command("audit")
        assert (run.returncode, run.stdout) == (2, "")
        assert run.stderr == (
            "lare2-rt: index.parquet does not exist; write it with 'lare2-rt index DATA --out index.parquet'\n"
        )

    def test_vanished_originals_cost_a_sentence(self, command, leaky):
        command("index", "set")
        (leaky / "test/real/3.jpg").unlink()
        run = command("audit", "--matched", "m", "--matched-size", "32")
        assert run.returncode == 1
        assert run.stderr == "lare2-rt: test/real/3.jpg: no such file; check the path\n"
