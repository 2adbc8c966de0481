"""A labelled set from whatever names it: an index, a folder, a list."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import UsageError
from ...host.atomic import reason
from ...host.console import say
from .build import build_index
from .table import Index, read_index


def open_data(data: str) -> Index:
    """Return the index in a Parquet file, or that of a folder or list, made on the way; raises UsageError."""
    if os.path.isfile(data) and _is_parquet(data):
        return read_index(data)
    say(f"indexing {data}; 'lare2-rt index' keeps the result for the next time")
    return build_index(data).index


def _is_parquet(path: str) -> bool:
    try:
        with Path(path).open("rb") as stream:
            return stream.read(4) == b"PAR1"
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}", remedy="check its access rights") from error
