"""The scale of a colour map: robust, and one for a whole run.

A scale taken from the first images would be wrong for the later ones, and one that moves would make panels of a run
incomparable. So nothing is coloured before the last image has been scored; until then each value is counted in a
histogram on a logarithmic axis, whose size does not grow and which does not depend on the order of the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError

SHARE = 0.01  # of all values below the lower end, and as many above the upper one
_DECADES = (-9, 9)
_BINS = 18 * 512  # 0.45 % each


@dataclass(frozen=True, slots=True)
class Scale:
    """The two values, 0 <= low < high, that get the end colours; values outside get them as well."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high < math.inf:
            words = f"a scale needs 0 <= low < high, not {self.low} and {self.high}"
            raise UsageError(words, remedy="give its ends in this order")

    def fraction(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return where values [...] stand between the ends: 0 at ``low``, 1 at ``high``, unclipped."""
        return ((values - self.low) / (self.high - self.low)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Scales:
    """The scales of a run: ``lare`` in squared noise error, ``attention`` in multiples of uniform attention."""

    lare: Scale
    attention: Scale


class Spread:
    """Counts values of a run and gives the scale that covers all but ``SHARE`` of them at either end."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS + 2, np.int64)  # the outer two: below and above all bins

    def add(self, values: NDArray[np.floating]) -> None:
        """Count values >= 0 of any shape."""
        low, high = _DECADES
        with np.errstate(divide="ignore"):
            place = (np.log10(values.astype(np.float64)) - low) / (high - low) * _BINS
        self._counts += np.bincount(np.clip(place + 1, 0, _BINS + 1).astype(np.intp).ravel(), minlength=_BINS + 2)

    def scale(self) -> Scale:
        """Return the scale, ends rounded outwards to two digits; [0, 1] where nothing was counted.

        Values that hardly differ are no picture of anything: the ends are at least a quarter of the upper one apart, so
        that rounding noise is not drawn as structure.
        """
        total = int(self._counts.sum())
        if not total:
            return Scale(0.0, 1.0)
        reached = np.cumsum(self._counts)
        low = _edge(int(np.searchsorted(reached, SHARE * total, side="right")) - 1)
        high = _edge(int(np.searchsorted(reached, (1 - SHARE) * total, side="left")))
        if high - low < high / 4:
            middle = (low + high) / 2
            low, high = middle * 7 / 8, middle * 9 / 8
        low, high = _rounded(low, up=False), _rounded(high, up=True)
        return Scale(low, high if high > low else low + 1.0)


def run_scales(lare: Iterable[NDArray[np.floating]], attention: Iterable[NDArray[np.floating]]) -> Scales:
    """Return the scales that suit several maps together."""
    spreads = (Spread(), Spread())
    for spread, maps in zip(spreads, (lare, attention), strict=True):
        for values in maps:
            spread.add(values)
    return Scales(spreads[0].scale(), spreads[1].scale())


def _edge(index: int) -> float:
    """Return the value at the edge after bin ``index`` of the counts; 0 before the first."""
    low, high = _DECADES
    return 0.0 if index < 1 else float(10 ** (low + (high - low) * min(index, _BINS) / _BINS))


def _rounded(value: float, *, up: bool) -> float:
    if value <= 0:
        return 0.0
    digits = 1 - math.floor(math.log10(value))
    steps = value * 10.0**digits
    whole = math.ceil(steps - 1e-9) if up else math.floor(steps + 1e-9)
    return round(whole / 10.0**digits, digits)
