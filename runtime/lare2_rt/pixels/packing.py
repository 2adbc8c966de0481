"""Arrays, and what was decoded, as bytes: for the pipe of a decoding process, and for records that are put aside."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .picture import Picture
from .preprocess import Pixels, View

_LENGTH = struct.Struct("<I")


def join_arrays(arrays: Sequence[NDArray[Any]], facts: Mapping[str, object] | None = None) -> bytes:
    """Return arrays of any shapes and types as bytes; ``facts`` is what JSON can hold."""
    layout = [(array.dtype.str, array.shape) for array in arrays]
    head = json.dumps({"arrays": layout, "facts": dict(facts or {})}).encode()
    return b"".join([_LENGTH.pack(len(head)), head, *(array.tobytes() for array in arrays)])


def split_arrays(content: bytes) -> tuple[list[NDArray[Any]], dict[str, Any]]:
    """Return what ``join_arrays`` was given; the arrays are read-only views of ``content``."""
    (length,) = _LENGTH.unpack_from(content)
    at = _LENGTH.size + length
    head = json.loads(content[_LENGTH.size : at])
    arrays: list[NDArray[Any]] = []
    for kind, shape in head["arrays"]:
        arrays.append(np.frombuffer(content, np.dtype(kind), math.prod(shape), at).reshape(shape))
        at += arrays[-1].nbytes
    return arrays, dict(head["facts"])


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


def pack_picture(picture: Picture) -> bytes:
    """Return a whole picture as bytes."""
    return join_arrays([picture.rgb], {"orientation": picture.orientation})


def unpack_picture(content: bytes) -> Picture:
    """Return what ``pack_picture`` was given; the array is read-only."""
    (rgb,), facts = split_arrays(content)
    return Picture(rgb, facts["orientation"])
