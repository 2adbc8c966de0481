"""Index tables: every layout, lists with wrong lines, hostile names, what is measured of a file, and its cache."""

import os
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_sets import picture, tree
from PIL import Image

from lare2_rt import UsageError
from lare2_rt.datasets import build_index, facts, read_index, write_index
from lare2_rt.datasets.generators import PROGAN_CLASSES
from lare2_rt.datasets.jpeg import estimate_quality
from lare2_rt.datasets.names import decode_name, encode_name
from lare2_rt.datasets.overlaps import find_overlaps

R, G = 0, 1
GENIMAGE = "genimage"
# Layout -> (name of the set's folder, {file: (label, generator, split)}).
LAYOUTS = {
    "genimage as published": (
        GENIMAGE,
        "GenImage",
        {
            "Midjourney/train/ai/1_midjourney_2.png": (G, "Midjourney", "train"),
            "Midjourney/train/nature/n01440764_1.JPEG": (R, "", "train"),
            "Stable Diffusion V1.4/val/ai/1_sdv4_1.png": (G, "Stable Diffusion V1.4", "val"),
            "Stable Diffusion V1.4/val/nature/ILSVRC2012_val_1.JPEG": (R, "", "val"),
        },
    ),
    "genimage as unpacked": (
        GENIMAGE,
        "GenImage",
        {
            "stable_diffusion_v_1_4/imagenet_ai_0419_sdv4/train/ai/1.png": (G, "stable_diffusion_v_1_4", "train"),
            "stable_diffusion_v_1_4/imagenet_ai_0419_sdv4/val/nature/1.JPEG": (R, "", "val"),
            "Midjourney/imagenet_midjourney/val/ai/1.png": (G, "Midjourney", "val"),
            "VQDM/imagenet_ai_0419_vqdm/val/ai/VQDM_1.png": (G, "VQDM", "val"),
        },
    ),
    "genimage, one generator": (
        GENIMAGE,
        "BigGAN",
        {"train/ai/1.png": (G, "BigGAN", "train"), "train/nature/1.JPEG": (R, "", "train")},
    ),
    "genimage, merged": (
        GENIMAGE,
        "set",
        {
            "imagenet_ai/train/ai/371_sdv5_00145.png": (G, "stable_diffusion_v_1_5", "train"),
            "imagenet_ai/train/ai/GLIDE_1000_200_00_123_glide_00001.png": (G, "glide", "train"),
            "imagenet_ai/train/ai/nothing.png": (G, "unknown", "train"),
            "imagenet_ai/val/nature/1.JPEG": (R, "", "val"),
        },
    ),
    "tiny-genimage": (
        "tiny-genimage",
        "tiny",
        {
            "imagenet_ai_0419_biggan/train/ai/1.png": (G, "BigGAN", "train"),
            "imagenet_ai_0419_biggan/val/nature/1.JPEG": (R, "", "val"),
            "imagenet_ai_0508_adm/val/ai/1.PNG": (G, "ADM", "val"),
            "imagenet_glide/val/ai/1.png": (G, "glide", "val"),
            "imagenet_ai_0123_midjourney/val/ai/1.png": (G, "Midjourney", "val"),
        },
    ),
    "aigcdetect": (
        "aigcdetect",
        "AIGCDetectBenchmark",
        {
            "stylegan/bedroom/0_real/1.png": (R, "", ""),
            "stylegan/bedroom/1_fake/1.png": (G, "stylegan", ""),
            "progan/train/1_fake/1.png": (G, "progan", ""),
            "DALLE2/1_fake/1.png": (G, "DALLE2", ""),
            "whichfaceisreal/0_real/1.jpeg": (R, "", ""),
        },
    ),
    "forensynths, training set": (
        "aigcdetect",
        "dataset",
        {
            "train/airplane/0_real/1.png": (R, "", "train"),
            "train/train/1_fake/1.png": (G, "progan", "train"),
            "val/tvmonitor/1_fake/1.png": (G, "progan", "val"),
        },
    ),
    "forensynths, one generator": (
        "aigcdetect",
        "progan",
        {
            "airplane/0_real/1.png": (R, "", ""),
            "train/0_real/1.png": (R, "", ""),
            "train/1_fake/1.png": (G, "progan", ""),
        },
    ),
    "fire": (
        "aigcdetect",
        "set",
        {"train/kandinsky/1_fake/1.png": (G, "kandinsky", "train"), "test/kandinsky/0_real/1.png": (R, "", "test")},
    ),
    "folders": (
        "folders",
        "mine",
        {
            "train/real/1.jpg": (R, "", "train"),
            "train/fake/sdxl/1.png": (G, "sdxl", "train"),
            "test/fake/flux/deep/1.webp": (G, "flux", "test"),
            "test/real/holiday/1.jpg": (R, "", "test"),
        },
    ),
    "folders, synonyms": (
        "folders",
        "mine",
        {
            "Authentic/1.jpg": (R, "", ""),
            "synthetic/1.jpg": (G, "unknown", ""),
            "AI_generated/validation/1.jpg": (G, "unknown", "val"),
        },
    ),
    "community-forensics": (
        "community-forensics",
        "cf",
        {
            "LatentConsistency/fake/1.png": (G, "LatentConsistency", ""),
            "LatentConsistency/real/1.png": (R, "", ""),
            "ffhq/real/1.png": (R, "", ""),
        },
    ),
}


def found(index):
    return {row.path: (row.label, row.generator, row.split) for row in index.rows()}


@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts(tmp_path, case):
    layout, name, expected = LAYOUTS[case]
    made = build_index(tree(tmp_path / name, expected))
    assert made.index.layout == layout
    assert found(made.index) == expected
    assert not any(made.index.error)
    assert made.index.path == tuple(sorted(expected))
    assert found(build_index(tmp_path / name, layout=layout).index) == expected


def test_every_class_of_forensynths_is_progan(tmp_path):
    names = [f"train/{name}/1_fake/1.png" for name in sorted(PROGAN_CLASSES)]
    made = build_index(tree(tmp_path / "dataset", names))
    assert set(made.index.generator) == {"progan"}
    assert set(made.index.split) == {"train"}


class TestFolders:
    def test_what_lies_elsewhere_is_counted_and_left_out(self, tmp_path):
        tree(tmp_path, ["real/1.png", "fake/1.png", "cover.png", "thumbs/2.png"])
        (tmp_path / "real/notes.txt").write_text("no image")
        made = build_index(tmp_path)
        assert made.index.path == ("fake/1.png", "real/1.png")
        assert made.unlabelled == ("cover.png", "thumbs/2.png")
        assert made.others == 1

    def test_both_labels_above_a_file(self, tmp_path):
        tree(tmp_path, ["real/1.png", "fake/real/2.png"])
        with pytest.raises(UsageError, match=r"fake/real/2\.png lies below fake and real, so its label is not clear"):
            build_index(tmp_path)

    def test_no_label(self, tmp_path):
        tree(tmp_path, ["a/1.png", "b/2.png"])
        with pytest.raises(UsageError, match=r"no image in .* lies in a folder that says what it is \(0_real, 1_fake"):
            build_index(tmp_path)
        with pytest.raises(UsageError, match=r"says what it is \(ai, nature\)"):
            build_index(tmp_path, layout="genimage")

    def test_a_named_layout_is_not_guessed(self, tmp_path):
        """With real and fake about, ai and nature alone count as labels."""
        tree(tmp_path, ["fake/train/ai/1.png", "fake/train/nature/1.png", "real/x/2.png"])
        made = build_index(tmp_path, layout="genimage")
        assert found(made.index) == {
            "fake/train/ai/1.png": (G, "fake", "train"),
            "fake/train/nature/1.png": (R, "", "train"),
        }
        assert made.unlabelled == ("real/x/2.png",)

    def test_empty_and_missing(self, tmp_path):
        for layout in ("auto", "genimage"):
            with pytest.raises(UsageError, match=r"no images in .*; check the path"):
                build_index(tmp_path, layout=layout)
        with pytest.raises(UsageError, match="does not exist; check the path"):
            build_index(tmp_path / "nowhere")
        with pytest.raises(UsageError, match="is a folder; for the layout 'list' give a file"):
            build_index(tmp_path, layout="list")

    def test_links_are_followed_but_not_in_circles(self, tmp_path):
        tree(tmp_path / "disk2", ["1.png", "2.png"])
        tree(tmp_path / "set", ["fake/3.png"])
        (tmp_path / "set/real").symlink_to(tmp_path / "disk2")
        (tmp_path / "set/fake/up").symlink_to(tmp_path / "set")
        assert build_index(tmp_path / "set").index.path == ("fake/3.png", "real/1.png", "real/2.png")

    def test_a_picture_that_is_none(self, tmp_path):
        tree(tmp_path, ["real/good.png", "fake/good.png"])
        (tmp_path / "real/cut.png").write_bytes(picture(9, size=(200, 200))[:-80])
        (tmp_path / "fake/text.jpg").write_text("no image")
        (tmp_path / "fake/empty.jpg").touch()
        (tmp_path / "fake/dangling.jpg").symlink_to("nowhere")
        os.mkfifo(tmp_path / "fake/pipe.jpg")
        index = build_index(tmp_path).index
        errors = {row.path: row.error for row in index.rows() if row.error}
        assert errors.keys() == {f"fake/{n}.jpg" for n in ("text", "empty", "dangling", "pipe")} | {"real/cut.png"}
        assert "not an image in a supported format" in errors["fake/text.jpg"]
        assert "truncated or damaged" in errors["real/cut.png"]
        broken = {row.path: row for row in index.rows()}
        assert broken["fake/text.jpg"].sha256
        assert broken["fake/text.jpg"].bytes == 8
        assert broken["fake/dangling.jpg"].sha256 == ""
        assert broken["fake/pipe.jpg"].sha256 == ""
        assert index.decodable.tolist() == [not row.error for row in index.rows()]


class TestLists:
    def test_official_format(self, tmp_path):
        """A tab or the last blank before the label; names of the list and of folders say what the lines do not."""
        tree(tmp_path, ["ADM/a.png", "my photos/b.png", "x_sdv5_y.png", "plain/c.png"])
        lines = ["ADM/a.png 1", "my photos/b.png 0", "", "x_sdv5_y.png\t1\r", f"{tmp_path}/plain/c.png  1"]
        (tmp_path / "val_vqdm_12k.txt").write_text("\n".join(lines))
        index = build_index(tmp_path / "val_vqdm_12k.txt").index
        assert index.layout == "list"
        assert [(row.path, row.label, row.generator, row.split) for row in index.rows()] == [
            ("ADM/a.png", 1, "ADM", "val"),
            ("my photos/b.png", 0, "", "val"),
            ("x_sdv5_y.png", 1, "stable_diffusion_v_1_5", "val"),
            ("plain/c.png", 1, "VQDM", "val"),
        ]
        assert index.root == str(tmp_path)

    def test_csv(self, tmp_path):
        tree(tmp_path, ["a.png", "b, c.png", "d.png"])
        text = 'path,label,generator,split,source,width\na.png,1,flux,train,s1,99\n"b, c.png",real,real,,s1,99\n'
        (tmp_path / "set.csv").write_text("\ufeff" + text + "d.png,fake,,testing,,1\n")
        index = build_index(tmp_path / "set.csv").index
        assert [(row.path, row.label, row.generator, row.split) for row in index.rows()] == [
            ("a.png", 1, "flux", "train"),
            ("b, c.png", 0, "", ""),
            ("d.png", 1, "unknown", "test"),
        ]
        assert index.source == ("s1", "s1", index.sha256[2])
        assert index.width.tolist() == [16, 16, 16]

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("l.txt", "a.png 1\n\nb.png\n", r"l\.txt line 3: no path or no label; write 'PATH LABEL'"),
            ("l.txt", "a.png 1\nb.png 2\n", r"l\.txt line 2: the label is '2'; it must be 0 \(real\) or 1"),
            ("l.txt", "a.png 1\n 1\n", r"l\.txt line 2: no path or no label"),
            ("l.txt", "\n\n", r"l\.txt lists no image"),
            ("l.txt", "a\0.png 1\n", r"l\.txt is no text"),
            ("l.csv", "file,label\na.png,1\n", r"l\.csv line 1: no column path"),
            ("l.csv", "", r"l\.csv line 1: no column label and no column path"),
            ("l.csv", "path,label\na.png,1\nb.png,x\n", r"l\.csv line 3: the label is 'x'"),
            ("l.csv", "path,label\na.png,1\nb.png\n", r"l\.csv line 3: 1 cells under 2 headings"),
            ("l.csv", "path,label\na, b.png,1\n", r"l\.csv line 2: 3 cells under 2 headings; quote"),
            ("l.csv", "path,label,split\na.png,1,later\n", r"l\.csv line 2: the split is 'later'; it must be train"),
            ("l.csv", 'path,label\n"a.png,1\n', r"l\.csv line 2: not valid CSV"),
            ("l.csv", "path,label\n,1\n", r"l\.csv line 2: no path"),
        ],
    )
    def test_wrong_lines_are_named(self, tmp_path, name, text, message):
        tree(tmp_path, ["a.png", "b.png"])
        (tmp_path / name).write_text(text)
        with pytest.raises(UsageError, match=message):
            build_index(tmp_path / name)

    def test_root(self, tmp_path):
        tree(tmp_path / "images", ["real/a.png", "fake/b.png"])
        (tmp_path / "list.txt").write_text("real/a.png 0\nfake/b.png 1\nfake/gone.png 1\n")
        with pytest.raises(
            UsageError, match=r"none of the images that .*list\.txt lists is in .*; say where with --root"
        ):
            build_index(tmp_path / "list.txt")
        index = build_index(tmp_path / "list.txt", root=str(tmp_path / "images")).index
        assert [bool(error) for error in index.error] == [False, False, True]
        assert "no such file" in index.error[2]
        with pytest.raises(UsageError, match="--root is for lists"):
            build_index(tmp_path / "images", root="x")
        with pytest.raises(UsageError, match="is a file; the layout 'genimage' is of folders"):
            build_index(tmp_path / "list.txt", layout="genimage")


class TestNames:
    NAMES = (
        "plain.png",
        "100%.png",
        "%25.png",
        "two\nlines.png",
        "\x1b[31mred.png",
        "[red]x[/red].png",
        "é 写真 😀.png",
        os.fsdecode(b"latin-\xe9-\xff.png"),
        os.fsdecode(b"%\xe9%E9.png"),
        " .png",
    )

    def test_tables_keep_every_name(self, tmp_path):
        root = tree(
            tmp_path / os.fsdecode(b"set-\xff%"), [f"{kind}/{n}" for n in self.NAMES for kind in ("real", "fake")]
        )
        index = build_index(root).index
        write_index(tmp_path / "index.parquet", index)
        again = read_index(tmp_path / "index.parquet")
        assert set(again.path) == {f"{kind}/{n}" for n in self.NAMES for kind in ("real", "fake")}
        assert again.path == index.path == tuple(sorted(index.path, key=os.fsencode))
        assert all(Path(again.file(i)).is_file() for i in range(len(again)))
        stored = pq.read_table(tmp_path / "index.parquet")
        assert "real/latin-%E9-%FF.png" in stored.column("path").to_pylist()
        assert "real/100%25.png" in stored.column("path").to_pylist()
        assert stored.schema.metadata[b"lare2_rt.root"] == os.fsencode(tmp_path) + b"/set-%FF%25"

    @pytest.mark.parametrize("name", [*NAMES, "a/b", ""])
    def test_there_and_back(self, name):
        encoded = encode_name(name)
        encoded.encode()
        assert decode_name(encoded) == name

    @pytest.mark.parametrize("stored", ["%", "%2", "%zz", "%41", "%e9", "a%0Ab", "a\0b"])
    def test_what_no_name_is_stored_as(self, stored):
        with pytest.raises(UsageError, match="write the index again"):
            decode_name(stored)

    def test_lists_keep_names_that_are_no_text(self, tmp_path):
        name = os.fsdecode(b"caf\xe9 \x85.png")  # \x85 ends a line for str.splitlines
        tree(tmp_path, [name])
        (tmp_path / "list.txt").write_bytes(os.fsencode(name) + b" 1\n")
        index = build_index(tmp_path / "list.txt").index
        assert index.path == (name,)
        assert index.error == ("",)


class TestTable:
    @pytest.fixture
    def index(self, tmp_path):
        return build_index(tree(tmp_path / "set", ["train/real/1.png", "test/fake/x/2.jpg"])).index

    def test_columns_as_agreed(self, index, tmp_path):
        write_index(tmp_path / "i.parquet", index)
        table = pq.read_table(tmp_path / "i.parquet")
        assert {field.name: str(field.type) for field in table.schema} == {
            "path": "string",
            "label": "int8",
            "generator": "string",
            "split": "string",
            "source": "string",
            "width": "int32",
            "height": "int32",
            "format": "string",
            "jpeg_quality": "int16",
            "bytes": "int64",
            "sha256": "string",
            "error": "string",
        }
        assert table.schema.metadata == {
            b"lare2_rt.schema": b"lare2-rt/index/1",
            b"lare2_rt.root": os.fsencode(index.root),
            b"lare2_rt.layout": b"folders",
        }

    def test_there_and_back(self, index, tmp_path):
        write_index(tmp_path / "i.parquet", index)
        again = read_index(tmp_path / "i.parquet")
        assert list(again.rows()) == list(index.rows())
        assert (again.root, again.layout) == (index.root, index.layout)
        assert len(again.digest) == 64
        assert [again.label.dtype, again.width.dtype, again.bytes.dtype] == [np.int8, np.int32, np.int64]
        assert read_index(tmp_path / "i.parquet", root="/elsewhere").file(0) == "/elsewhere/test/fake/x/2.jpg"

    def test_same_rows_same_bytes(self, index, tmp_path):
        for name in ("a", "b"):
            write_index(tmp_path / name, index)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_select(self, index):
        assert index.select(index.label == 1).path == ("test/fake/x/2.jpg",)
        assert index.select([1, 0]).path == index.path[::-1]
        assert len(index.select([])) == 0

    def test_empty(self, index, tmp_path):
        write_index(tmp_path / "i.parquet", index.select([]))
        assert len(read_index(tmp_path / "i.parquet")) == 0

    def test_not_an_index(self, index, tmp_path):
        file = tmp_path / "i.parquet"
        with pytest.raises(UsageError, match=r"does not exist; write it with 'lare2-rt index DATA"):
            read_index(file)
        file.write_bytes(b"PAR1 no table")
        with pytest.raises(UsageError, match="is not a Parquet table"):
            read_index(file)
        pq.write_table(pa.table({"path": ["a"]}), file)
        with pytest.raises(UsageError, match=r"has schema null where lare2-rt/index/1 is needed"):
            read_index(file)
        write_index(file, index)
        good = pq.read_table(file)
        for name, values, words in (
            ("label", pa.array([0, 2], pa.int8()), "its column label must hold 0 and 1"),
            ("label", pa.array([0, None], pa.int8()), "empty cells in its column label"),
            ("label", pa.array([0, 1], pa.int64()), "has no column label of type int8"),
            ("split", pa.array(["train", "later"]), "its column split must hold"),
            ("width", pa.array([1, -1], pa.int32()), "its column width must hold no negative number"),
            ("path", pa.array(["a", "%"]), "has a wrong escape"),
        ):
            place = good.column_names.index(name)
            pq.write_table(good.set_column(place, name, values), file)
            with pytest.raises(UsageError, match=words):
                read_index(file)
        pq.write_table(good.drop(["sha256"]), file)
        with pytest.raises(UsageError, match="has no column sha256"):
            read_index(file)
        pq.write_table(good.replace_schema_metadata({"lare2_rt.schema": "lare2-rt/index/1"}), file)
        with pytest.raises(UsageError, match="does not say where its images are"):
            read_index(file)

    def test_without_pyarrow(self, index, tmp_path, monkeypatch):
        write_index(tmp_path / "i.parquet", index)
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        for call in (lambda: read_index(tmp_path / "i.parquet"), lambda: write_index(tmp_path / "j.parquet", index)):
            with pytest.raises(UsageError, match=r"pyarrow is needed .*pip install 'lare2-rt\[data\]'"):
                call()
        assert not (tmp_path / "j.parquet").exists()


class TestOverlaps:
    def test_groups(self, tmp_path):
        same, other = picture(1), picture(2)
        for name, content in (
            ("train/real/a.png", same),
            ("train/real/b.png", same),
            ("test/real/c.png", same),
            ("test/fake/x/d.png", other),
            ("test/real/e.png", other),
            ("test/real/f.png", picture(3)),
            ("test/real/cut.png", b""),
            ("train/real/cut2.png", b""),
        ):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
        index = build_index(tmp_path).index
        overlaps = find_overlaps(index)

        def names(groups):
            return [tuple(Path(index.path[i]).name for i in group) for group in groups]

        assert names(overlaps.duplicates) == [("d.png", "e.png"), ("c.png", "a.png", "b.png")]
        assert names(overlaps.across_splits) == [("c.png", "a.png", "b.png")]
        assert names(overlaps.across_labels) == [("d.png", "e.png")]
        assert overlaps.copies == 3
        assert overlaps.sources_across_splits == ()

    def test_sources(self, tmp_path):
        tree(tmp_path, ["a.png", "b.png", "c.png"])
        rows = "a.png,0,train,one\nb.png,0,test,one\nc.png,1,test,two\n"
        (tmp_path / "l.csv").write_text("path,label,split,source\n" + rows)
        assert find_overlaps(build_index(tmp_path / "l.csv").index).sources_across_splits == ((0, 1),)


class TestMeasured:
    @pytest.mark.parametrize("quality", range(1, 101))
    def test_quality_of_libjpeg_is_exact(self, quality, tmp_path):
        """Two qualities with one table are the same setting."""
        path = tmp_path / "x.jpg"
        path.write_bytes(picture(5, form="JPEG", quality=quality))
        estimated = facts.measure(str(path)).jpeg_quality
        if estimated != quality:
            path.write_bytes(picture(5, form="JPEG", quality=estimated))
            tables = Image.open(path).quantization
            path.write_bytes(picture(5, form="JPEG", quality=quality))
            assert tables[0] == Image.open(path).quantization[0]

    def test_quality_of_other_encoders_is_near(self):
        tables = Image.open(_stream(picture(5, form="JPEG", quality=80))).quantization
        bent = [max(1, round(value * 1.03)) for value in tables[0]]
        assert abs(estimate_quality({0: bent}) - 80) <= 2
        assert estimate_quality(None) == estimate_quality({}) == estimate_quality({0: [0] * 64}) == -1

    def test_formats(self, tmp_path):
        for form, suffix in (("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif"), ("BMP", "bmp"), ("GIF", "gif")):
            path = tmp_path / f"x.{suffix}"
            path.write_bytes(picture(5, form=form, size=(9, 7)))
            measured = facts.measure(str(path))
            assert (measured.format, measured.width, measured.height, measured.jpeg_quality) == (form, 9, 7, -1)
        Image.new("RGB", (9, 7)).save(
            tmp_path / "x.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (9, 7))]
        )
        measured = facts.measure(str(tmp_path / "x.jpg"))
        assert (measured.format, measured.jpeg_quality) == ("JPEG", 75)

    def test_as_stored(self, tmp_path):
        """Width and height are the file's: EXIF turns nothing here."""
        exif = Image.Exif()
        exif[0x0112] = 6
        for form in ("JPEG", "TIFF"):
            path = tmp_path / f"x.{form}"
            path.write_bytes(picture(5, form=form, size=(9, 7), exif=exif))
            measured = facts.measure(str(path))
            assert (measured.width, measured.height, measured.format) == (9, 7, form)


def _stream(content):
    import io

    return io.BytesIO(content)


class TestCache:
    @pytest.fixture
    def photos(self, tmp_path, monkeypatch):
        monkeypatch.setattr(facts, "_SETTLED", -1.0)
        return tree(tmp_path / "set", [f"real/{i}.png" for i in range(5)] + ["fake/9.png"])

    @pytest.fixture
    def decoded(self, monkeypatch):
        """Names of the files that are really looked at."""
        seen = []
        original = facts.open_image
        monkeypatch.setattr(
            facts, "open_image", lambda path, **options: (seen.append(Path(path).name), original(path, **options))[1]
        )
        return seen

    def test_only_what_changed_is_decoded_again(self, photos, decoded, tmp_path):
        cache = tmp_path / "cache"
        first = build_index(photos, cache=cache).index
        assert len(decoded) == 6
        decoded.clear()
        assert list(build_index(photos, cache=cache).index.rows()) == list(first.rows())
        assert decoded == []
        (photos / "real/2.png").write_bytes(picture(99))
        os.utime(photos / "real/3.png")
        (photos / "real/4.png").rename(photos / "real/moved.png")
        again = build_index(photos, cache=cache).index
        assert sorted(decoded) == ["2.png", "3.png", "moved.png"]
        assert again.sha256[again.path.index("real/2.png")] != first.sha256[first.path.index("real/2.png")]

    def test_a_file_touched_just_now_is_not_trusted(self, photos, decoded, tmp_path, monkeypatch):
        monkeypatch.setattr(facts, "_SETTLED", 2.0)
        for _ in range(2):
            build_index(photos, cache=tmp_path / "cache")
        assert len(decoded) == 12

    def test_an_interrupted_run_is_taken_up(self, photos, decoded, tmp_path):
        def stop(done, total):
            if done == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build_index(photos, cache=tmp_path / "cache", threads=1, progress=stop)
        decoded.clear()
        build_index(photos, cache=tmp_path / "cache", threads=1)
        assert len(decoded) <= 2

    def test_broken_and_hostile_caches_are_not_used(self, photos, tmp_path):
        good = list(build_index(photos, cache=tmp_path / "cache").index.rows())
        (tmp_path / "cache/facts.sqlite").write_bytes(b"no database" * 1000)
        assert list(build_index(photos, cache=tmp_path / "cache").index.rows()) == good
        (tmp_path / "file").touch()
        assert list(build_index(photos, cache=tmp_path / "file").index.rows()) == good
        build_index(photos, cache=tmp_path / "third")
        with sqlite3.connect(tmp_path / "third/facts.sqlite") as rows:
            rows.execute("UPDATE facts SET value = '[1, 2, 3]'")
        assert list(build_index(photos, cache=tmp_path / "third").index.rows()) == good

    def test_errors_are_remembered_but_absence_is_not(self, photos, decoded, tmp_path):
        (photos / "real/text.png").write_text("no image")
        (photos / "real/gone.png").symlink_to("nowhere")
        first = build_index(photos, cache=tmp_path / "cache").index
        decoded.clear()
        assert list(build_index(photos, cache=tmp_path / "cache").index.rows()) == list(first.rows())
        assert decoded == ["gone.png"]

    @pytest.mark.parametrize("threads", [1, 2, 5])
    def test_threads_change_nothing(self, photos, tmp_path, threads):
        index = build_index(photos, threads=threads, cache=tmp_path / f"cache{threads}").index
        assert list(index.rows()) == list(build_index(photos, threads=3, cache=tmp_path / "other").index.rows())
