"""The matched protocol: copies of a set whose files differ in nothing but their pixels.

Each copy is the centre window of one size in the original's own resolution (scaling would leave traces that differ
with the factor), without metadata, under a name made of its content, in one encoding. What this cannot remove: the
traces of an earlier compression stay in the pixels, and bytes per pixel still tell how busy a picture is.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ...errors import ImageError, OutputError, UsageError, no_memory
from ...host.atomic import reason, write_bytes
from ...host.machine import available_threads
from ...pixels.colour import to_rgb
from ...pixels.decode import open_image, orient
from ...pixels.policy import Preprocessing
from ...pixels.preprocess import centre_crop
from .facts import OnProgress, measure
from .layouts import Problem
from .table import GENERATED, Index, IndexRow, index_of, write_index

INDEX_NAME, SETTINGS_NAME = "index.parquet", "matched.json"
_SCHEMA = "lare2-rt/matched/1"


@dataclass(frozen=True, slots=True)
class MatchedOptions:
    """How the copies are made.

    Attributes:
        size: edge of the square window in pixels. 256 is what the LaRE branch takes, so nothing is scaled there.
        format: ``png`` keeps the pixels; ``jpeg`` gives all of them the same compression.
        quality: of JPEG (libjpeg's 1..100, chroma at half resolution). 96 is the one that the unbiased GenImage takes,
            as it is common among the real images (arXiv 2403.17608).
    """

    size: int = 256
    format: Literal["jpeg", "png"] = "jpeg"
    quality: int = 96

    def __post_init__(self) -> None:
        if self.size < 1:
            words = f"the size of matched copies must be at least 1 pixel, not {self.size}"
            raise UsageError(words, remedy="give a larger one")
        if not 1 <= self.quality <= 100:
            words = f"the JPEG quality of matched copies must be 1 to 100, not {self.quality}"
            raise UsageError(words, remedy="give another one")


@dataclass(frozen=True, slots=True)
class Matched:
    """What came of it.

    Attributes:
        index: of the copies, in the order of the originals; it is in the folder as ``index.parquet``.
        too_small: (real, generated) numbers of images smaller than the window, which are left out.
        repeated: images whose content, label and split an earlier one has, which are left out.
        problems: images that cannot be read any more.
    """

    index: Index
    too_small: tuple[int, int]
    repeated: int
    problems: tuple[Problem, ...]


def write_matched(
    index: Index,
    folder: str | os.PathLike[str],
    options: MatchedOptions | None = None,
    *,
    threads: int | None = None,
    progress: OnProgress | None = None,
) -> Matched:
    """Write matched copies of an index's images and their index; the same images give the same bytes.

    A folder with copies of the same options is completed: finished copies are kept.

    Args:
        index: of the originals; those with errors are left out.
        folder: new, empty, or from an earlier call with the same options.
        options: default: 256 pixels, JPEG 96.
        threads: of decoding; default: what affinity and container quota allow.
        progress: called after each image.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
        UsageError: not one image is large enough.
    """
    chosen = options or MatchedOptions()
    target = Path(folder)
    rows, too_small, repeated = _select(index, chosen.size)
    if not rows:
        raise UsageError(f"no image is {chosen.size}×{chosen.size} or larger", remedy="choose a smaller --matched-size")
    _prepare(target, chosen)
    results: list[IndexRow | Problem] = []
    for result in _copies(index, rows, target, chosen, threads or available_threads()):
        results.append(result)
        if progress is not None:
            progress(len(results), len(rows))
    done = (result for result in results if isinstance(result, IndexRow))
    made = index_of(done, root=os.path.abspath(target), layout="matched")
    write_index(target / INDEX_NAME, made)
    return Matched(made, too_small, repeated, tuple(result for result in results if isinstance(result, Problem)))


def _select(index: Index, size: int) -> tuple[list[int], tuple[int, int], int]:
    """Row numbers to copy, what is too small by class, and how many were there before."""
    rows: list[int] = []
    small = [0, 0]
    seen: set[tuple[str, int, str]] = set()
    for i in np.flatnonzero(index.decodable).tolist():
        identity = (index.sha256[i], int(index.label[i]), index.split[i])
        if min(index.width[i], index.height[i]) < size:
            small[index.label[i]] += 1
        elif identity not in seen:
            seen.add(identity)
            rows.append(i)
    repeated = int(index.decodable.sum()) - sum(small) - len(rows)
    return rows, (small[0], small[1]), repeated


def _prepare(folder: Path, options: MatchedOptions) -> None:
    """Make the folder, or check that it is one of ours with the same options."""
    settings = folder / SETTINGS_NAME
    content = (json.dumps({"schema": _SCHEMA, **asdict(options)}, indent=2, sort_keys=True) + "\n").encode()
    try:
        folder.mkdir(exist_ok=True)
        if settings.is_file():
            if settings.read_bytes() != content:
                raise OutputError(f"{folder} holds copies made with other options", remedy="choose another folder")
            return
        if any(folder.iterdir()):
            raise OutputError(f"{folder} is not empty", remedy="choose a new folder for the matched copies")
    except OSError as error:
        raise OutputError(f"cannot use {folder}: {reason(error)}", remedy="choose another folder") from error
    write_bytes(settings, content)


def _copies(
    index: Index, rows: list[int], target: Path, options: MatchedOptions, threads: int
) -> Iterator[IndexRow | Problem]:
    with ThreadPoolExecutor(threads, thread_name_prefix="lare2-matched") as pool:
        try:
            # Pieces keep the queue, and the work that an interruption leaves behind, short.
            for start in range(0, len(rows), 8 * threads):
                yield from pool.map(partial(_copy, index, target, options), rows[start : start + 8 * threads])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _copy(index: Index, target: Path, options: MatchedOptions, row: int) -> IndexRow | Problem:
    """Write one copy unless it is there, and describe it."""
    original = index.row(row)
    kind, suffix = "generated" if original.label == GENERATED else "real", "jpg" if options.format == "jpeg" else "png"
    name = os.path.join(original.split or "none", kind, f"{original.sha256}.{suffix}")
    path = target / name
    if not path.is_file():
        try:
            content = _encode(index.file(row), options)
        except ImageError as error:
            return Problem(original.path, str(error))
        except MemoryError:
            return Problem(original.path, str(no_memory()))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    facts = measure(str(path))
    if facts.error:
        return Problem(str(path), facts.error)
    return IndexRow(name, original.label, original.generator, original.split, original.source, *astuple(facts))


def _encode(path: str, options: MatchedOptions) -> bytes:
    policy = Preprocessing()
    rgb = to_rgb(orient(open_image(path)), policy)
    if min(rgb.size) < options.size:
        raise ImageError("it became smaller since it was indexed", remedy="index again")
    window = Image.fromarray(centre_crop(np.asarray(rgb), options.size, policy.padding))
    sink = io.BytesIO()
    if options.format == "jpeg":
        window.save(sink, "JPEG", quality=options.quality, subsampling="4:2:0", optimize=False, progressive=False)
    else:
        window.save(sink, "PNG", compress_level=6, optimize=False)
    return sink.getvalue()
