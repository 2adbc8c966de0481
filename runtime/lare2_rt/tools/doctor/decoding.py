"""Whether each image format can be decoded, in the processes that ``infer`` uses."""

from __future__ import annotations

import io
from collections.abc import Iterator

from PIL import Image

from ...errors import ImageError, Lare2Error
from ...pixels import heif
from ...pixels.decode import FORMATS
from ...pixels.limits import Limits
from ...pixels.policy import Preprocessing
from ...pixels.pool import IsolatedDecoder
from ...pixels.worker import DecodeTask
from .finding import Finding, broken
from .packages import installed


def check_decoding() -> Iterator[Finding]:
    """Yield the formats that work, and those that do not."""
    decoder = None
    try:
        decoder = IsolatedDecoder(DecodeTask(Preprocessing(), 32, 32, Limits(max_seconds=20)), processes=1)
        yield from _formats(decoder)
    except Lare2Error as error:
        yield broken("decoding", "processes", error)
    finally:
        if decoder is not None:
            decoder.close()
    yield _heic()


def _formats(decoder: IsolatedDecoder) -> Iterator[Finding]:
    works, broken = [], {}
    for form in FORMATS:
        stream = io.BytesIO()
        try:
            Image.new("RGB", (32, 32), (200, 100, 50)).save(stream, form)
            decoder.decode(stream.getvalue())
            works.append(form)
        except ImageError as error:
            broken[form] = str(error)
        except (OSError, KeyError) as error:  # this Pillow was built without the format
            broken[form] = str(error)
    yield Finding("decoding", "formats", "ok", ", ".join(works), facts=dict.fromkeys(works, True))
    for form, why in broken.items():
        yield Finding("decoding", form, "warn", f"cannot be decoded: {why}", "pip install --force-reinstall pillow")


def _heic() -> Finding:
    if installed("pillow-heif") is None:
        return Finding("decoding", "HEIC", "note", "not installed", "pip install 'lare2-rt[heic]'")
    try:
        heif.register()
    except ImageError as error:
        return broken("decoding", "HEIC", error)
    return Finding("decoding", "HEIC", "ok", "can be decoded")
