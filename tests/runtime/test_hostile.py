"""File names and file contents that mean harm: each is answered or refused in one sentence, and no output breaks."""

import csv
import io
import json
import os
import re
import subprocess
import unicodedata
import warnings
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import EpsImagePlugin, Image, ImageFile

from lare2_rt import ImageError
from lare2_rt.columns import csv_columns
from lare2_rt.detection import DecisionRule, Provenance, failed, scored
from lare2_rt.host.text import printable, spreadsheet_safe
from lare2_rt.pixels.decode import open_image
from lare2_rt.pixels.policy import Preprocessing
from lare2_rt.pixels.preprocess import preprocess
from lare2_rt.results.parquet import read_records
from lare2_rt.results.writers import writer_for
from lare2_rt.tools.inputs import expand
from tests.helpers import damage
from tests.helpers.commands import SUMMARY, call

FORMS = ("table", "json", "jsonl", "csv")
FORMULA = ("=", "+", "-", "@", "＝")
NAMES = [
    "[/bold].jpg",
    "[red]stop[/red] :boom: [link=x]y.jpg",
    "two\nlines.jpg",
    "back\rover.jpg",
    "\x1b[31mred\x1b]0;title\x07.jpg",
    "\x9b31mred.jpg",
    "\u202egpj.exe.jpg",
    "\u2028line.jpg",
    os.fsdecode(b"latin-\xe9-\xff.jpg"),
    os.fsdecode(b"=\xff.jpg"),
    "=1+1.jpg",
    "=cmd|' /C calc'!A0.jpg",
    "+x.jpg",
    "@x.jpg",
    "＝x.jpg",
    "./-x.jpg",
    "inside/-x.jpg",
    '"quoted",and,cut.jpg',
    "{brace}$(touch x)`touch y`.jpg",
    "<script>.jpg",
    "<script>alert(1)<script>.jpg",
    "  .jpg",
    "\\n.jpg",
    "é 写真 😀.jpg",
]

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj 2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\n"
PDF += b"trailer<</Root 1 0 R>>\n%%EOF\n"


def square(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)


def encoded(*arrays, form="PNG", **options):
    first, *rest = map(Image.fromarray, arrays)
    if rest:
        options.update(save_all=True, append_images=rest)
    stream = io.BytesIO()
    first.save(stream, form, **options)
    return stream.getvalue()


def palette_with_alpha():
    stream = io.BytesIO()
    Image.fromarray(square()).quantize(8).save(stream, "PNG", transparency=bytes(range(0, 256, 32)))
    return stream.getvalue()


def black_png(width, height):
    """A 1-bit greyscale PNG written by hand, so that the test needs no memory for its pixels."""

    def chunk(name, body):
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    row = bytes(1 + (width + 7) // 8)
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def infer(folder, *arguments, **options):
    """Run the command in ``folder``."""
    return call("infer", *arguments, folder=folder, **options)


def clean(text):
    """Refuse whatever a terminal could take for a command."""
    bad = {c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert not bad, bad
    return text


def sentences(run):
    """The lines of standard error between the two that name the bundle and the summary; each must be one of ours."""
    lines = clean(run.stderr).splitlines()
    assert all(line.startswith("lare2-rt: ") for line in lines), lines
    assert lines[0].startswith("lare2-rt: bundle mini")
    assert lines[1].startswith("lare2-rt: note: ")
    if SUMMARY.search(lines[-1]):
        lines.pop()
    return [line.removeprefix("lare2-rt: ") for line in lines[2:]]


def parsed(form, text):
    if form == "json":
        return json.loads(text)
    if form == "jsonl":
        return [json.loads(line) for line in text.split("\n")[:-1]]
    return list(csv.DictReader(io.StringIO(text, newline="")))


def check_document(form, text, names, failures):
    """The document names every file in order, whatever its name, and says which failed."""
    if form == "table":
        shown = text.split("\n")
        for name in names:
            assert sum(line.lstrip(" ").startswith(printable(name).lstrip(" ")) for line in shown) == 1, name
        assert text.count("failed") == failures
        assert len(re.findall(r"  (real|unsure|generated)  ", text)) == len(names) - failures
        return
    records = parsed(form, text)
    assert len(records) == len(names)
    assert sum(bool(record["error"]) for record in records) == failures
    if form == "csv":
        assert [record["source"] for record in records] == [spreadsheet_safe(name) for name in names]
        for record in records:
            assert set(record) == set(csv_columns())
            for column, cell in record.items():
                if column.startswith("logit_") and cell:
                    float(cell)  # the only cells that may start with a minus
                else:
                    assert not cell.startswith(FORMULA), (column, cell)
    else:
        assert [os.fsencode(record["source"]) for record in records] == [os.fsencode(name) for name in names]


@pytest.fixture(scope="module")
def badly_named(tmp_path_factory):
    """A folder with the names, none of them an image but the last."""
    folder = tmp_path_factory.mktemp("names")
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no image")
    (folder / NAMES[-1]).write_bytes(encoded(square()))
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_names_on_standard_output(badly_named, form):
    run = infer(badly_named, *NAMES, "--format", form)
    assert run.returncode == 1
    told = sentences(run)
    assert [line.rsplit(": ", 1)[0] for line in told] == [printable(name) for name in NAMES[:-1]]
    assert all("not an image in a supported format" in line for line in told)
    check_document(form, clean(run.stdout), NAMES, len(told))


@pytest.mark.parametrize("form", FORMS)
def test_names_in_a_file(badly_named, tmp_path, form):
    target = tmp_path / os.fsdecode(b"[b]=\n\x1b\xff.out")
    run = infer(badly_named, *NAMES, "--format", form, "--out", target)
    assert run.returncode == 1
    assert run.stdout == ""
    assert len(sentences(run)) == len(NAMES) - 1
    assert os.listdir(tmp_path) == [target.name]
    check_document(form, clean(target.read_bytes().decode()), NAMES, len(NAMES) - 1)


def test_names_in_parquet(badly_named, tmp_path):
    """Every name comes back with its very bytes, and no cell holds what UTF-8 does not know."""
    run = infer(badly_named, *NAMES, "--out", tmp_path / "r.parquet")
    assert run.returncode == 1
    assert len(sentences(run)) == len(NAMES) - 1
    found = list(read_records(tmp_path / "r.parquet"))
    assert [os.fsencode(record["source"]) for record in found] == [os.fsencode(name) for name in NAMES]
    assert [bool(record["error"]) for record in found] == [True] * (len(NAMES) - 1) + [False]
    cells = pq.read_table(tmp_path / "r.parquet").column("source").to_pylist()
    assert len({cell.encode() for cell in cells}) == len(NAMES)


def test_names_on_a_terminal_that_knows_ascii_only(badly_named):
    for form in ("table", "csv"):
        run = infer(badly_named, *NAMES[:-1], "--format", form, encoding="ascii")
        assert run.returncode == 1
        assert len(sentences(run)) == len(NAMES) - 1
        assert "\\uff1dx.jpg" in run.stdout


def test_names_of_missing_files_and_bad_targets(tmp_path):
    """What ends the command before any file passes through the same escapes."""
    for arguments, words in (
        (["\x1b[31m*.jpg"], "\\x1b[31m*.jpg"),
        (["x.jpg", "--out", "\x1b[31m\n/r.json"], "\\x1b[31m\\n"),
        (["x.jpg", "--bundle", os.fsdecode(b"\xff\n")], "\\udcff\\n"),
    ):
        run = infer(tmp_path, *arguments)
        assert run.returncode == 2
        assert run.stdout == ""
        assert words in run.stderr
        assert len(clean(run.stderr).splitlines()) == 1
    run = infer(tmp_path, "-x.jpg")
    assert run.returncode == 2
    assert "Traceback" not in run.stderr


def test_names_below_a_folder(badly_named):
    run = infer(badly_named, ".", "--format", "jsonl")
    assert run.returncode == 1
    found = {os.fsencode(record["source"]) for record in parsed("jsonl", clean(run.stdout))}
    assert found == {os.fsencode(os.path.join(".", os.path.normpath(name))) for name in NAMES}


@pytest.mark.parametrize("form", FORMS)
def test_scored_records_of_any_name(form):
    """Each name beside real numbers, and error texts as bad as the names; no engine needed."""
    provenance = Provenance("b", "0" * 64, "/\n", "e", "1", "cpu", "fp32", 1, 1, "0" * 64)
    rule = DecisionRule("uncalibrated")
    lare, attention = np.ones((4, 2, 2), np.float32), np.ones((8, 4), np.float32)
    names = NAMES + [chr(code) + ".jpg" for code in (*range(1, 33), *range(0x7F, 0xA1), 0xAD, 0x200B, 0xFEFF, 0xE0001)]
    stream = io.StringIO()
    writer = writer_for(form, stream)
    for name in names:
        writer.add(
            scored(
                name,
                np.float32([-1.5, 2.5]),
                lare=lare,
                attention=attention,
                provenance=provenance,
                rule=rule,
                timings={"total": 1.0},
            )
        )
    for name in NAMES:
        writer.add(failed(name, f"={name}", provenance=provenance, rule=rule))
    writer.end()
    text = clean(stream.getvalue())
    if form == "table":
        assert text.count("unsure") == len(names)
        assert text.count("0.9820") == len(names)
        assert text.count("failed") == len(NAMES)
    else:
        check_document(form, text, names + NAMES, len(NAMES))


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """(folder, expected): file name to the words of its refusal, or None where it is answered; for a picture that must
    score like another, that one's name."""
    folder = tmp_path_factory.mktemp("contents")
    picture, other = square(1), square(2)
    files = {
        "good.png": (encoded(picture), None),
        "eps.jpg": (EPS, "not an image in a supported format"),
        "dos-eps.jpg": (bytes.fromhex("c5d0d3c6") + (32).to_bytes(4, "little") + bytes(24) + EPS, "not an image"),
        "ps.jpg": (b"%!PS\nshowpage\n", "not an image in a supported format"),
        "pdf.jpg": (PDF, "not an image in a supported format"),
        "svg.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image in a supported format"),
        "pickle.png": (b"\x80\x04\x95", "not an image in a supported format"),
        "empty.jpg": (b"", "the file is empty"),
        "bomb.png": (black_png(30_000, 30_000), "larger than 89 megapixels"),
        "large.png": (black_png(9_473, 9_473), "9473×9473 is larger than 89 megapixels"),
        "thread.png": (black_png(80_000_000, 1), "80000000×1 has a side of more than"),
        "header.png": (encoded(picture)[:20], "damaged image header"),
        "cut.png": (encoded(picture)[:-3000], "truncated or damaged image data"),
        "cut.jpg": (encoded(picture, form="JPEG")[:1500], "truncated or damaged image data"),
        "cut.gif": (encoded(picture, form="GIF")[:1500], "truncated or damaged image data"),
        "cut.webp": (encoded(picture, form="WEBP")[:-20], "image"),
        "cut.tif": (encoded(picture, form="TIFF")[:1500], "image"),
        "moving.webp": (encoded(picture, other, form="WEBP", lossless=True), "good.png"),
        "moving.png": (encoded(picture, other), "good.png"),
        "moving.gif": (encoded(picture, other, form="GIF"), "still.gif"),
        "still.gif": (encoded(picture, form="GIF"), None),
        "clear.png": (palette_with_alpha(), None),
        "link.jpg": ("good.png", "good.png"),
        "nowhere.jpg": ("missing.png", "no such file"),
        "circle.jpg": ("circle.jpg", "too many levels of symbolic links"),
        "device.jpg": ("/dev/null", "not a regular file"),
    }
    for name, (content, _) in files.items():
        if isinstance(content, str):
            (folder / name).symlink_to(content)
        else:
            (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.jpg")
    return folder, {name: answer for name, (_, answer) in files.items()} | {"pipe.jpg": "not a regular file"}


def test_contents(contents):
    folder, expected = contents
    assert (folder / "bomb.png").stat().st_size < 150_000
    run = infer(folder, *expected, "--format", "jsonl")
    assert run.returncode == 1
    records = {record["source"]: record for record in parsed("jsonl", clean(run.stdout))}
    assert list(records) == list(expected)
    told = iter(sentences(run))
    for name, answer in expected.items():
        error = records[name]["error"]
        if answer is None or answer in expected:
            assert error is None, name
            assert records[name]["logits"] == records[answer or name]["logits"], name
        else:
            assert answer in error, name
            assert "\n" not in error
            assert "; " in error, "every refusal ends with its remedy"
            assert next(told) == f"{name}: {printable(error)}"
    assert next(told, None) is None
    assert records["good.png"]["logits"] != records["still.gif"]["logits"]


@pytest.mark.parametrize("form", ["table", "json", "csv", "parquet"])
def test_contents_in_the_other_formats(contents, form, tmp_path):
    """The same answers and refusals as in JSON Lines, and a document that still parses."""
    folder, expected = contents
    target = ("--out", tmp_path / "r.parquet") if form == "parquet" else ("--format", form)
    run = infer(folder, *expected, *target)
    assert run.returncode == 1
    refused = sum(answer is not None and answer not in expected for answer in expected.values())
    assert len(sentences(run)) == refused
    if form == "table":
        assert clean(run.stdout).count("failed") == refused
    else:
        whole = form == "parquet"
        records = list(read_records(target[1])) if whole else parsed(form, clean(run.stdout))
        assert [record["source"] for record in records] == list(expected)
        assert sum(bool(record["error"]) for record in records) == refused


def test_damaged_exif_is_not_worth_a_word(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "a maker's name, stored outside its entry"
    (tmp_path / "photo.jpg").write_bytes(encoded(square(), form="JPEG", exif=exif.tobytes()[:20]))
    run = infer(tmp_path, "photo.jpg")
    assert run.returncode == 0
    assert sentences(run) == []


@pytest.fixture
def no_process(monkeypatch):
    """Starting a program fails the test, and Pillow believes that Ghostscript is there."""

    def start(*arguments, **options):
        raise AssertionError(f"a process was started: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(os, "posix_spawn", start)
    monkeypatch.setattr(os, "system", start)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")


@pytest.mark.parametrize("name", ["eps.jpg", "dos-eps.jpg", "ps.jpg", "pdf.jpg"])
def test_ghostscript_is_never_started(contents, no_process, name):
    folder, _ = contents
    with pytest.raises(ImageError, match="not an image in a supported format"):
        open_image(folder / name)


def test_ghostscript_would_be_started(no_process):
    """The trap of the test above works: without the list of formats Pillow falls into it."""
    with Image.open(io.BytesIO(EPS)) as image, pytest.raises(AssertionError, match="a process was started"):
        image.load()


def test_whole_command_starts_no_process(contents, no_process):
    folder, expected = contents
    refused = [name for name, answer in expected.items() if answer not in (None, *expected)]
    run = infer(folder, "--no-isolate", *refused)
    assert run.returncode == 1
    assert run.stdout.count("failed") == len(refused)


@pytest.mark.parametrize("size", [(30_000, 30_000), (9_473, 9_473), (80_000_000, 1)])
@pytest.mark.parametrize("warning", ["error", "ignore"])
def test_bombs_are_refused_by_their_header(size, warning, monkeypatch):
    """Also where warnings are errors, which is how Pillow reports the smaller bombs."""

    def load(self):
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    content = black_png(*size) if size[1] == 1 else black_png(8, 8).replace(*header_sizes(*size))
    with warnings.catch_warnings():
        warnings.simplefilter(warning)
        with pytest.raises(ImageError, match=r"megapixels; scale it down|has a side of more than 1000000 pixels"):
            open_image(content)


def header_sizes(width, height):
    """(old, new) of an 8×8 header chunk, with its checksum."""

    def chunk(width, height):
        body = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
        return body + zlib.crc32(body).to_bytes(4, "big")

    return chunk(8, 8), chunk(width, height)


def test_unreadable_folders_are_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "open").mkdir()
    (tmp_path / "shut").mkdir()
    (tmp_path / "open/a.jpg").write_bytes(b"")
    scandir = os.scandir

    def guarded(path="."):
        # Root may list everything, so the refusal is staged.
        if os.fspath(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert expand([str(tmp_path)]) == [str(tmp_path / "open/a.jpg"), str(tmp_path / "shut")]
    with pytest.raises(ImageError, match="no permission"):
        open_image(tmp_path / "shut")
    with pytest.raises(ImageError, match="this is a folder"):
        open_image(tmp_path / "open")


@pytest.mark.parametrize("form", damage.FORMATS)
@pytest.mark.filterwarnings("ignore:::PIL")
def test_random_damage_never_escapes(form):
    """Bytes changed anywhere give a picture or a refusal, whatever the decoder raised; one would end a long run."""
    whole = damage.encoded(form, square(), **({"compression": "tiff_lzw"} if form == "TIFF" else {}))
    policies = [
        Preprocessing(),
        Preprocessing(exif="official", alpha="white", icc="srgb"),
        Preprocessing(exif="ignore"),
    ]
    generator = np.random.default_rng(7)
    refusals = []
    for turn in range(90):
        try:
            preprocess(damage.damaged(whole, generator, turn), policies[turn % 3])
        except ImageError as error:
            refusals.append(str(error))
    assert len(refusals) > 5
    assert all("\n" not in refusal and "; " in refusal for refusal in refusals)


def test_streams_and_strange_sources():
    class Broken(io.BytesIO):
        def read(self, *_):
            raise OSError(5, "Input/output error")

    with pytest.raises(ImageError, match="binary mode"):
        open_image(io.StringIO("text"))
    with pytest.raises(ImageError, match="cannot be read"):
        open_image(Broken())
    with pytest.raises(ImageError, match="cannot be read"):
        open_image("nul\0byte.jpg")
