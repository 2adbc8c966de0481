"""Pixels as bytes, for the pipe between the process that decodes and the one that scores."""

from __future__ import annotations

import json
import math
import struct

import numpy as np
from numpy.typing import NDArray

from .preprocess import Pixels, View

_LENGTH = struct.Struct("<I")


def pack(pixels: Pixels) -> bytes:
    """Return the arrays one after another, behind their shapes."""
    windows = pixels.crop[None] if pixels.others is None else np.concatenate([pixels.crop[None], pixels.others])
    arrays = [pixels.image, windows]
    head: dict[str, object] = {}
    if pixels.view is not None:
        view = pixels.view
        arrays.append(view.preview)
        head["view"] = {"size": view.size, "corners": view.corners, "alike": view.turned_alike}
    head["shapes"] = [array.shape for array in arrays]
    encoded = json.dumps(head).encode()
    return b"".join([_LENGTH.pack(len(encoded)), encoded, *(array.tobytes() for array in arrays)])


def unpack(content: bytes) -> Pixels:
    """Return what ``pack`` was given; the arrays are read-only."""
    (length,) = _LENGTH.unpack_from(content)
    at = _LENGTH.size + length
    head = json.loads(content[_LENGTH.size : at])
    arrays: list[NDArray[np.uint8]] = []
    for shape in head["shapes"]:
        size = math.prod(shape)
        arrays.append(np.frombuffer(content, np.uint8, size, at).reshape(shape))
        at += size
    image, windows, *rest = arrays
    view = None
    if "view" in head:
        facts = head["view"]
        corners = tuple((left, top) for left, top in facts["corners"])
        view = View((facts["size"][0], facts["size"][1]), rest[0], corners, windows, facts["alike"])
    return Pixels(image, windows[0], windows[1:] if len(windows) > 1 else None, view)
