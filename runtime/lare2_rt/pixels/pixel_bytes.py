"""Pixels as bytes, for the pipe between the process that decodes and the one that scores."""

from __future__ import annotations

import numpy as np

from .array_bytes import join_arrays, split_arrays
from .preprocess import Pixels, View


def pack(pixels: Pixels) -> bytes:
    """Return the arrays and what is known of the view."""
    windows = pixels.crop[None] if pixels.others is None else np.concatenate([pixels.crop[None], pixels.others])
    view = pixels.view
    if view is None:
        return join_arrays([pixels.image, windows])
    facts = {"size": view.size, "corners": view.corners, "alike": view.turned_alike}
    return join_arrays([pixels.image, windows, view.preview], facts)


def unpack(content: bytes) -> Pixels:
    """Return what ``pack`` was given; the arrays are read-only."""
    (image, windows, *preview), facts = split_arrays(content)
    view = None
    if preview:
        corners = tuple((left, top) for left, top in facts["corners"])
        view = View((facts["size"][0], facts["size"][1]), preview[0], corners, windows, facts["alike"])
    return Pixels(image, windows[0], windows[1:] if len(windows) > 1 else None, view)
