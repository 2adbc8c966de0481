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
MAX_SIDE = 1_000_000  # Pillow's resize takes 32 bytes per pixel of the longer side: 3 GB for one row of MAX_PIXELS
MAX_BYTES = 1 << 30  # more than MAX_PIXELS of uncompressed 16-bit RGBA
_ORIENTATION = 0x0112
_UNTURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def source_name(source: ImageSource) -> str:
    """Return what stands for ``source`` in results: the path, or a word in angle brackets for data without one."""
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source)
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or "<image>"
    elif isinstance(source, np.ndarray):
        name = "<array>"
    elif isinstance(source, (bytes, bytearray, memoryview)):
        name = "<bytes>"
    else:
        name = getattr(source, "name", "<stream>")
    # A file opened by a name in bytes carries bytes; one opened by its descriptor carries a number.
    return os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else str(name)


def open_image(source: ImageSource, *, as_stored: bool = False) -> Image.Image:
    """Return ``source`` as a fully loaded Pillow image (first frame) in its own mode.

    Args:
        source: path, encoded bytes, binary file object, Pillow image, or uint8 RGB array [H,W,3].
        as_stored: undo the turn that Pillow gives a TIFF file while loading it (other formats are not turned).

    Raises:
        ImageError: missing, unreadable, not an image, truncated, or larger than ``MAX_BYTES``, ``MAX_PIXELS`` or
            ``MAX_SIDE``.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    image = source if isinstance(source, Image.Image) else _from_encoded(_read(source))
    _check_size(image.width, image.height)
    undo = _UNTURN.get(_orientation(image)) if as_stored and image is not source and image.format == "TIFF" else None
    try:
        image.load()
    except MemoryError:
        raise  # the caller says so
    except Exception as error:
        raise ImageError(f"truncated or damaged image data ({_short(error)}); copy or download it again") from error
    return image if undo is None else image.transpose(undo)


def orient(image: Image.Image) -> Image.Image:
    """Turn the picture as its EXIF orientation says; values outside 1..8 and damaged EXIF count as upright."""
    if _orientation(image) == 1:
        return image
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise  # unturned would be another picture
    except Exception:  # EXIF is written by anything; the pixels are fine without it
        return image


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
        return value if isinstance(value, int) else 1
    except Exception:
        return 1


def to_rgb(image: Image.Image, policy: Preprocessing) -> Image.Image:
    """Return an 8-bit RGB image; alpha and ICC profile are treated as ``policy`` says.

    16-bit samples keep their upper byte. Raises ImageError for floating-point pixels, which have no agreed range.
    """
    if image.mode == "F":
        raise ImageError("floating-point pixels have no agreed range; save the image with 8 or 16 bits a channel")
    try:
        if image.mode.startswith("I"):
            samples = np.clip(np.asarray(image), 0, 65535)  # uint16 or int32
            image = Image.fromarray((samples >> 8).astype(np.uint8))
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # the same colours; straight to RGB Pillow would warn on standard error
        if policy.icc == "srgb":
            image = _to_srgb(image)
        if policy.alpha == "white" and image.has_transparency_data:
            rgba = image.convert("RGBA")
            white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, rgba)
        return image if image.mode == "RGB" else image.convert("RGB")
    except MemoryError:
        raise  # the caller says so
    except Exception as error:  # a kind of pixels that Pillow cannot convert
        raise ImageError(f"its {image.mode} pixels cannot become RGB ({_short(error)}); save it as RGB") from error


def _to_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile and image.mode == "P":
        image = image.convert("RGB")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK", "L"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = image.mode if image.mode == "RGBA" else "RGB"
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image  # a broken profile says nothing about the pixels
    return converted if converted is not None else image


def _from_encoded(content: bytes) -> Image.Image:
    """Read the header only."""
    if not content:
        raise ImageError("the file is empty; copy or download it again")
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"not an image in a supported format ({', '.join(FORMATS)}); convert it to one") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # the warning: where warnings are errors
        raise ImageError(f"larger than {MAX_PIXELS / 1e6:.0f} megapixels; scale it down first") from None
    except Exception as error:  # a hostile header can raise nearly anything inside a decoder
        raise ImageError(f"damaged image header ({_short(error)}); copy or download it again") from error


def _from_array(array: UInt8) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        shape = list(array.shape)
        raise ImageError(f"an array must be uint8 RGB of shape [H,W,3], not {array.dtype} {shape}")
    _check_size(array.shape[1], array.shape[0])  # before any copy: an array may be a view with more pixels than memory
    return Image.fromarray(np.ascontiguousarray(array))


def _check_size(width: int, height: int) -> None:
    size = f"{width}×{height}"
    if width * height > MAX_PIXELS:
        raise ImageError(f"{size} is larger than {MAX_PIXELS / 1e6:.0f} megapixels; scale it down first")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{size} has a side of more than {MAX_SIDE} pixels; cut it into pieces first")


def _read(source: str | os.PathLike[str] | bytes | IO[bytes]) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if not isinstance(source, (str, os.PathLike)) and not hasattr(source, "read"):
        kind = type(source).__name__
        raise ImageError(f"a {kind} is no image; give a path, bytes, a binary file, a Pillow image or an RGB array")
    try:
        content = _read_file(Path(os.fsdecode(source))) if isinstance(source, (str, os.PathLike)) else source.read()
    except FileNotFoundError:
        raise ImageError("no such file; check the path") from None
    except PermissionError:
        raise ImageError("no permission to read it; change its access rights") from None
    except (OSError, ValueError) as error:
        words = reason(error) if isinstance(error, OSError) else str(error)
        raise ImageError(f"cannot be read ({words}); check the path") from error
    if not isinstance(content, bytes):
        raise ImageError("a file object must be opened in binary mode; open it with 'rb'")
    return content


def _read_file(path: Path) -> bytes:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        os.scandir(path).close()  # permission comes first: an unreadable folder is why it is here
        raise ImageError("this is a folder; name its images or give the folder to 'lare2-rt infer'")
    if not stat.S_ISREG(status.st_mode):  # a pipe or device would block or never end
        raise ImageError("not a regular file; copy its content into a file first")
    if status.st_size > MAX_BYTES:
        raise ImageError(f"the file has more than {MAX_BYTES >> 20} MiB; convert it to a compressed format")
    return path.read_bytes()


def _short(error: Exception) -> str:
    """One line of at most 80 characters."""
    return " ".join(str(error).split())[:80] or type(error).__name__
