"""Reading images: one decoder (Pillow), a short list of formats, and a clear sentence for whatever is refused.

A detector of generation traces sees differences between decoders, so everything goes through Pillow.
"""

from __future__ import annotations

import importlib
import io
import os
import stat
from pathlib import Path
from typing import IO, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import ImageError, first_line
from ..host.atomic import reason
from .limits import MAX_SIDE, Limits, megapixels

UInt8 = NDArray[np.uint8]
ImageSource = Union[str, "os.PathLike[str]", bytes, IO[bytes], Image.Image, UInt8]

# Pillow looks at the content, not at the name: without this list an EPS called photo.jpg would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP")
_PILLOW = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".tif", ".tiff", ".gif", ".bmp"})
# HEIC, the format of phones, is read through pillow-heif: Pillow has no decoder for it.
_HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
# ISO/IEC 23008-12, annex B: HEVC pictures and sequences; the two last are any codec, AV1 as well.
_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
_AV1 = frozenset({b"avif", b"avis"})
_LONGEST = 256  # bytes of a list of brands that is read
SUFFIXES = _PILLOW | _HEIF_SUFFIXES
DEFAULT_LIMITS = Limits()
_ORIENTATION = 0x0112
_PIECE = 1 << 20
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


def open_image(source: ImageSource, *, as_stored: bool = False, limits: Limits | None = None) -> Image.Image:
    """Return ``source`` as a fully loaded Pillow image (first frame) in its own mode.

    Args:
        source: path, encoded bytes, binary file object, Pillow image, or uint8 RGB array [H,W,3].
        as_stored: undo the turn that Pillow gives a TIFF file while loading it (other formats are not turned).
        limits: of bytes and pixels; default: ``Limits()``. The one of seconds is not kept here.

    Raises:
        ImageError: missing, unreadable, not an image, truncated, or larger than ``limits`` or ``MAX_SIDE`` allow.
    """
    limits = limits or DEFAULT_LIMITS
    if isinstance(source, np.ndarray):
        return _from_array(source, limits)
    image = source if isinstance(source, Image.Image) else _from_encoded(read_source(source, limits), limits)
    _check_size(image.width, image.height, limits)
    if image is not source and image.format == "WEBP":
        _check_webp(image.width * image.height, limits)
    undo = _UNTURN.get(orientation_of(image)) if as_stored and image is not source and image.format == "TIFF" else None
    try:
        image.load()
    except MemoryError:
        raise  # the caller says so
    except Exception as error:
        raise ImageError(
            f"truncated or damaged image data ({_short(error)})", remedy="copy or download it again"
        ) from error
    _check_size(image.width, image.height, limits)  # a HEIC may turn out to have another size than its header says
    return image if undo is None else image.transpose(undo)


def orient(image: Image.Image) -> Image.Image:
    """Turn the picture as its EXIF orientation says; values outside 1..8 and damaged EXIF count as upright."""
    if orientation_of(image) == 1:
        return image
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise  # unturned would be another picture
    except Exception:  # EXIF is written by anything; the pixels are fine without it
        return image


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation; 1, upright, where there is none that can be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
        return value if isinstance(value, int) else 1
    except Exception:
        return 1


def _from_encoded(content: bytes, limits: Limits) -> Image.Image:
    """Read the header only."""
    if not content:
        raise ImageError("the file is empty", remedy="copy or download it again")
    formats: tuple[str, ...] = FORMATS
    if is_heif(content):
        register_heif()
        formats = ("HEIF",)
    try:
        return Image.open(io.BytesIO(content), formats=formats)
    except MemoryError:
        raise
    except UnidentifiedImageError:
        known = ", ".join((*FORMATS, "HEIC"))
        raise ImageError(f"not an image in a supported format ({known})", remedy="convert it to one") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # the warning: where warnings are errors
        raise ImageError(f"larger than {megapixels(limits.max_pixels)}", remedy="scale it down first") from None
    except Exception as error:  # a hostile header can raise nearly anything inside a decoder
        raise ImageError(f"damaged image header ({_short(error)})", remedy="copy or download it again") from error


def _from_array(array: UInt8, limits: Limits) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        shape = list(array.shape)
        raise ImageError(
            f"an array must be uint8 RGB of shape [H,W,3], not {array.dtype} {shape}",
            remedy="convert it, for instance with PIL.Image.fromarray(array).convert('RGB')",
        )
    # Before any copy: an array may be a view with more pixels than memory.
    _check_size(array.shape[1], array.shape[0], limits)
    return Image.fromarray(np.ascontiguousarray(array))


def _check_size(width: int, height: int, limits: Limits) -> None:
    size = f"{width}×{height}"
    if width * height > limits.max_pixels:
        raise ImageError(f"{size} is larger than {megapixels(limits.max_pixels)}", remedy="scale it down first")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{size} has a side of more than {MAX_SIDE} pixels", remedy="cut it into pieces first")


def _check_webp(pixels: int, limits: Limits) -> None:
    """Its decoder takes 16 bytes a pixel where others take 12 at most, and the sum is what the limit promises."""
    if pixels > limits.max_pixels * 3 // 4:
        most = megapixels(limits.max_pixels * 3 // 4)
        raise ImageError(
            f"larger than {most}, the limit for WebP, whose decoder needs more memory", remedy="scale it down first"
        )


def read_source(source: str | os.PathLike[str] | bytes | IO[bytes], limits: Limits) -> bytes:
    """Return the encoded bytes of a path, of bytes or of a binary file object.

    Raises:
        ImageError: missing, unreadable, no regular file, in text mode, or more than ``limits.max_bytes``.
    """
    if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) and not hasattr(source, "read"):
        kind = type(source).__name__
        raise ImageError(
            f"a {kind} is no image", remedy="give a path, bytes, a binary file, a Pillow image or an RGB array"
        )
    try:
        if isinstance(source, (bytes, bytearray, memoryview)):
            content = bytes(source)
        elif isinstance(source, (str, os.PathLike)):
            content = _read_file(Path(os.fsdecode(source)), limits.max_bytes)
        else:
            content = _read_stream(source, limits.max_bytes)
    except FileNotFoundError:
        raise ImageError("no such file", remedy="check the path") from None
    except PermissionError:
        raise ImageError("no permission to read it", remedy="change its access rights") from None
    except (OSError, ValueError) as error:
        words = reason(error) if isinstance(error, OSError) else str(error)
        raise ImageError(f"cannot be read ({words})", remedy="check the path") from error
    _check_bytes(len(content), limits.max_bytes)
    return content


def _read_file(path: Path, most: int) -> bytes:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        os.scandir(path).close()  # permission comes first: an unreadable folder is why it is here
        raise ImageError("this is a folder", remedy="name its images or give the folder to 'lare2-rt infer'")
    if not stat.S_ISREG(status.st_mode):  # a pipe or device would block or never end
        raise ImageError("not a regular file", remedy="copy its content into a file first")
    _check_bytes(status.st_size, most)
    with path.open("rb") as handle:
        return handle.read(most + 1)  # it may have grown since


def _read_stream(stream: IO[bytes], most: int) -> bytes:
    """Read until the end, or one byte more than allowed; a pipe gives its content in pieces."""
    pieces: list[bytes] = []
    left = most + 1
    while left > 0:
        piece = stream.read(min(left, _PIECE))
        if not isinstance(piece, bytes):
            raise ImageError("a file object must be opened in binary mode", remedy="open it with 'rb'")
        if not piece:
            break
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _check_bytes(size: int, most: int) -> None:
    if size > most:
        limit = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most} bytes"
        raise ImageError(f"the file has more than {limit}", remedy="convert it to a compressed format")


def _short(error: Exception) -> str:
    """One line of at most 80 characters."""
    return " ".join(str(error).split())[:80] or type(error).__name__


def is_heif(content: bytes) -> bool:
    """Tell by its first box whether a file is HEIF but not AVIF, which Pillow reads itself."""
    if content[4:8] != b"ftyp":
        return False
    box = content[: min(int.from_bytes(content[:4], "big"), _LONGEST)]
    brands = {box[8:12], *(box[at : at + 4] for at in range(16, len(box) - 3, 4))}
    return bool(brands & _BRANDS) and not brands & _AV1


def register_heif() -> None:
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
