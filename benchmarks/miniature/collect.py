"""Where the photographs of the miniature come from: reads openly licensed sources and writes small copies and a table.

``python -m benchmarks.miniature.collect --debs FOLDER --exif-samples FOLDER`` made ``benchmarks/miniature_photos``,
which is committed, so nobody has to run it again.

Sources: the Debian packages ``gcompris-qt-data``, ``lomiri-wallpapers-16.04`` and ``lomiri-wallpapers-20.04`` as
``.deb`` files, the sample photographs of scikit-image and scikit-learn, and those of the repository ianare/exif-samples
that its users contributed. Only public domain, CC0, CC BY and CC BY-SA are taken; every row names author, licence and
source.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import re
import struct
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

SHORT_SIDE = 256  # pixels: twice the side of the miniature's pictures
MIN_SIDE = 128
OUT = Path(__file__).parents[1] / "miniature_photos"
_OPEN = re.compile(r"^(public[ -]domain|cc0|cc[ -]by([ -]sa)?([ -][\d.]+)?$)", re.IGNORECASE)
_COMPRESSED, _FOLDER = 1, 2  # flags of Qt's resource archives
# Folders of GCompris that hold photographs, not drawings.
_GCOMPRIS = (
    "categorization/resource/images/",
    "explore_monuments/resource/",
    "explore_world_animals/resource/animals/",
    "explore_world_music/resource/music/",
    "erase/resource/",
)
_NO_PHOTOGRAPHS = {"categorization/resource/images/alphabets", "categorization/resource/images/numbers"}
# Lomiri's other pictures are drawn.
_LOMIRI_DRAWN = ("Infinite", "Painting", "Fossa", "analog", "umang")
_SCIKIT = {
    "skimage/data/astronaut.png": ("NASA", "public domain", "https://scikit-image.org"),
    "skimage/data/chelsea.png": ("Stefan van der Walt", "CC0-1.0", "https://scikit-image.org"),
    "skimage/data/coffee.png": ("Rachel Michetti", "CC0-1.0", "https://scikit-image.org"),
    "skimage/data/rocket.jpg": ("SpaceX", "public domain", "https://scikit-image.org"),
    "sklearn/datasets/images/china.jpg": ("Daniel Büchele", "CC-BY-2.0", "https://scikit-learn.org"),
    "sklearn/datasets/images/flower.jpg": ("vultilion", "CC-BY-2.0", "https://scikit-learn.org"),
}
_EXIF_SAMPLES = ("contributors of exif-samples", "CC-BY-SA-4.0", "github:ianare/exif-samples")
# The repository's licence covers what users contributed; these it has from exif.org.
_NOT_CONTRIBUTED = ("canon-ixus", "fujifilm", "kodak", "nikon", "olympus", "ricoh", "sanyo", "sony")
# Spellings and views of one thing, and series of one author: one group each.
_SAME = {
    "gcompris-kutubminar": "gcompris-qutubminar",
    "gcompris-greatwallofchina": "gcompris-greatwall",
    "gcompris-greatpyramidofgiza": "gcompris-greatpyramid",
    "gcompris-chamaeleon": "gcompris-chameleon",
    "lomiri-Picture_1A_by_freespace": "lomiri-Picture_0B_by_freespace",
}


@dataclass(frozen=True, slots=True)
class Photo:
    """A photograph as its source has it; ``group`` is shared by pictures of one subject or one series."""

    name: str
    content: bytes
    group: str
    author: str
    licence: str
    source: str


class Credit(NamedTuple):
    """What a README of GCompris says of a file."""

    author: str
    licence: str
    source: str


def gcompris(package: Path) -> Iterator[Photo]:
    """Photographs of ``gcompris-qt-data``, credited by the README beside each."""
    for archive in sorted(package.rglob("*.rcc")):
        content = {name.partition("/activities/")[2]: data for name, data in rcc_files(archive.read_bytes())}
        for readme in sorted(name for name in content if name.endswith("/README")):
            folder = readme.rpartition("/")[0]
            if not readme.startswith(_GCOMPRIS) or folder in _NO_PHOTOGRAPHS:
                continue
            for file, credit in credits_of(content[readme].decode("utf-8", "replace")).items():
                name = f"{folder}/{file}"
                if file.endswith((".webp", ".jpg")) and name in content:
                    yield Photo(f"gcompris-{_slug(name)}", content[name], subject(file), *credit)


def rcc_files(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of every file of a Qt resource archive; layout as ``rcc`` writes it, versions 1 to 3.

    Raises:
        ValueError: not such an archive.
    """
    if content[:4] != b"qres":
        raise ValueError("not a Qt resource archive")
    version, tree, data, names = struct.unpack(">4I", content[4:20])
    size = 14 if version < 2 else 22

    def name(offset: int) -> str:
        (length,) = struct.unpack(">H", content[names + offset : names + offset + 2])
        begin = names + offset + 6  # length and hash precede the text
        return content[begin : begin + 2 * length].decode("utf-16-be")

    def walk(index: int, path: str) -> Iterator[tuple[str, bytes]]:
        at = tree + index * size
        name_offset, flags = struct.unpack(">IH", content[at : at + 6])
        here = f"{path}/{name(name_offset)}" if index else ""
        if flags & _FOLDER:
            count, first = struct.unpack(">II", content[at + 6 : at + 14])
            for child in range(first, first + count):
                yield from walk(child, here)
            return
        (offset,) = struct.unpack(">I", content[at + 10 : at + 14])
        (length,) = struct.unpack(">I", content[data + offset : data + offset + 4])
        blob = content[data + offset + 4 : data + offset + 4 + length]
        yield here, zlib.decompress(blob[4:]) if flags & _COMPRESSED else blob

    yield from walk(0, "")


def credits_of(readme: str) -> dict[str, Credit]:
    """File name -> credit, from paragraphs of ``Copyright:``, ``Source:``, ``License:`` and ``Files:``."""
    found: dict[str, Credit] = {}
    for paragraph in re.split(r"\n\s*\n", readme):
        fields: dict[str, list[str]] = {}
        key = ""
        for line in paragraph.splitlines():
            match = re.match(r"^(Copyright|Source|License|Files|Comments?):\s*(.*)$", line.strip())
            if match:
                key = match[1]
                fields[key] = [match[2]] if match[2] else []
            elif key and line.strip():
                fields[key].append(line.strip())
        credit = Credit(*(" ".join(fields.get(name, [])) for name in ("Copyright", "License", "Source")))
        found.update(dict.fromkeys(fields.get("Files", []), credit))
    return found


def subject(file: str) -> str:
    """``windmill12.webp`` and ``windmill.webp`` show one kind of thing, perhaps the same thing: one group."""
    return "gcompris-" + re.sub(r"\d+$", "", Path(file).stem).lower()


def lomiri(package: Path) -> Iterator[Photo]:
    """Photographs of the Lomiri wallpapers, credited by the package's ``copyright``."""
    text = next(package.rglob("copyright")).read_text("utf-8", "replace")
    pattern = r"^Files: \S*?([^/\s]+\.jpg)\nCopyright: (.*)\nLicense: (\S+)"
    owners = {name: (author, licence) for name, author, licence in re.findall(pattern, text, re.MULTILINE)}
    for path in sorted(package.rglob("*.jpg")):
        if not path.name.startswith(_LOMIRI_DRAWN):
            author, licence = owners[path.name]
            source = f"debian:{package.name}"
            yield Photo(f"lomiri-{_slug(path.stem)}", path.read_bytes(), f"lomiri-{path.stem}", author, licence, source)


def scikit(wheels: Path) -> Iterator[Photo]:
    """Sample photographs out of the wheels of scikit-image and scikit-learn."""
    for wheel in sorted(wheels.glob("scikit_*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(_SCIKIT.keys() & set(archive.namelist())):
                stem = Path(name).stem
                yield Photo(f"scikit-{stem}", archive.read(name), f"scikit-{stem}", *_SCIKIT[name])


def exif_samples(folder: Path) -> Iterator[Photo]:
    """Contributed photographs of exif-samples, in one folder."""
    for path in sorted(folder.iterdir()):
        if path.stem.startswith(_NOT_CONTRIBUTED):
            continue
        # One camera's walk through one town is one series.
        group = "exif-dscn" if path.name.startswith("DSCN") else f"exif-{_slug(path.stem)}"
        yield Photo(f"exif-{_slug(path.stem)}", path.read_bytes(), group, *_EXIF_SAMPLES)


def write(photos: Iterator[Photo], out: Path) -> int:
    """Write small copies and ``photos.csv``; returns how many."""
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, str | int]] = {}
    seen: set[str] = set()
    for photo in photos:
        digest = hashlib.sha256(photo.content).hexdigest()
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(photo.content))).convert("RGB")
        if not _OPEN.match(photo.licence) or min(picture.size) < MIN_SIDE or digest in seen:
            continue
        seen.add(digest)
        scale = min(1.0, SHORT_SIDE / min(picture.size))
        size = (round(picture.width * scale), round(picture.height * scale))
        stream = io.BytesIO()
        picture.resize(size, Image.Resampling.LANCZOS).save(stream, "JPEG", quality=86)
        file = f"{photo.name}.jpg"
        assert file not in rows, file
        (out / file).write_bytes(stream.getvalue())
        rows[file] = {
            "file": file,
            "group": _SAME.get(photo.group, photo.group),
            "author": photo.author,
            "licence": photo.licence,
            "source": photo.source,
            "original_sha256": digest,
            "sha256": hashlib.sha256(stream.getvalue()).hexdigest(),
            "width": size[0],
            "height": size[1],
        }
    with (out / "photos.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, next(iter(rows.values())).keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[file] for file in sorted(rows))
    return len(rows)


def _slug(name: str) -> str:
    short = re.sub(r"(/resource)?(/images|/animals|/music)?/", "-", name.removesuffix(".webp").removesuffix(".jpg"))
    return re.sub(r"[^a-z0-9]+", "-", short.lower()).strip("-")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debs", type=Path, required=True, help="folder of the .deb files and the two wheels")
    parser.add_argument("--exif-samples", type=Path, required=True, help="folder of the repository's photographs")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()

    def everything() -> Iterator[Photo]:
        with tempfile.TemporaryDirectory() as scratch:
            for package in sorted(arguments.debs.glob("*.deb")):
                folder = Path(scratch) / package.name.partition("_")[0]
                subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
                if folder.name == "gcompris-qt-data":
                    yield from gcompris(folder)
                elif folder.name.startswith("lomiri-wallpapers-"):
                    yield from lomiri(folder)
            yield from scikit(arguments.debs)
            yield from exif_samples(arguments.exif_samples)

    print(f"{write(everything(), arguments.out)} photographs in {arguments.out}")


if __name__ == "__main__":
    main()
