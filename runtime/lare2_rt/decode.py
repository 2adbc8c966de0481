"""Reading images: one decoder (Pillow), a short list of formats, and a clear sentence for whatever is refused.

A detector of generation traces sees differences between decoders, so everything goes through Pillow.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import IO, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from .atomic import reason
from .errors import ImageError
from .policy import Preprocessing

UInt8 = NDArray[np.uint8]
ImageSource = Union[str, "os.PathLike[str]", bytes, IO[bytes], Image.Image, UInt8]

# Pillow looks at the content, not at the name: without this list an EPS called photo.jpg would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".tif", ".tiff", ".gif", ".bmp"})
MAX_PIXELS = 89_478_485  # Pillow's own bound for a decompression bomb: 256 MiB of RGB
_ORIENTATION = 0x0112


def source_name(source: ImageSource) -> str:
    """Return what stands for ``source`` in results: the path, or a word in angle brackets for data without one."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "<image>")
    if isinstance(source, np.ndarray):
        return "<array>"
    return "<bytes>" if isinstance(source, (bytes, bytearray, memoryview)) else str(getattr(source, "name", "<stream>"))


def open_image(source: ImageSource) -> Image.Image:
    """Return ``source`` as a fully loaded Pillow image (first frame) in its own mode.

    Args:
        source: path, encoded bytes, binary file object, Pillow image, or uint8 RGB array [H,W,3].

    Raises:
        ImageError: missing, unreadable, not an image, truncated, or larger than ``MAX_PIXELS``.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        image = source
    else:
        content = _read(source)
        if not content:
            raise ImageError("the file is empty; copy or download it again")
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except UnidentifiedImageError:
            raise ImageError(f"not an image in a supported format ({', '.join(FORMATS)}); convert it to one") from None
        except Image.DecompressionBombError:
            raise ImageError(f"larger than {MAX_PIXELS / 1e6:.0f} megapixels; scale it down first") from None
        except Exception as error:  # a hostile header can raise nearly anything inside a decoder
            raise ImageError(f"damaged image header ({_short(error)}); copy or download it again") from error
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width}×{image.height}"
        raise ImageError(f"{size} is larger than {MAX_PIXELS / 1e6:.0f} megapixels; scale it down first")
    try:
        image.load()
    except Exception as error:
        raise ImageError(f"truncated or damaged image data ({_short(error)}); copy or download it again") from error
    return image


def orient(image: Image.Image) -> Image.Image:
    """Turn the picture as its EXIF orientation says; values outside 1..8 and damaged EXIF count as upright."""
    try:
        if image.getexif().get(_ORIENTATION, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF is written by anything; the pixels are fine without it
        return image


def to_rgb(image: Image.Image, policy: Preprocessing) -> Image.Image:
    """Return an 8-bit RGB image; alpha and ICC profile are treated as ``policy`` says.

    16-bit samples keep their upper byte. Raises ImageError for floating-point pixels, which have no agreed range.
    """
    if image.mode.startswith("I"):
        samples = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        image = Image.fromarray((samples >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ImageError("floating-point pixels have no agreed range; save the image with 8 or 16 bits a channel")
    if policy.icc == "srgb":
        image = _to_srgb(image)
    if policy.alpha == "white" and image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK", "L"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = image.mode if image.mode == "RGBA" else "RGB"
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image  # a broken profile says nothing about the pixels
    return converted if converted is not None else image


def _from_array(array: UInt8) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        shape = list(array.shape)
        raise ImageError(f"an array must be uint8 RGB of shape [H,W,3], not {array.dtype} {shape}")
    return Image.fromarray(np.ascontiguousarray(array))


def _read(source: str | os.PathLike[str] | bytes | IO[bytes]) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if not isinstance(source, (str, os.PathLike)):
        content = source.read()
        if not isinstance(content, bytes):
            raise ImageError("a file object must be opened in binary mode ('rb')")
        return content
    path = Path(source)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError("this is a folder; name its images or give the folder to 'lare2-rt infer'")
        if not stat.S_ISREG(mode):  # a pipe or device would block or never end
            raise ImageError("not a regular file; copy its content into a file first")
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError("no such file; check the path") from None
    except PermissionError:
        raise ImageError("no permission to read it; change its access rights") from None
    except (OSError, ValueError) as error:
        words = reason(error) if isinstance(error, OSError) else str(error)
        raise ImageError(f"cannot be read ({words}); check the path") from error


def _short(error: Exception) -> str:
    """One line of at most 80 characters."""
    return " ".join(str(error).split())[:80] or type(error).__name__
