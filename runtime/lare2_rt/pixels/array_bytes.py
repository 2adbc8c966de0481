"""Arrays as bytes, one behind the other, with what belongs to them as JSON in front."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
