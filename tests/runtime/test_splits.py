"""Drawn splits: whole sources, every generator in proportion, the same images whatever they are called."""

from collections import Counter
from dataclasses import replace

import pytest

from lare2_rt.tools.datasets.split import SplitOptions, arrange_splits
from lare2_rt.tools.datasets.table import IndexRow, index_of, read_index
from tests.helpers.image_sets import here, tree
from tests.helpers.refusals import refused


def rows_of(counts, *, split="", per_source=1):
    """Images of generators ('' for real ones), ``per_source`` of each source."""
    rows = []
    for generator, count in counts.items():
        for i in range(count):
            name = f"{generator or 'real'}-{i}"
            facts = {"width": 8, "height": 8, "format": "PNG", "jpeg_quality": -1, "bytes": 9, "error": ""}
            source = f"{generator}-{i // per_source}"
            rows.append(
                IndexRow(
                    path=name, label=int(bool(generator)), generator=generator, split=split, source=source,
                    sha256=name, **facts,
                )
            )  # fmt: skip
    return rows


def others(counts, *, split):
    """As many images of other sources."""
    return [replace(r, sha256=f"o{r.sha256}", source=f"o{r.source}") for r in rows_of(counts, split=split)]


def index(rows):
    return index_of(rows, root="/nowhere", layout="folders")


def counted(made):
    return Counter(zip(made.split, made.generator, strict=True))


def by_content(made):
    return dict(zip(made.sha256, made.split, strict=True))


COUNTS = {"": 100, "sd": 50, "glide": 10}


def test_every_generator_keeps_its_part():
    made = arrange_splits(index(rows_of(COUNTS)), SplitOptions(0.1, 0.2))
    for generator, count in COUNTS.items():
        got = [counted(made)[split, generator] for split in ("train", "val", "test")]
        assert got == [round(0.7 * count), round(0.1 * count), round(0.2 * count)]


def test_many_small_generators_add_up():
    """Of generators with two or three images each, rounding one by one would take none, or half of all."""
    made = arrange_splits(index(rows_of({"": 50, **{f"g{i}": 2 + i % 2 for i in range(20)}})), SplitOptions(0.2, 0.1))
    assert Counter(s for s, g in zip(made.split, made.generator, strict=True) if g) == {
        "train": 35,
        "val": 10,
        "test": 5,
    }


def test_sources_stay_whole():
    made = arrange_splits(index(rows_of({"": 90, "sd": 60}, per_source=3)), SplitOptions(0.2, 0.2))
    assert Counter(made.split) == {"train": 90, "val": 30, "test": 30}
    found = {}
    for source, split in zip(made.source, made.split, strict=True):
        assert found.setdefault(source, split) == split


def test_mixed_sources_and_copies_stay_whole():
    """A real image and what was made from it share a source; the same file twice, under two sources, is one family."""
    rows = [replace(row, source=f"s{i % 40}") for i, row in enumerate(rows_of({"": 40, "sd": 40}))]
    twins = [replace(row, path=f"copy of {row.path}", source=f"other {row.source}") for row in rows[:40]]
    made = arrange_splits(index([*rows, *twins]), SplitOptions(0.25, 0.25))
    splits = {}
    for i, row in enumerate([*rows, *twins]):
        for key in (row.source, row.sha256):
            assert splits.setdefault(key, made.split[i]) == made.split[i]
    assert Counter(made.split) == {"train": 60, "val": 30, "test": 30}


def test_thousands_of_one_source_take_no_time():
    rows = [replace(row, source="one") for row in rows_of({"": 20_000})]
    made = arrange_splits(index([*rows, *rows_of({"sd": 10})]), SplitOptions(0.2))
    assert len(set(made.split[:20_000])) == 1


def test_same_seed_same_images_whatever_their_names_and_order():
    rows = rows_of(COUNTS)
    first = by_content(arrange_splits(index(rows), SplitOptions(0.1, 0.2)))
    moved = [replace(row, path=f"elsewhere/{i}.png") for i, row in enumerate(reversed(rows))]
    assert by_content(arrange_splits(index(moved), SplitOptions(0.1, 0.2))) == first
    other = by_content(arrange_splits(index(rows), SplitOptions(0.1, 0.2, seed=1)))
    assert other != first
    assert Counter(other.values()) == Counter(first.values())


def test_only_training_images_move():
    rows = [*rows_of(COUNTS, split="train"), *others(COUNTS, split="test")]
    made = arrange_splits(index(rows), SplitOptions(0.1))
    assert made.split[160:] == ("test",) * 160
    assert Counter(made.split[:160]) == {"train": 144, "val": 16}


def test_a_source_that_is_tested_already_does_not_move():
    """It is in two splits, which is reported; drawing it would put it into a third."""
    rows = [*rows_of({"": 10, "sd": 10}, split="train")]
    tested = [replace(row, path=f"t{row.path}", sha256=f"t{row.sha256}", split="test") for row in rows[:10]]
    made = arrange_splits(index([*rows, *tested]), SplitOptions(0.5))
    assert made.split[:10] == ("train",) * 10
    assert Counter(made.split[10:20]) == {"train": 5, "val": 5}


def test_broken_images_stay():
    rows = [replace(row, error="cut", source="") if i % 2 else row for i, row in enumerate(rows_of({"": 40, "sd": 40}))]
    made = arrange_splits(index(rows), SplitOptions(0.5))
    assert Counter(s for s, e in zip(made.split, made.error, strict=True) if e) == {"train": 40}
    assert Counter(s for s, e in zip(made.split, made.error, strict=True) if not e) == {"train": 20, "val": 20}


def test_val_may_be_the_test_set():
    rows = [*rows_of(COUNTS, split="train"), *others(COUNTS, split="val")]
    made = arrange_splits(index(rows), SplitOptions(0.1, val_is_test=True))
    assert made.split[160:] == ("test",) * 160
    assert Counter(made.split[:160]) == {"train": 144, "val": 16}


def test_nothing_asked_for_changes_nothing():
    made = index(rows_of(COUNTS))
    assert arrange_splits(made, SplitOptions()) is made


@pytest.mark.parametrize(
    ("splits", "options", "about", "remedy"),
    [
        (("train", "val"), {"val": 0.1}, "split val", "leave --val-share out"),
        (("train", "test"), {"test": 0.1}, "split test", "leave --test-share out"),
        (("test",), {"val": 0.1}, "it has test", "leave --val-share and --test-share out"),
        (("train", "test"), {"val_is_test": True}, "--val-is-test", "this one has: test"),
        (("",), {"val_is_test": True}, "--val-is-test", "this one has: none"),
        (("train",), {"val": 0.6, "test": 0.4}, "--val-share 0.6 and --test-share 0.4", "below 1"),
        (("train",), {"val": -0.1}, "--val-share -0.1", "below 1"),
        (("train",), {"val": float("nan")}, "--val-share nan", "below 1"),
    ],
)
def test_refused(splits, options, about, remedy):
    rows = [replace(row, split=splits[i % len(splits)]) for i, row in enumerate(rows_of(COUNTS))]
    with refused(remedy, about=about):
        arrange_splits(index(rows), SplitOptions(**options))


@pytest.fixture
def command(monkeypatch, tmp_path):
    return here(monkeypatch, tmp_path)


def test_command(command, tmp_path):
    tree(tmp_path / "set", [f"{kind}/{i}.png" for kind in ("real", "fake/sd") for i in range(20)])
    run = command("index", "set", "--val-share", "0.2", "--test-share", "0.3", "--matched", "m", "--matched-size", "16")
    assert (run.returncode, run.stderr) == (0, "")
    for name in ("index.parquet", "m/index.parquet"):
        made = read_index(tmp_path / name)
        assert Counter(zip(made.split, made.label.tolist(), strict=True)) == {
            (split, label): count for split, count in (("train", 10), ("val", 4), ("test", 6)) for label in (0, 1)
        }
    again = command("index", "set", "--val-share", "0.2", "--test-share", "0.3", "--split-seed", "1", "--force")
    assert again.returncode == 0
    assert by_content(read_index(tmp_path / "index.parquet")) != by_content(read_index(tmp_path / "m/index.parquet"))
    run = command("index", "set", "--val-share", "1", "--out", "other.parquet")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("lare2-rt: --val-share 1 and --test-share 0 must not be negative")
    assert not (tmp_path / "other.parquet").exists()


def test_a_set_that_reports_on_val(command, tmp_path):
    """As published, GenImage has no test split: what that means is said, and the remedy works."""
    tree(
        tmp_path / "GenImage",
        [f"ADM/{s}/{k}/{i}.png" for s in ("train", "val") for k in ("ai", "nature") for i in range(10)],
    )
    run = command("index", "GenImage")
    assert run.returncode == 0
    assert "--val-is-test calls it so, and --val-share draws images for validation" in run.stderr
    run = command("index", "GenImage", "--val-is-test", "--val-share", "0.1", "--force")
    assert (run.returncode, run.stderr) == (0, "")
    assert Counter(read_index(tmp_path / "index.parquet").split) == {"train": 18, "val": 2, "test": 20}


def test_a_list_among_the_folders_is_named(command, tmp_path):
    root = tree(tmp_path / "set", ["real/1.png", "fake/2.png"])
    (root / "notes.csv").write_text("file,label\nx,1\n")
    (root / "huge.csv").write_bytes(b"\xff" * 100_000)
    (root / "folder.csv").mkdir()
    assert command("index", "set").stderr == ""
    (root / "manifest.csv").write_text(
        "\ufeffpath,label,generator,split\nfake/2.png,1,flux,train\nreal/1.png,0,,test\n"
    )
    run = command("index", "set", "--force")
    assert run.returncode == 0
    assert run.stderr == (
        "lare2-rt: note: set/manifest.csv lists images with their labels, which a folder's index does not take up; "
        "'lare2-rt index set/manifest.csv' does, with the splits, generators and sources that it names\n"
    )
    assert command("index", "set/manifest.csv", "--force").stderr == ""
    assert read_index(tmp_path / "index.parquet").generator == ("flux", "")
