"""From whatever a file's pixels are to 8-bit RGB: 16 bits, palettes, CMYK, transparency and colour profiles."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

from ..errors import ImageError, first_line
from .policy import Preprocessing

_STRIP = 1 << 18  # pixels converted at once: what lies between two kinds of pixels takes many times a pixel's memory
Conversion = Callable[[Image.Image], Image.Image]


def to_rgb(image: Image.Image, policy: Preprocessing) -> Image.Image:
    """Return an 8-bit RGB image; alpha and ICC profile are treated as ``policy`` says.

    16-bit samples keep their upper byte. Beside the result it takes a few megabytes of memory, whatever the size.

    Raises:
        ImageError: floating-point pixels, which have no agreed range, or a kind that Pillow cannot convert.
    """
    if image.mode == "F":
        raise ImageError(
            "floating-point pixels have no agreed range", remedy="save the image with 8 or 16 bits a channel"
        )
    try:
        steps = _steps(image, policy)
        return _in_strips(image, steps) if steps else image
    except MemoryError:
        raise  # the caller says so
    except Exception as error:  # a kind of pixels that Pillow cannot convert
        why = first_line(error)[:80]
        raise ImageError(f"its {image.mode} pixels cannot become RGB ({why})", remedy="save it as RGB") from error


def _in_strips(image: Image.Image, steps: list[Conversion]) -> Image.Image:
    """Apply the steps; each treats a pixel without looking at its neighbours, so strips give the same bits."""
    rows = max(1, _STRIP // image.width)
    if image.height <= rows:
        return _applied(image, steps)
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(_applied(strip, steps), (0, top))
    return result


def _applied(image: Image.Image, steps: list[Conversion]) -> Image.Image:
    for step in steps:
        image = step(image)
    return image


def _steps(image: Image.Image, policy: Preprocessing) -> list[Conversion]:
    """Return what makes RGB of pixels like these, in order; nothing where they are RGB already."""
    steps: list[Conversion] = []
    mode, transparent = image.mode, image.has_transparency_data
    if mode.startswith("I"):
        steps.append(_upper_byte)
        mode, transparent = "L", False
    if mode == "P" and "transparency" in image.info:
        steps.append(lambda strip: strip.convert("RGBA"))  # the same colours; straight to RGB Pillow would warn
        mode = "RGBA"
    profile = image.info.get("icc_profile") if policy.icc == "srgb" and not image.mode.startswith("I") else None
    if profile:
        if mode == "P":
            steps.append(lambda strip: strip.convert("RGB"))
            mode = "RGB"
        step = _profile_step(profile, mode)
        if step is not None:
            steps.append(step)
            mode = mode if mode == "RGBA" else "RGB"
    if policy.alpha == "white" and transparent:
        steps.append(_on_white)
        mode = "RGB"
    if mode != "RGB":
        steps.append(lambda strip: strip if strip.mode == "RGB" else strip.convert("RGB"))
    return steps


def _upper_byte(strip: Image.Image) -> Image.Image:
    samples = np.clip(np.asarray(strip), 0, 65535)  # uint16 or int32
    return Image.fromarray((samples >> 8).astype(np.uint8))


def _on_white(strip: Image.Image) -> Image.Image:
    rgba = strip.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")


def _profile_step(profile: bytes, mode: str) -> Conversion | None:
    """Return the step from a profile to sRGB; None where a broken profile says nothing about the pixels."""
    if mode not in ("RGB", "RGBA", "CMYK", "L"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        out = mode if mode == "RGBA" else "RGB"
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, out)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    return lambda strip: ImageCms.applyTransform(strip, transform) or strip
