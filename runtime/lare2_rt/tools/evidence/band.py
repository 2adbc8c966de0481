"""The verdict on a bar from 0 to 1, with the thresholds that made it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import ImageDraw

from ...detection import DecisionRule, Verdict
from .text import font

# Told apart by eyes of every kind, and always beside the word (ColorBrewer's PuOr and a grey).
COLOURS: dict[Verdict, tuple[int, int, int]] = {
    "real": (33, 102, 172),
    "unsure": (118, 118, 118),
    "generated": (179, 88, 6),
}
INK, FAINT = (26, 26, 26), (92, 92, 92)


@dataclass(frozen=True, slots=True)
class Zone:
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
        red, green, blue = COLOURS[zone.verdict]
        pale = (red + (255 - red) * 3 // 5, green + (255 - green) * 3 // 5, blue + (255 - blue) * 3 // 5)
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
    draw: ImageDraw.ImageDraw,
    rule: DecisionRule,
    at: Callable[[float], int],
    bottom: int,
    ends: tuple[int, int],
) -> None:
    """Write the thresholds under the bar: the lower one left of its tick, the upper one right of it."""
    if not rule.decides or rule.real_below is None or rule.generated_from is None:
        return
    single = rule.real_below == rule.generated_from
    labels = [("generated from", rule.generated_from, "la")]
    if not single:
        labels.insert(0, ("real below", rule.real_below, "ra"))
    face = font(14)
    for words, value, anchor in labels:
        x, text = at(value), f"{words} {decimals(value)}"
        width = round(face.getlength(text))
        draw.line((x, bottom - 4, x, bottom + 5), fill=INK, width=2)
        start = x - 4 - width if anchor == "ra" else x + 4
        # Clear of the 0 and the 1 at the ends.
        start = min(max(start, ends[0] + 16), ends[1] - 16 - width)
        draw.text((start, bottom + 6), text, font=face, fill=INK, anchor="la")
