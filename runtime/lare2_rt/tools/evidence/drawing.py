"""Drawing on panels: text in the font inside Pillow, and the verdict on a bar from 0 to 1 with its thresholds.

The font needs nothing installed and gives the same pixels on every machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from PIL import ImageDraw, ImageFont, features

from ...detection import DecisionRule, Verdict
from ...errors import UsageError

# Told apart by eyes of every kind, and always beside the word (ColorBrewer's PuOr and a grey).
COLOURS: dict[Verdict, tuple[int, int, int]] = {
    "real": (33, 102, 172),
    "unsure": (118, 118, 118),
    "generated": (179, 88, 6),
}
INK, FAINT = (26, 26, 26), (92, 92, 92)


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


class Zone(NamedTuple):
    """A stretch of the probability axis, 0..1, and the verdict that it stands for."""

    verdict: Verdict
    begin: float
    end: float


def zones(rule: DecisionRule) -> tuple[Zone, ...]:
    """Return the stretches of 0..1 in order, without empty ones; all is ``unsure`` where the rule decides nothing."""
    if not rule.decides or rule.real_below is None or rule.generated_from is None:
        return (Zone("unsure", 0.0, 1.0),)
    parts = (
        Zone("real", 0.0, rule.real_below),
        Zone("unsure", rule.real_below, rule.generated_from),
        Zone("generated", rule.generated_from, 1.0),
    )
    return tuple(zone for zone in parts if zone.end > zone.begin)


def decimals(value: float) -> str:
    """Return a probability with four decimals, never rounded onto 0 or 1 unless it is there."""
    shown = f"{value:.4f}"
    if shown == "1.0000" and value < 1:
        return "> 0.9999"
    if shown == "0.0000" and value > 0:
        return "< 0.0001"
    return shown


def draw_band(
    draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], *, rule: DecisionRule, probability: float
) -> None:
    """Draw the bar into ``box`` (left, top, right, bottom in pixels), its labels 22 pixels above and below."""
    left, top, right, bottom = box

    def at(value: float) -> int:
        return left + round(value * (right - left))

    for zone in zones(rule):
        pale = tuple(part + (255 - part) * 3 // 5 for part in COLOURS[zone.verdict])
        draw.rectangle((at(zone.begin), top, at(zone.end), bottom), fill=pale)
        _label(draw, zone, (at(zone.begin), at(zone.end)), (top + bottom) // 2, at(probability))
    draw.text((left, bottom + 6), "0", font=font(14), fill=FAINT, anchor="la")
    draw.text((right, bottom + 6), "1", font=font(14), fill=FAINT, anchor="ra")
    _thresholds(draw, rule, at, bottom, (left, right))
    x = min(max(at(probability), left + 1), right - 1)
    draw.polygon(((x - 8, top - 13), (x + 8, top - 13), (x, top - 1)), fill=INK)
    draw.line((x, top, x, bottom), fill=INK, width=3)


def _label(draw: ImageDraw.ImageDraw, zone: Zone, ends: tuple[int, int], y: int, mark: int) -> None:
    """Write a verdict into its stretch: at its beginning, at its end where the mark would cross it, or nowhere."""
    width = round(font(14).getlength(zone.verdict))
    for x in (ends[0] + 8, ends[1] - 8 - width):
        if ends[1] - ends[0] > width + 16 and not x - 4 <= mark <= x + width + 4:
            draw.text((x, y), zone.verdict, font=font(14), fill=INK, anchor="lm")
            return


def _thresholds(
    draw: ImageDraw.ImageDraw, rule: DecisionRule, at: Callable[[float], int], bottom: int, ends: tuple[int, int]
) -> None:
    """Write the thresholds under the bar: the lower one left of its tick, the upper one right of it."""
    if not rule.decides or rule.real_below is None or rule.generated_from is None:
        return
    labels = [("real below", rule.real_below), ("generated from", rule.generated_from)]
    if rule.real_below == rule.generated_from:
        del labels[0]
    face = font(14)
    for words, value in labels:
        x, text = at(value), f"{words} {decimals(value)}"
        width = round(face.getlength(text))
        draw.line((x, bottom - 4, x, bottom + 5), fill=INK, width=2)
        start = x - 4 - width if words == "real below" else x + 4
        # Clear of the 0 and the 1 at the ends.
        start = min(max(start, ends[0] + 16), ends[1] - 16 - width)
        draw.text((start, bottom + 6), text, font=face, fill=INK, anchor="la")
