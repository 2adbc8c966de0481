"""The probabilities of a run as a drawing inside a page."""

from __future__ import annotations

from ...detection import DecisionRule
from .band import decimals, zones

BINS = 20
_WIDTH, _HEIGHT = 400, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 36, 392, 36, 196


class Histogram:
    """Counts probabilities in ``BINS`` equal bins of 0..1; the last one holds 1 as well."""

    def __init__(self) -> None:
        self._counts = [0] * BINS

    def add(self, probability: float) -> None:
        """Count one."""
        self._counts[min(BINS - 1, int(probability * BINS))] += 1

    def sentence(self) -> str:
        """Return in words what the drawing shows."""
        total = sum(self._counts)
        if not total:
            return "No image was scored."
        parts = [
            f"{count} between {index / BINS:.2f} and {(index + 1) / BINS:.2f}"
            for index, count in enumerate(self._counts)
            if count
        ]
        return f"Of {total} probabilities, {', '.join(parts)}."

    def svg(self, rule: DecisionRule) -> str:
        """Return an SVG element: bars over the stretches of the verdicts, with the thresholds between them."""
        most = max(*self._counts, 1)
        step = (_RIGHT - _LEFT) / BINS
        parts = [
            f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="histogram-words">',
            f'<title id="histogram-words">{self.sentence()}</title>',
        ]
        for zone in zones(rule):
            left, right = _at(zone.begin), _at(zone.end)
            box = f'x="{left:.2f}" y="{_TOP}" width="{right - left:.2f}" height="{_BOTTOM - _TOP}"'
            parts.append(f'<rect class="zone {zone.verdict}" {box}/>')
        for index, count in enumerate(self._counts):
            height = (_BOTTOM - _TOP) * count / most
            if count:
                box = f'x="{_LEFT + index * step + 1:.2f}" y="{_BOTTOM - height:.2f}" width="{step - 2:.2f}"'
                parts.append(f'<rect class="bar" {box} height="{height:.2f}"/>')
        parts += _axes(most)
        parts += _thresholds(rule)
        parts.append("</svg>")
        return "".join(parts)


def _at(probability: float) -> float:
    return _LEFT + probability * (_RIGHT - _LEFT)


def _axes(most: int) -> list[str]:
    parts = [f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>']
    parts += [
        f'<text x="{_LEFT - 5}" y="{y + 4}" text-anchor="end">{words}</text>'
        for y, words in ((_TOP, most), (_BOTTOM, 0))
    ]
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<text x="{_at(value):.2f}" y="{_BOTTOM + 15}" text-anchor="middle">{value:g}</text>')
    middle = f'x="{(_LEFT + _RIGHT) / 2:g}" y="{_BOTTOM + 30}" text-anchor="middle"'
    parts.append(f"<text {middle}>probability of being generated</text>")
    return parts


def _thresholds(rule: DecisionRule) -> list[str]:
    if not rule.decides or rule.real_below is None or rule.generated_from is None:
        return []
    lines = [(rule.generated_from, "generated from", 28)]
    if rule.real_below != rule.generated_from:
        lines.append((rule.real_below, "real below", 12))
    parts = []
    for value, words, y in lines:
        x = _at(value)
        parts.append(f'<path class="threshold" d="M{x:.2f} {y - 9}V{_BOTTOM}"/>')
        anchor, shift = ("end", -4) if value > 0.5 else ("start", 4)
        parts.append(f'<text x="{x + shift:.2f}" y="{y}" text-anchor="{anchor}">{words} {decimals(value)}</text>')
    return [part.replace("&", "&amp;").replace(" <", " &lt;").replace(" > ", " &gt; ") for part in parts]
