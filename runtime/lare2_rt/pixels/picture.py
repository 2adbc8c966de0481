"""Whole pictures, for those who change them before they are scored, and what a file is, for data sets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .colour import to_rgb
from .decode import ImageSource, UInt8, open_image, orientation_of
from .limits import Limits
from .policy import Preprocessing


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded picture.

    Attributes:
        rgb: uint8 [H,W,3], the stored pixels (a TIFF is turned unless the policy ignores that), with alpha and colour
            profile treated as the policy says.
        orientation: the EXIF value that says how to turn it, 1..8.
    """

    rgb: UInt8
    orientation: int


@dataclass(frozen=True, slots=True)
class Properties:
    """What a file that could be decoded is.

    Attributes:
        width, height: in pixels, as stored; format: Pillow's name of it.
        luminance: quantisation table of a JPEG, 64 numbers in natural order; None for other formats.
    """

    width: int
    height: int
    format: str
    luminance: list[int] | None


def read_properties(path: str, *, limits: Limits | None = None) -> Properties:
    """Decode a whole file; raises ImageError as ``preprocess``, and MemoryError."""
    image = open_image(path, as_stored=True, limits=limits)
    # Several pictures in one JPEG file (MPO, from phones) start with an ordinary one; a turned TIFF has no format.
    form = "JPEG" if image.format == "MPO" else image.format or "TIFF"
    tables = getattr(image, "quantization", None) or {}
    return Properties(image.width, image.height, form, tables.get(0) if form == "JPEG" else None)


def read_picture(source: ImageSource, policy: Preprocessing, *, limits: Limits | None = None) -> Picture:
    """Decode a whole picture; raises ImageError as ``preprocess``, and MemoryError."""
    opened = open_image(source, as_stored=policy.exif == "ignore", limits=limits)
    orientation = orientation_of(opened)
    return Picture(np.asarray(to_rgb(opened, policy)), orientation if 1 <= orientation <= 8 else 1)
