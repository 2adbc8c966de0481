"""From a file to the two pixel arrays that the graphs take. Host code only decodes, resizes and crops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageError
from .colour import to_rgb
from .crop_grid import Corner, corners, first_pixel
from .decode import DEFAULT_LIMITS, ImageSource, open_image, orient
from .limits import Limits
from .policy import PaddingPolicy, Preprocessing

UInt8 = NDArray[np.uint8]
PREVIEW_SIDE = 384  # as large as a panel shows a picture; 0.4 MB at most, so that records with one stay cheap


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What the two branches saw, kept for people.

    Attributes:
        size: (width, height) in pixels of the picture that the windows were cut from.
        preview: uint8 [h,w,3] RGB, the picture before the squash, as the VAE branch has it turned, scaled down to
            ``PREVIEW_SIDE`` along its longer side.
        corners: (left, top) of each window in pixels; outside the picture where that was padded.
        windows: uint8 [N,C,C,3] RGB, the windows, in the same order.
        turned_alike: whether both branches have the picture turned the same way (see the policy ``exif``).
    """

    size: tuple[int, int]
    preview: UInt8
    corners: tuple[Corner, ...]
    windows: UInt8
    turned_alike: bool


@dataclass(frozen=True, slots=True)
class Pixels:
    """What one image looks like to the two branches.

    Attributes:
        image: uint8 [S,S,3] RGB, the whole picture squashed to the LaRE size (S = 256 in the paper).
        crop: uint8 [C,C,3] RGB, the native-resolution window of the CLIP branch (C = 224): the one in the centre, or
            the nearest to it of several.
        others: uint8 [N-1,C,C,3] RGB, the other windows, where several were asked for and the picture has room.
        view: what people are shown, where that was asked for.
    """

    image: UInt8
    crop: UInt8
    others: UInt8 | None = None
    view: View | None = None


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """What is done with every file, in this process or in one that decodes.

    Attributes:
        policy: the bundle's.
        image_size, crop_size: edges in pixels of the two inputs.
        limits: of one file; the one of seconds is kept only by processes that can be ended.
        crops: windows of the CLIP branch, a square number (``crop_grid.CROPS``).
        view: whether to keep what people are shown.
    """

    policy: Preprocessing
    image_size: int = 256
    crop_size: int = 224
    limits: Limits = DEFAULT_LIMITS
    crops: int = 1
    view: bool = False

    def decode(self, source: ImageSource) -> Pixels:
        """Decode one source in this process; raises ImageError as ``preprocess``."""
        try:
            opened = open_image(source, as_stored=self.policy.exif == "ignore", limits=self.limits)
        except MemoryError:
            raise ImageError("too little memory to decode it", remedy="scale it down first") from None
        size, given = f"{opened.width}×{opened.height}", [opened]
        del opened  # else it would be held until the end
        try:
            return _both_branches(given, self)
        except MemoryError:
            raise ImageError(f"too little memory for its {size} pixels", remedy="scale it down first") from None


def preprocess(
    source: ImageSource,
    policy: Preprocessing,
    *,
    image_size: int = 256,
    crop_size: int = 224,
    crops: int = 1,
    view: bool = False,
    limits: Limits | None = None,
) -> Pixels:
    """Decode ``source`` and prepare both branches.

    Sources: squash and bicubic filter from the official ``extract_lare.py``; padding and centre crop without any resize
    from the validation pipeline of the official ``test.py``. More windows than the official one are our own.

    Args:
        source: see ``decode.open_image``.
        policy, image_size, crop_size, crops, view: see ``DecodeTask``.
        limits: of the file; default: ``Limits()``; the one of seconds is not kept here.

    Raises:
        ImageError: the source cannot be read, is not an image, or is refused, for instance by ``limits``.
    """
    return DecodeTask(policy, image_size, crop_size, limits or DEFAULT_LIMITS, crops, view).decode(source)


def _both_branches(given: list[Image.Image], task: DecodeTask) -> Pixels:
    """Make all arrays, holding at most two whole pictures; ``given`` holds one and loses it.

    Colours are converted after cutting: that treats each pixel by itself.
    """
    opened, policy = given.pop(), task.policy
    if opened.format == "WEBP":
        opened = opened.copy()  # its decoder keeps two canvases as large as the picture for as long as that is held
    turned = orient(opened) if policy.exif in ("apply", "official") else opened
    size, places = turned.size, corners(turned.width, turned.height, task.crop_size, task.crops)
    windows = np.stack([_window(turned, place, task.crop_size, policy) for place in places])
    alike = policy.exif != "official" or turned is opened
    if alike:
        opened = turned
    del turned
    whole = to_rgb(opened, policy)
    del opened
    shown = View(size, _preview(whole), places, windows, alike) if task.view else None
    return Pixels(squash(whole, task.image_size), windows[0], windows[1:] if len(windows) > 1 else None, shown)


def _window(image: Image.Image, corner: Corner, size: int, policy: Preprocessing) -> UInt8:
    """Return the window whose (left, top) pixel is ``corner``, padded where the picture ends."""
    left, top = (max(0, first) if length > size else 0 for first, length in zip(corner, image.size, strict=True))
    inside = image.crop((left, top, min(image.width, left + size), min(image.height, top + size)))
    return cut(np.asarray(to_rgb(inside, policy)), (corner[0] - left, corner[1] - top), size, policy.padding)


def squash(rgb: Image.Image, size: int) -> UInt8:
    """Resize to ``size``×``size`` without keeping the aspect ratio; Pillow's bicubic, which antialiases."""
    return np.asarray(rgb.resize((size, size), Image.Resampling.BICUBIC), dtype=np.uint8)


def _preview(rgb: Image.Image) -> UInt8:
    scale = min(1.0, PREVIEW_SIDE / max(rgb.size))
    size = (max(1, round(rgb.width * scale)), max(1, round(rgb.height * scale)))
    return np.array(rgb if size == rgb.size else rgb.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0))


def centre_crop(rgb: UInt8, size: int, padding: PaddingPolicy) -> UInt8:
    """Cut the centre window of uint8 [H,W,3]; an axis shorter than ``size`` is padded on both sides.

    The window starts at floor((axis − size)/2) where the axis is long enough; else floor((size − axis)/2) pixels of
    border come first and the odd one comes last.
    """
    height, width = rgb.shape[:2]
    return cut(rgb, (first_pixel(width, size), first_pixel(height, size)), size, padding)


def cut(rgb: UInt8, corner: Corner, size: int, padding: PaddingPolicy) -> UInt8:
    """Cut the window [size,size,3] whose (left, top) pixel is ``corner``; what lies outside the picture is padded."""
    columns, inside_columns = _positions(corner[0], rgb.shape[1], size)
    rows, inside_rows = _positions(corner[1], rgb.shape[0], size)
    window = np.ascontiguousarray(rgb[rows[:, None], columns])
    if padding == "zero":
        window[~inside_rows, :] = 0
        window[:, ~inside_columns] = 0
    return window


def _positions(start: int, length: int, size: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return the source index of each of ``size`` positions and whether it lies inside the picture."""
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
