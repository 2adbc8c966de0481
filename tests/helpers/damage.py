"""Pictures of every format, and seeded damage to them."""

import importlib.util
import io

import numpy as np
from PIL import Image

from lare2_rt.pixels.decode import register_heif

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP")
if importlib.util.find_spec("pillow_heif"):
    FORMATS += ("HEIF",)


def encoded(form, array, *, mode=None, **options):
    """Encode uint8 [H,W,3]; with an EXIF orientation where the format has one."""
    if form == "HEIF":
        register_heif()
    exif = Image.Exif()
    exif[0x0112] = 6
    if form not in ("GIF", "BMP", "HEIF"):
        options["exif"] = exif
    image = Image.fromarray(array)
    stream = io.BytesIO()
    _in_mode(image, mode).save(stream, form, **options)
    return stream.getvalue()


def _in_mode(image, mode):
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image if mode is None else image.convert(mode)


def damaged(whole, generator, turn):
    """Change one to five bytes, most often among the first, where the harm is; every seventh is cut short as well."""
    content = bytearray(whole)
    for _ in range(generator.integers(1, 6)):
        content[generator.integers(min(len(whole), generator.choice([64, 300, len(whole)])))] = generator.integers(256)
    return bytes(content[: generator.integers(len(whole)) if turn % 7 == 0 else None])
