"""Finished parts of a long run: each is a file of its own, whole or not there, with the key of what it belongs to.

A run that was killed finds them again; one with another configuration has other keys and does not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lare2_rt.host.atomic import write_bytes

Arrays = Mapping[str, NDArray[Any]]


def keep(path: Path, key: str, content: Any) -> None:  # noqa: ANN401 - plain data
    """Store a finished part as JSON; raises OutputError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, json.dumps({"key": key, "content": content}).encode())


def kept(path: Path, key: str) -> Any:  # noqa: ANN401
    """Return a finished part; None where there is none of this key, or what lies there cannot be read."""
    try:
        found = json.loads(path.read_bytes())
        return found["content"] if found["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file under a name beside it first, so that a kill leaves none."""
    partial = path.with_name(f"partial-{path.name}")
    write(partial)
    partial.replace(path)


def keep_arrays(path: Path, arrays: Arrays) -> None:
    """Store arrays by name; ``path`` ends with .npz."""
    keep_file(path, lambda partial: np.savez(partial, allow_pickle=False, **arrays))


def kept_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return stored arrays."""
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def keep_images(path: Path, images: list[dict[str, NDArray[Any]]]) -> None:
    """Store one mapping of arrays an image."""
    keep_arrays(path, {f"{index}.{name}": array for index, one in enumerate(images) for name, array in one.items()})


def kept_images(path: Path) -> list[dict[str, NDArray[Any]]]:
    """Return what ``keep_images`` stored, image by image."""
    images: dict[int, dict[str, NDArray[Any]]] = {}
    for key, array in kept_arrays(path).items():
        index, _, name = key.partition(".")
        images.setdefault(int(index), {})[name] = array
    return [images[index] for index in sorted(images)]
