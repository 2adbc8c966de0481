"""The folder layouts of published sets: label, split and generator from where a file lies.

Sources: the README of GenImage and the folders its archives unpack to, tiny-genimage, AIGCDetectBenchmark and
CNNDetection (ForenSynths), Community-Forensics.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...errors import UsageError
from ...host.atomic import reason
from ...pixels.decode import SUFFIXES
from . import generators
from .table import GENERATED, REAL

Layout = Literal["genimage", "tiny-genimage", "aigcdetect", "folders", "community-forensics", "list"]
FOLDER_LAYOUTS: tuple[Layout, ...] = ("genimage", "tiny-genimage", "aigcdetect", "community-forensics", "folders")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_GENIMAGE = {"nature": REAL, "ai": GENERATED}
_AIGC = {"0_real": REAL, "1_fake": GENERATED}
_PLAIN = {"real": REAL, "fake": GENERATED}
_SYNONYMS = {
    **dict.fromkeys(("reals", "real_images", "natural", "authentic"), REAL),
    **dict.fromkeys(("fakes", "fake_images", "generated", "synthetic", "ai_generated", "ai_images", "aigc"), GENERATED),
}
LABELS: dict[Layout, dict[str, int]] = {
    "genimage": _GENIMAGE,
    "tiny-genimage": _GENIMAGE,
    "aigcdetect": _AIGC,
    "community-forensics": _PLAIN,
    "folders": {**_GENIMAGE, **_AIGC, **_PLAIN, **_SYNONYMS},
}


@dataclass(frozen=True, slots=True)
class Problem:
    """A file or folder that is not in a set although it should be, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a set and what its place says.

    Attributes:
        path: native, relative to the root, or absolute outside of it.
        label: 0 real, 1 generated; generator: empty for a real one; split: train, val, test or empty.
        source: what images of one original share; empty where nothing is known.
    """

    path: str
    label: int
    generator: str
    split: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Collected:
    """A set before its images are looked at.

    Attributes:
        root: absolute native path; layout: as given or found.
        entries: sorted by path (folders) or as listed.
        unlabelled: images that lie in no folder with a label, which are left out.
        others: files without the ending of an image; problems: folders that cannot be listed.
    """

    root: str
    layout: Layout
    entries: list[Entry]
    unlabelled: tuple[str, ...] = ()
    others: int = 0
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class _Placed:
    """A file whose label is known: the folders above the label's, and those below it."""

    path: str
    label: int
    above: tuple[str, ...]
    below: tuple[str, ...]


def collect_folder(root: str, layout: Layout | None = None) -> Collected:
    """Find the labelled images below a folder; ``layout`` None means to tell it from the folders.

    Raises:
        UsageError: no images, no folder with a label, or a file below folders of both labels.
    """
    root = os.path.abspath(root)
    found = walk(root)
    if not found.files:
        if found.problems:
            words = f"no images in {root}: {found.problems[0].path}: {found.problems[0].reason}"
            raise UsageError(words, remedy="check the access rights of its folders")
        raise UsageError(f"no images in {root}", remedy="check the path, or give a list of images with their labels")
    folders = [Path(path).parts[:-1] for path in found.files]
    chosen = layout or _detect(folders, named=_of_root(root) is not None)
    placed: list[_Placed] = []
    unlabelled: list[str] = []
    for path, parts in zip(found.files, folders, strict=True):
        place = None if chosen is None else _place(path, parts, LABELS[chosen])
        if place is None:
            unlabelled.append(path)
        else:
            placed.append(place)
    if chosen is None or not placed:
        names = LABELS["folders" if chosen is None else chosen]
        raise UsageError(
            f"no image in {root} lies in a folder that says what it is ({', '.join(sorted(names))})",
            remedy="rename the folders, or give a list with lines 'PATH LABEL'",
        )
    reader = _reader(chosen, root, placed)
    entries = [reader(place) for place in placed]
    return Collected(root, chosen, entries, tuple(unlabelled), found.others, tuple(found.problems))


def _detect(folders: Sequence[tuple[str, ...]], *, named: bool) -> Layout | None:
    """Tell the layout from the names of the label folders and where they stand; None where there is none.

    ``named`` says that the set's own folder has a generator's name, as each folder of GenImage has.
    """
    used: set[str] = set()
    spots: set[tuple[tuple[str, ...], int]] = set()  # folders above a label's, and how many lie below
    for parts in folders:
        i = next((i for i, part in enumerate(parts) if part.lower() in LABELS["folders"]), None)
        if i is not None:
            used.add(parts[i].lower())
            spots.add((parts[:i], len(parts) - i - 1))
    if not used:
        return None
    if used <= set(_GENIMAGE):
        top = {above[0] if above else "" for above, _ in spots}
        # An archive's folder at the top and nothing between it and the split: GenImage has the generator's above it.
        tiny = all(map(generators.of_archive, top)) and all(len(above) <= 2 for above, _ in spots)
        return "tiny-genimage" if tiny and not named else "genimage"
    if used <= set(_AIGC):
        return "aigcdetect"
    flat = all(len(above) == 1 and above[0].lower() not in _SPLITS and below == 0 for above, below in spots)
    return "community-forensics" if used <= set(_PLAIN) and flat else "folders"


def _place(path: str, parts: tuple[str, ...], labels: dict[str, int]) -> _Placed | None:
    """Find the folder with the label, the innermost of several."""
    spots = [i for i, part in enumerate(parts) if part.lower() in labels]
    if not spots:
        return None
    if len({labels[parts[i].lower()] for i in spots}) > 1:
        raise UsageError(
            f"{path} lies below {parts[spots[0]]} and {parts[spots[-1]]}, so its label is not clear",
            remedy="rename one of the folders, name the layout with --layout, or give a list",
        )
    last = spots[-1]
    return _Placed(path, labels[parts[last].lower()], parts[:last], parts[last + 1 :])


def _reader(layout: Layout, root: str, placed: Sequence[_Placed]) -> Callable[[_Placed], Entry]:
    """Return the function from a place to an entry; ``placed`` is all of the set."""
    fallback = _of_root(root)
    if layout == "aigcdetect":
        # 'train' is a class of ForenSynths too: it is one where other classes stand beside it.
        tops = {place.above[0].lower() for place in placed if place.above}
        classes = bool(tops & (generators.PROGAN_CLASSES - {"train"}))
        return lambda place: _aigcdetect(place, fallback, classes_at_top=classes)
    if layout in ("genimage", "tiny-genimage"):
        return lambda place: _genimage(place, fallback)
    return lambda place: _folders(place, fallback)


def _of_root(root: str) -> str | None:
    """The generator that the set's own folder is named for, or None."""
    name = Path(root).name
    return generators.of_archive(name) or (name if generators.is_known(name) else None)


def _entry(place: _Placed, generator: str | None, split: str) -> Entry:
    made_by = (generator or generators.UNKNOWN) if place.label == GENERATED else ""
    return Entry(place.path, place.label, made_by, split)


def _genimage(place: _Placed, fallback: str | None) -> Entry:
    """``GEN/{train,val}/{ai,nature}``, as unpacked with the archive's folder between, or that folder alone."""
    nearest = [name for name in reversed(place.above) if name.lower() not in _SPLITS]
    generator = next((made for name in nearest if (made := generators.of_archive(name))), None)
    if generator is None:
        generator = next((name for name in nearest if not generators.is_archive(name)), None)
    return _entry(place, generator or fallback or generators.of_file(Path(place.path).name), _split(place.above))


def _aigcdetect(place: _Placed, fallback: str | None, *, classes_at_top: bool) -> Entry:
    """``[split/]GEN/[class/]{0_real,1_fake}``; ForenSynths' training set has classes of ProGAN images at the top."""
    above = place.above
    split = _SPLITS.get(above[0].lower(), "") if above and not classes_at_top else ""
    rest = above[1:] if split else above
    if fallback is not None or not rest:
        return _entry(place, fallback, split)
    return _entry(place, "progan" if rest[0].lower() in generators.PROGAN_CLASSES else rest[0], split)


def _folders(place: _Placed, fallback: str | None) -> Entry:
    """``real`` and ``fake`` anywhere: the generator is the first folder below the label, else the next above it."""
    nearest = (name for name in (*place.below[:1], *reversed(place.above)) if name.lower() not in _SPLITS)
    generator = next(nearest, fallback)
    if generator is not None:
        generator = generators.of_archive(generator) or generator
    return _entry(place, generator, _split((*place.above, *place.below[:1])))


def _split(parts: Sequence[str]) -> str:
    return next((_SPLITS[part.lower()] for part in reversed(parts) if part.lower() in _SPLITS), "")


def split_named(name: str) -> str | None:
    """Return train, val or test for one of their usual spellings, '' for nothing, None for anything else."""
    return "" if not name else _SPLITS.get(name.lower())


@dataclass(slots=True)
class Walk:
    """What a folder holds.

    Attributes:
        files: native paths of images relative to the folder, sorted by their bytes.
        others: number of files without the ending of an image.
        problems: subfolders that cannot be listed.
    """

    files: list[str] = field(default_factory=list)
    others: int = 0
    problems: list[Problem] = field(default_factory=list)


def walk(root: str) -> Walk:
    """List the images below ``root``.

    Links to folders are followed, as large sets are often spread over disks, but not back to a folder above.
    """
    found = Walk()
    # A stack instead of recursion: folders may lie deeper than Python's calls may.
    stack: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while stack:
        folder, above = stack.pop()
        try:
            status = Path(root, folder).stat()
            here = (status.st_dev, status.st_ino)
            if here not in above:
                stack.extend((name, above | {here}) for name in _list(root, folder, found))
        except OSError as error:
            found.problems.append(Problem(folder or root, f"the folder cannot be listed: {reason(error)}"))
    found.files.sort(key=os.fsencode)
    found.problems.sort(key=lambda problem: os.fsencode(problem.path))
    return found


def _list(root: str, folder: str, found: Walk) -> list[str]:
    """Add the files of one folder and return its subfolders."""
    below = []
    with os.scandir(os.path.join(root, folder)) as entries:
        for entry in entries:
            name = os.path.join(folder, entry.name)
            if os.path.isdir(os.path.join(root, name)):  # answers False where the entry's own method would raise
                below.append(name)
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                found.files.append(name)
            else:
                found.others += 1
    return below
