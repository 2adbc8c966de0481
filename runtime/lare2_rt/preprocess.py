"""From a file to the two pixel arrays that the graphs take. Host code only decodes, resizes and crops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .colour import to_rgb
from .decode import ImageSource, open_image, orient
from .errors import ImageError
from .limits import Limits
from .policy import PaddingPolicy, Preprocessing

UInt8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Pixels:
    """What one image looks like to the two branches.

    Attributes:
        image: uint8 [S,S,3] RGB, the whole picture squashed to the LaRE size (S = 256 in the paper).
        crop: uint8 [C,C,3] RGB, the native-resolution centre window of the CLIP branch (C = 224).
    """

    image: UInt8
    crop: UInt8


def preprocess(
    source: ImageSource,
    policy: Preprocessing,
    *,
    image_size: int = 256,
    crop_size: int = 224,
    limits: Limits | None = None,
) -> Pixels:
    """Decode ``source`` and prepare both branches.

    Sources: squash and bicubic filter from the official ``extract_lare.py``; padding and centre crop without any resize
    from the validation pipeline of the official ``test.py``.

    Raises:
        ImageError: the source cannot be read, is not an image, or is refused, for instance by ``limits`` (default:
            ``Limits()``; the one of seconds is not kept here).
    """
    try:
        opened = open_image(source, as_stored=policy.exif == "ignore", limits=limits)
    except MemoryError:
        raise ImageError("too little memory to decode it; scale it down first") from None
    size, given = f"{opened.width}×{opened.height}", [opened]
    del opened  # else it would be held until the end
    try:
        return _both_branches(given, policy, image_size, crop_size)
    except MemoryError:
        raise ImageError(f"too little memory for its {size} pixels; scale it down first") from None


def _both_branches(given: list[Image.Image], policy: Preprocessing, image_size: int, crop_size: int) -> Pixels:
    """Make both arrays, holding at most two whole pictures; ``given`` holds one and loses it.

    Colours are converted after cutting: that treats each pixel by itself.
    """
    view = given.pop()
    if view.format == "WEBP":
        view = view.copy()  # its decoder keeps two canvases as large as the picture for as long as the picture is held
    turned = orient(view) if policy.exif in ("apply", "official") else view
    if policy.exif == "official" and turned is not view:
        window = to_rgb(_cut(turned, crop_size), policy)
        del turned
        image = squash(to_rgb(view, policy), image_size)
    else:
        del view
        window = to_rgb(_cut(turned, crop_size), policy)
        image = squash(to_rgb(turned, policy), image_size)
    return Pixels(image, centre_crop(np.asarray(window), crop_size, policy.padding))


def _cut(image: Image.Image, size: int) -> Image.Image:
    """Return what ``centre_crop`` would look at: the centre window, and the whole of an axis shorter than that."""
    left, top = (max(0, (length - size) // 2) for length in image.size)
    return image.crop((left, top, min(image.width, left + size), min(image.height, top + size)))


def squash(rgb: Image.Image, size: int) -> UInt8:
    """Resize to ``size``×``size`` without keeping the aspect ratio; Pillow's bicubic, which antialiases."""
    return np.asarray(rgb.resize((size, size), Image.Resampling.BICUBIC), dtype=np.uint8)


def centre_crop(rgb: UInt8, size: int, padding: PaddingPolicy) -> UInt8:
    """Cut the centre window of uint8 [H,W,3]; an axis shorter than ``size`` is padded on both sides.

    The window starts at floor((axis − size)/2) where the axis is long enough; else floor((size − axis)/2) pixels of
    border come first and the odd one comes last.
    """
    rows, inside_rows = _window(rgb.shape[0], size)
    columns, inside_columns = _window(rgb.shape[1], size)
    window = np.ascontiguousarray(rgb[rows[:, None], columns])
    if padding == "zero":
        window[~inside_rows, :] = 0
        window[:, ~inside_columns] = 0
    return window


def _window(length: int, size: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return the source index of each of ``size`` positions and whether it lies inside the picture."""
    start = (length - size) // 2 if length >= size else -((size - length) // 2)
    position = np.arange(start, start + size, dtype=np.intp)
    return reflect101(position, length), (position >= 0) & (position < length)


def reflect101(position: NDArray[np.intp], length: int) -> NDArray[np.intp]:
    """Fold positions into [0, length) as OpenCV's BORDER_REFLECT_101 does (dcb|abcd|cba), however far outside.

    torch's reflection stops at length − 1; OpenCV keeps reflecting, which 1-pixel and other tiny pictures need.
    """
    if length == 1:
        return np.zeros_like(position)
    period = 2 * (length - 1)
    folded = np.mod(position, period)
    return np.where(folded < length, folded, period - folded)
