"""Index tables: lists with wrong lines, hostile names, what is stored, and overlaps."""

import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lare2_rt.host.text import decode_name, encode_name
from lare2_rt.tools.datasets.build import build_index
from lare2_rt.tools.datasets.split import find_overlaps
from lare2_rt.tools.datasets.table import read_index, write_index
from tests.helpers.image_sets import picture, tree
from tests.helpers.refusals import refused

R, G = 0, 1


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
        ("name", "text", "about", "remedy"),
        [
            ("l.txt", "a.png 1\n\nb.png\n", "l.txt line 3:", "write 'PATH LABEL'"),
            ("l.txt", "a.png 1\nb.png 2\n", "l.txt line 2: the label is '2'", "0 (real) or 1"),
            ("l.txt", "a.png 1\n 1\n", "l.txt line 2:", "write 'PATH LABEL'"),
            ("l.txt", "\n\n", "l.txt", "write lines 'PATH LABEL'"),
            ("l.txt", "a\0.png 1\n", "l.txt", "give a folder of images, a list of them"),
            ("l.csv", "file,label\na.png,1\n", "l.csv line 1: no column path", "name it in the heading"),
            ("l.csv", "", "l.csv line 1: no column label and no column path", "name it in the heading"),
            ("l.csv", "path,label\na.png,1\nb.png,x\n", "l.csv line 3: the label is 'x'", "0 (real) or 1"),
            ("l.csv", "path,label\na.png,1\nb.png\n", "l.csv line 3: 1 cells under 2", "quote"),
            ("l.csv", "path,label\na, b.png,1\n", "l.csv line 2: 3 cells under 2", "quote"),
            ("l.csv", "path,label,split\na.png,1,later\n", "l.csv line 2: the split is 'later'", "train, val, test"),
            ("l.csv", 'path,label\n"a.png,1\n', "l.csv line 2:", "correct it"),
            ("l.csv", "path,label\n,1\n", "l.csv line 2: no path", "write the path"),
        ],
    )
    def test_wrong_lines_are_named(self, tmp_path, name, text, about, remedy):
        tree(tmp_path, ["a.png", "b.png"])
        (tmp_path / name).write_text(text)
        with refused(remedy, about=about):
            build_index(tmp_path / name)

    def test_root(self, tmp_path):
        tree(tmp_path / "images", ["real/a.png", "fake/b.png"])
        (tmp_path / "list.txt").write_text("real/a.png 0\nfake/b.png 1\nfake/gone.png 1\n")
        with refused("say where with --root", about="list.txt"):
            build_index(tmp_path / "list.txt")
        index = build_index(tmp_path / "list.txt", root=str(tmp_path / "images")).index
        assert [bool(error) for error in index.error] == [False, False, True]
        assert "no such file" in index.error[2]
        with refused("relative to the folder", about="--root"):
            build_index(tmp_path / "images", root="x")
        with refused("'genimage' is of folders", about="list.txt"):
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
        with refused("write the index again"):
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
        with refused("lare2-rt index DATA", about="does not exist"):
            read_index(file)
        file.write_bytes(b"PAR1 no table")
        with refused("lare2-rt index DATA", about="is not a Parquet table"):
            read_index(file)
        pq.write_table(pa.table({"path": ["a"]}), file)
        with refused("lare2-rt index DATA", about="has schema null where lare2-rt/index/1"):
            read_index(file)
        write_index(file, index)
        good = pq.read_table(file)
        for name, values, about, remedy in (
            ("label", pa.array([0, 2], pa.int8()), "column label must hold 0 and 1", "lare2-rt index DATA"),
            ("label", pa.array([0, None], pa.int8()), "empty cells in its column label", "lare2-rt index DATA"),
            ("label", pa.array([0, 1], pa.int64()), "no column label of type int8", "lare2-rt index DATA"),
            ("split", pa.array(["train", "later"]), "column split", "lare2-rt index DATA"),
            ("width", pa.array([1, -1], pa.int32()), "column width", "lare2-rt index DATA"),
            ("path", pa.array(["a", "%"]), "i.parquet: the name '%'", "write the index again"),
        ):
            place = good.column_names.index(name)
            pq.write_table(good.set_column(place, name, values), file)
            with refused(remedy, about=about):
                read_index(file)
        pq.write_table(good.drop(["sha256"]), file)
        with refused("lare2-rt index DATA", about="no column sha256"):
            read_index(file)
        pq.write_table(good.replace_schema_metadata({"lare2_rt.schema": "lare2-rt/index/1"}), file)
        with refused("lare2-rt index DATA", about="where its images are"):
            read_index(file)

    def test_without_pyarrow(self, index, tmp_path, monkeypatch):
        write_index(tmp_path / "i.parquet", index)
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        for call in (lambda: read_index(tmp_path / "i.parquet"), lambda: write_index(tmp_path / "j.parquet", index)):
            with refused("pip install pyarrow"):
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
