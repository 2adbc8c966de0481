"""Text on pictures with the font inside Pillow: nothing to install, the same pixels on every machine."""

from __future__ import annotations

import functools
from typing import Any

from PIL import ImageFont, features

from ...errors import UsageError


@functools.lru_cache(maxsize=8)
def font(size: int) -> Any:  # noqa: ANN401 - FreeTypeFont, or the bitmap font where FreeType is missing
    """Return Pillow's own scalable font in pixels; raises UsageError where Pillow was built without FreeType."""
    if not features.check("freetype2"):
        raise UsageError(
            "this Pillow has no FreeType, which panels need for their text", remedy="pip install --upgrade pillow"
        )
    return ImageFont.load_default(size=size)


def drawable(text: str) -> str:
    """Return ``text`` with all but printable ASCII as backslash escapes: the font has few other characters.

    A box in place of each letter would make every name in another script look the same.
    """
    return "".join(c if " " <= c <= "~" else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def fitted(text: str, width: int, size: int) -> str:
    """Return ``text``, shortened in the middle to ``width`` pixels where it is longer: both ends of a path matter."""
    face = font(size)
    if face.getlength(text) <= width:
        return text
    least, most = 1, len(text)
    while least < most:
        kept = (least + most + 1) // 2
        if face.getlength(_shortened(text, kept)) <= width:
            least = kept
        else:
            most = kept - 1
    return _shortened(text, least)


def wrapped(text: str, width: int, size: int) -> list[str]:
    """Return ``text`` in lines of at most ``width`` pixels, broken between words; a longer word is shortened."""
    face, lines = font(size), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if face.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(fitted(word, width, size))
    return [line for line in lines if line]


def _shortened(text: str, kept: int) -> str:
    tail = max(1, kept * 2 // 3)
    return f"{text[: kept - tail]}...{text[len(text) - tail :]}"
