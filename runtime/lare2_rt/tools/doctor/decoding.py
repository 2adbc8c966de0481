"""Whether each image format can be decoded, in the processes that ``infer`` uses."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

from PIL import Image

from ...engines.registry import installed_version
from ...errors import ImageError, Lare2Error
from ...pixels.decode import FORMATS, register_heif
from ...pixels.limits import Limits
from ...pixels.policy import Preprocessing
from ...pixels.pool import IsolatedDecoder
from ...pixels.preprocess import DecodeTask
from .finding import Finding, broken


def check_decoding() -> Iterator[Finding]:
    """Yield the formats that work, and those that do not."""
    task = DecodeTask(Preprocessing(), 32, 32, Limits(max_seconds=20))
    try:
        with contextlib.closing(IsolatedDecoder(task, processes=1)) as decoder:
            yield from _formats(decoder)
    except Lare2Error as error:
        yield broken("decoding", "processes", error)
    yield _heic()


def _formats(decoder: IsolatedDecoder) -> Iterator[Finding]:
    works, fails = [], {}
    for form in FORMATS:
        stream = io.BytesIO()
        try:
            Image.new("RGB", (32, 32), (200, 100, 50)).save(stream, form)
            decoder.decode(stream.getvalue())
            works.append(form)
        except (ImageError, OSError, KeyError) as error:  # the last two: this Pillow was built without the format
            fails[form] = str(error)
    yield Finding("decoding", "formats", "ok", ", ".join(works), facts=dict.fromkeys(works, True))
    for form, why in fails.items():
        yield Finding("decoding", form, "warn", f"cannot be decoded: {why}", "pip install --force-reinstall pillow")


def _heic() -> Finding:
    if installed_version("pillow-heif") is None:
        return Finding("decoding", "HEIC", "note", "not installed", "pip install pillow-heif")
    try:
        register_heif()
    except ImageError as error:
        return broken("decoding", "HEIC", error)
    return Finding("decoding", "HEIC", "ok", "can be decoded")
