"""What happens to pictures on their way through the world: JPEG, blur, scaling and noise, the same bits every time.

A corruption acts on the decoded picture before any preprocessing, so both branches, and LaRE with them, see what a user
would upload. (The official robustness code may have paired corrupted pixels with clean maps: maps go by file name.)
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from ...errors import ImageError, UsageError
from ...pixels.decode import ImageSource
from ...pixels.picture import Picture, read_picture
from ...pixels.policy import Preprocessing

_ORIENTATION = 0x0112
VERSION = 1  # raised whenever a corruption of the same name would give other pixels
CLEAN = "clean"


@dataclass(frozen=True, slots=True)
class Corruption:
    """One way and degree of damage.

    Attributes:
        name: as users and reports call it, such as ``jpeg75``; family: ``jpeg``, ``blur``, ``half`` or ``noise``.
        describe: one phrase with units.
        apply: RGB picture and the key of its random numbers -> RGB picture.
    """

    name: str
    family: str
    describe: str
    apply: Callable[[Image.Image, bytes], Image.Image]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Save as baseline JPEG of ``quality`` 1..100 with 4:2:0 chroma, as most of the web does, and read it back."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=2, optimize=False, progressive=False)
    decoded = Image.open(buffer, formats=("JPEG",))
    decoded.load()
    return decoded


def blur(image: Image.Image, sigma: float) -> Image.Image:
    """Gaussian blur of ``sigma`` pixels at the picture's own resolution (Pillow's, three extended box filters)."""
    return image.filter(ImageFilter.GaussianBlur(sigma))


def half(image: Image.Image) -> Image.Image:
    """Half the width and height, rounded up; bicubic with antialiasing."""
    size = ((image.width + 1) // 2, (image.height + 1) // 2)
    return image.resize(size, Image.Resampling.BICUBIC)


def noise(image: Image.Image, sigma: float, key: bytes) -> Image.Image:
    """Add independent normal noise of ``sigma`` (in 0..255) to every sample, round and clip.

    A normal number is the sum of twelve random bytes: NumPy promises the bits of Philox in every version, and not the
    values of ``standard_normal``. Its density is within 2.5 % of the normal one up to
    2.5 standard deviations; beyond, its tails are thinner.
    """
    seed = int.from_bytes(hashlib.sha256(key).digest()[:16], "little")
    generator = np.random.Generator(np.random.Philox(key=seed))
    samples = np.asarray(image)  # uint8 [H,W,3]
    total = np.zeros(samples.size, np.int16)
    for _ in range(12):
        total += np.frombuffer(generator.bytes(samples.size), np.uint8)
    # A byte has mean 127.5 and variance (256² − 1)/12, so the sum has mean 1530 and variance 65535.
    normal = (total.astype(np.float32) - 1530) * np.float32(65535**-0.5)
    noisy = samples + np.float32(sigma) * normal.reshape(samples.shape)
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def _jpeg(quality: int) -> Corruption:
    return Corruption(f"jpeg{quality}", "jpeg", f"JPEG of quality {quality}, 4:2:0", lambda i, key: jpeg(i, quality))


def _blur(sigma: int) -> Corruption:
    return Corruption(f"blur{sigma}", "blur", f"Gaussian blur, σ = {sigma} pixels", lambda i, key: blur(i, sigma))


def _noise(percent: int) -> Corruption:
    words = f"normal noise, σ = {percent} % of the range"
    return Corruption(f"noise{percent}", "noise", words, lambda i, key: noise(i, percent * 2.55, key))


# The levels that GenImage, SIDBench, LOTA and AEROBLADE have in common, so that results can be set beside theirs.
CORRUPTIONS: dict[str, Corruption] = {
    corruption.name: corruption
    for corruption in (
        *map(_jpeg, (95, 90, 75, 50, 30)),
        *map(_blur, (1, 2, 3)),
        Corruption("half", "half", "half the width and height, bicubic", lambda i, key: half(i)),
        _noise(5),
    )
}


def choose(words: str) -> list[Corruption]:
    """Return the corruptions behind ``all`` or a comma-separated list of names and families; raises UsageError."""
    chosen: set[str] = set()
    for word in (part.strip().lower() for part in words.split(",")):
        found = {name for name, corruption in CORRUPTIONS.items() if word in ("all", name, corruption.family)}
        if not found:
            families = ", ".join(dict.fromkeys(c.family for c in CORRUPTIONS.values()))
            raise UsageError(
                f"there is no corruption {word!r}", remedy=f"choose from all, {families}, {', '.join(CORRUPTIONS)}"
            )
        chosen |= found
    return [corruption for name, corruption in CORRUPTIONS.items() if name in chosen]


def corrupt(source: ImageSource, corruption: Corruption, *, policy: Preprocessing, key: str) -> Image.Image:
    """Decode ``source`` in this process and return it damaged, see ``damage``; raises ImageError as ``preprocess``."""
    try:
        return damage(read_picture(source, policy), corruption, key=key)
    except MemoryError:
        raise _too_large() from None


def damage(picture: Picture, corruption: Corruption, *, key: str) -> Image.Image:
    """Return a picture as a corrupted RGB one that the detector takes like any file.

    The stored pixels are damaged and the EXIF orientation is kept, as re-saving a photograph does. ``key`` (the file's
    sha256) makes the noise the picture's own.

    Raises:
        ImageError: too little memory.
    """
    try:
        # From the bare samples: a profile that stayed attached would be applied a second time.
        damaged = corruption.apply(Image.fromarray(picture.rgb), f"{corruption.name} {VERSION} {key}".encode())
        result = Image.fromarray(np.asarray(damaged))
    except MemoryError:
        raise _too_large() from None
    if picture.orientation != 1:
        exif = Image.Exif()
        exif[_ORIENTATION] = picture.orientation
        result.info["exif"] = exif.tobytes()
    return result


def _too_large() -> ImageError:
    return ImageError("too little memory to corrupt it", remedy="scale it down first")
