"""How much one file may ask for: pixels, bytes and seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import UsageError
from ..host.text import parse_amount

MAX_PIXELS = 89_478_485  # Pillow's own bound for a decompression bomb: 256 MiB of RGB
MAX_SIDE = 1_000_000  # Pillow's resize takes 32 bytes per pixel of the longer side: 3 GB for one row of MAX_PIXELS
MAX_BYTES = 1 << 30  # more than MAX_PIXELS of uncompressed 16-bit RGBA
MAX_SECONDS = 60.0  # an honest AVIF of MAX_PIXELS takes a tenth of that on one core
_MOST = 1 << 40
_LEAVE = "choose another, or leave it out for the default"
_ISOLATE = "pass isolate=True, or leave that limit out"


@dataclass(frozen=True, slots=True)
class Limits:
    """What is refused in one sentence instead of being decoded.

    Attributes:
        max_pixels: width times height, read from the header. Decoding takes at most 16 bytes of memory per pixel
            of this limit. More than Pillow's own bound needs decoding in processes of their own, as that bound is one
            of the whole process.
        max_bytes: size of the file.
        max_seconds: from reading to pixels; kept only where decoding runs in processes, which can be ended.

    Raises:
        UsageError: a limit that nothing could keep, or that limits nothing.
    """

    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES
    max_seconds: float = MAX_SECONDS

    def __post_init__(self) -> None:
        for name, value in (("pixels", self.max_pixels), ("bytes", self.max_bytes)):
            if not 1 <= value <= _MOST:
                raise UsageError(f"the limit of {name} must lie between 1 and {_MOST}, not {value}", remedy=_LEAVE)
        if not (math.isfinite(self.max_seconds) and 0 < self.max_seconds <= 86_400):
            raise UsageError(
                f"the limit of seconds must lie between 0 and 86400, not {self.max_seconds}", remedy=_LEAVE
            )

    def check_without_processes(self) -> None:
        """Raise UsageError for a limit that only processes keep, as they can be ended and have bounds of their own."""
        if self.max_pixels > MAX_PIXELS:
            raise UsageError(f"more than {megapixels(MAX_PIXELS)} are decoded in processes only", remedy=_ISOLATE)
        if self.max_seconds != MAX_SECONDS:
            raise UsageError("a limit of seconds is kept by processes only", remedy=_ISOLATE)


def limits_of(max_pixels: str | None, max_bytes: str | None, max_seconds: float | None, *, isolate: bool) -> Limits:
    """Return the limits that options of the command give; None is the default.

    Raises:
        UsageError: an amount that is none, or a limit that cannot be kept without processes of their own.
    """
    if max_seconds is not None and not isolate:
        raise UsageError("--max-seconds needs processes that can be ended", remedy="leave --no-isolate out")
    pixels = MAX_PIXELS if max_pixels is None else parse_amount(max_pixels, "--max-pixels")
    if pixels > MAX_PIXELS and not isolate:
        raise UsageError(
            f"--max-pixels above {megapixels(MAX_PIXELS)} needs processes", remedy="leave --no-isolate out"
        )
    size = MAX_BYTES if max_bytes is None else parse_amount(max_bytes, "--max-bytes")
    return Limits(pixels, size, MAX_SECONDS if max_seconds is None else max_seconds)


def megapixels(pixels: int) -> str:
    """Return a number of pixels as people say it, such as '89 megapixels'."""
    if pixels < 100_000:
        return f"{pixels} pixels"
    return f"{pixels / 1e6:.0f} megapixels" if pixels >= 10**7 else f"{pixels / 1e6:.3g} megapixels"
