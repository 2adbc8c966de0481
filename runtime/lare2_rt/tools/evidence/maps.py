"""The maps of a result and the scale that several share: LaRE and attention over space, either on the picture."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...detection import Detection
from ...errors import UsageError

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
ColourMap = Literal["inferno", "viridis"]
_STOPS: dict[ColourMap, str] = {
    "inferno": (
        "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 "
        "d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 fcffa4"
    ),
    "viridis": (
        "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c "
        "1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725"
    ),
}
LARE_COLOURS: ColourMap = "inferno"
ATTENTION_COLOURS: ColourMap = "viridis"
OPACITY = 0.65


def lare_map(result: Detection) -> Float32:
    """Return LaRE averaged over the latent channels: float32 [h,w], >= 0, in units of the noise variance (which is 1).

    Row and column stand for the picture squashed to the VAE's size: the map covers the whole picture, each value about
    1/h of its height and 1/w of its width. Raises UsageError where the image has no result.
    """
    if result.lare is None:
        raise _no_result(result)
    return np.asarray(result.lare.mean(axis=0, dtype=np.float64), np.float32)


def attention_map(result: Detection) -> Float32:
    """Return ESR's attention averaged over heads: float32 [N,g,g] for N windows, in multiples of uniform attention.

    1 means that a patch got as much as if every token got the same. The centre window comes first. Raises UsageError
    where the image has no result, or its patch tokens are no square.
    """
    if result.attention is None:
        raise _no_result(result)
    attention = result.attention[None] if result.window_attention is None else result.window_attention
    windows, _, tokens = attention.shape
    grid = math.isqrt(tokens)
    if grid * grid != tokens:
        raise UsageError(
            f"{tokens} patch tokens are no square grid, so they cannot be drawn",
            remedy="use a bundle whose CLIP feature grid is square",
        )
    mean: Float32 = (attention.mean(axis=1, dtype=np.float64) * tokens).astype(np.float32)
    return mean.reshape(windows, grid, grid)


def colours(fraction: NDArray[np.floating], name: ColourMap) -> NDArray[np.float32]:
    """Return float32 RGB [...,3] in 0..255 for fractions [...]; outside 0..1 the end colours."""
    stops = np.array([list(bytes.fromhex(stop)) for stop in _STOPS[name].split()], np.float32)
    place = np.linspace(0, 1, len(stops))
    clipped = np.clip(fraction, 0, 1)
    return np.stack([np.interp(clipped, place, stops[:, c]) for c in range(3)], axis=-1).astype(np.float32)


def overlay(picture: UInt8, values: Float32, scale: Scale, name: ColourMap) -> UInt8:
    """Return uint8 RGB [H,W,3]: ``values`` [h,w] in colour over a grey, softened copy of ``picture`` uint8 [H,W,3].

    Values are interpolated linearly between the centres of their cells, which never overshoots. Every part is covered
    alike (``OPACITY``), and ``bar`` shows the colours over a middle grey, so that they can be read back.
    """
    height, width = picture.shape[:2]
    fraction = Image.fromarray(np.clip(scale.fraction(values), 0, 1))
    smooth = np.asarray(fraction.resize((width, height), Image.Resampling.BILINEAR))
    grey = np.asarray(Image.fromarray(picture).convert("L"), np.float32)[:, :, None]
    return _blend(grey, colours(smooth, name))


def bar(width: int, height: int, name: ColourMap) -> UInt8:
    """Return the colours of the scale from its lower end at the left to its upper end: uint8 RGB [height,width,3]."""
    row = colours(np.linspace(0, 1, width, dtype=np.float32), name)
    return np.repeat(_blend(np.full((1, width, 1), 128, np.float32), row[None]), height, axis=0)


def _no_result(result: Detection) -> UsageError:
    return UsageError(
        f"{result.source} has no result, so there is no map of it: {result.error}",
        remedy="leave out results whose 'ok' is False",
    )


def _blend(grey: NDArray[np.float32], colour: NDArray[np.float32]) -> UInt8:
    """Half the contrast of the picture is enough to see where things are."""
    soft = 128 + (grey - 128) * 0.8
    return np.round(soft * (1 - OPACITY) + colour * OPACITY).astype(np.uint8)


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

        Values that hardly differ are no picture of anything: the ends are at least a quarter of their mean apart, so
        that rounding noise is not drawn as structure.
        """
        total = int(self._counts.sum())
        if not total:
            return Scale(0.0, 1.0)
        reached = np.cumsum(self._counts)
        low = _edge(int(np.searchsorted(reached, SHARE * total, side="right")) - 1)
        high = _edge(int(np.searchsorted(reached, (1 - SHARE) * total, side="left")))
        middle = (low + high) / 2
        if high - low < middle / 4:
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
