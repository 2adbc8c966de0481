"""Markdown tables and the numbers in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NONE = "—"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """One Markdown table; from four columns on, all but the first are aligned to the right."""
    return _aligned(header, lines, right=len(header) > 3)


def number_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """One Markdown table of numbers: all but the first column are aligned to the right, however few there are."""
    return _aligned(header, lines, right=True)


def _aligned(header: Sequence[str], lines: Sequence[Sequence[str]], *, right: bool) -> str:
    alignment = ["---", *["--:" if right else "---"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(map(cell, cells))} |" for cells in (header, alignment, *lines))


def cell(text: str) -> str:
    """One line without what would end a cell."""
    return " ".join(text.split()).replace("|", "\\|")


def interval(estimate: Mapping[str, float | None] | None, *, signed: bool = False) -> str:
    """A share, or a difference of shares, with the ends of its interval."""
    if estimate is None:
        return NONE
    form = "+.3f" if signed else ".3f"
    value, low, high = (format(estimate[name], form) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def milliseconds(value: float) -> str:
    """Three digits and no more than a stopwatch shows: 5432, 98.7, 4.32."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def scientific(value: float) -> str:
    """Two digits: 3.1e-6."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def error(entry: Mapping[str, float | None] | None, field: str) -> str:
    """One figure of a comparison; what was not compared, or is not finite, says so."""
    if entry is None:
        return NONE
    value = entry[field]
    return "broken" if value is None else scientific(value)


def percent(share: float | None) -> str:
    """Whole per cent: 71 %."""
    return NONE if share is None else f"{100 * share:.0f} %"


def gigabytes(count: float) -> str:
    """Bytes in decimal units: 5.3 GB, 974 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
