"""The two maps of a result as arrays, and their colours over a picture."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...detection import Detection
from ...errors import UsageError
from .colormap import ColourMap, colours
from .scale import Scale

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
LARE_COLOURS: ColourMap = "inferno"
ATTENTION_COLOURS: ColourMap = "viridis"
OPACITY = 0.65


def lare_map(result: Detection) -> Float32:
    """Return LaRE averaged over the latent channels: float32 [h,w], >= 0, in units of the noise variance (which is 1).

    Row and column stand for the picture squashed to the VAE's size: the map covers the whole picture, each value about
    1/h of its height and 1/w of its width.

    Raises:
        UsageError: the image has no result.
    """
    if result.lare is None:
        raise UsageError(f"{result.source} has no result, so there is no map of it: {result.error}")
    mean: Float32 = result.lare.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def attention_map(result: Detection) -> Float32:
    """Return ESR's attention averaged over heads: float32 [N,g,g] for N windows, in multiples of uniform attention.

    1 means that a patch got as much as if every token got the same. The centre window comes first.

    Raises:
        UsageError: the image has no result, or its patch tokens are no square.
    """
    if result.attention is None:
        raise UsageError(f"{result.source} has no result, so there is no map of it: {result.error}")
    attention = result.attention[None] if result.window_attention is None else result.window_attention
    windows, _, tokens = attention.shape
    grid = math.isqrt(tokens)
    if grid * grid != tokens:
        raise UsageError(f"{tokens} patch tokens are no square grid, so they cannot be drawn")
    mean: Float32 = (attention.mean(axis=1, dtype=np.float64) * tokens).astype(np.float32)
    return mean.reshape(windows, grid, grid)


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


def _blend(grey: NDArray[np.float32], colour: NDArray[np.float32]) -> UInt8:
    """Half the contrast of the picture is enough to see where things are."""
    soft = 128 + (grey - 128) * 0.8
    return np.round(soft * (1 - OPACITY) + colour * OPACITY).astype(np.uint8)
