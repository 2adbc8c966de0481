"""The two maps of a result as arrays, and their colours over a picture.

The colours are seventeen evenly spaced ones each of ``inferno`` and ``viridis`` of matplotlib (Nathaniel Smith and
Stéfan van der Walt, 2015, published under CC0), interpolated linearly between: lightness rises evenly, so a map reads
the same in grey and to colour-blind eyes. Linear pieces stay within 7 of 255 of the originals.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...detection import Detection
from ...errors import UsageError
from .scale import Scale

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
