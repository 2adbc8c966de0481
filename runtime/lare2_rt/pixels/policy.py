"""Preprocessing policies: which of the reasonable ways from a file to pixels a bundle was calibrated with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ExifPolicy = Literal["apply", "official", "ignore"]
AlphaPolicy = Literal["drop", "white"]
IccPolicy = Literal["ignore", "srgb"]
PaddingPolicy = Literal["reflect101", "zero"]
Resample = Literal["bicubic"]

VERSION = 1


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """The policies of both branches; stored in the manifest, so a bundle keeps those it was calibrated with.

    Attributes:
        version: number of this rule set; raised whenever the same policy would give other pixels.
        exif: ``apply`` turns the picture once, for both branches. ``official`` turns it for the CLIP branch only, as
            the official scripts do (Pillow does not turn, OpenCV does; a TIFF is turned for both, since Pillow turns
            that one too). ``ignore`` never turns it.
        alpha: ``drop`` forgets the alpha channel (official); ``white`` composites on white.
        icc: ``ignore`` takes the numbers as sRGB (official); ``srgb`` converts from an embedded profile.
        padding: border of pictures smaller than the crop: ``reflect101`` (albumentations up to 1.4.24, what the paper
            used) or ``zero`` (albumentations 2).
        resample: filter of the squash to the LaRE size.
    """

    version: int = VERSION
    exif: ExifPolicy = "apply"
    alpha: AlphaPolicy = "drop"
    icc: IccPolicy = "ignore"
    padding: PaddingPolicy = "reflect101"
    resample: Resample = "bicubic"
