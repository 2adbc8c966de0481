"""HEIC, the format of phones, through pillow-heif: Pillow has no decoder for it."""

from __future__ import annotations

import importlib

from ..errors import ImageError, first_line

FORMAT = "HEIF"
SUFFIXES = frozenset({".heic", ".heif", ".hif"})
# ISO/IEC 23008-12, annex B: HEVC pictures and sequences; the two last are any codec, AV1 as well.
_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
_AV1 = frozenset({b"avif", b"avis"})
_LONGEST = 256  # bytes of a list of brands that is read


def is_heif(content: bytes) -> bool:
    """Tell by its first box whether a file is HEIF but not AVIF, which Pillow reads itself."""
    if content[4:8] != b"ftyp":
        return False
    box = content[: min(int.from_bytes(content[:4], "big"), _LONGEST)]
    brands = {box[8:12], *(box[at : at + 4] for at in range(16, len(box) - 3, 4))}
    return bool(brands & _BRANDS) and not brands & _AV1


def register() -> None:
    """Teach Pillow the format; twice is harmless.

    Raises:
        ImageError: pillow-heif is not installed, or broken.
    """
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ModuleNotFoundError:
        raise ImageError(
            "HEIC needs the package pillow-heif", remedy="pip install pillow-heif, or convert it to JPEG"
        ) from None
    except Exception as error:  # a binary of another Pillow or libheif can fail in any way
        raise ImageError(
            f"pillow-heif is installed but cannot be used ({first_line(error)})",
            remedy="pip install --force-reinstall pillow-heif",
        ) from error
