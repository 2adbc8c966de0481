"""Reads Qt's binary resource archives (``.rcc``), in which GCompris keeps its pictures."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_COMPRESSED, _FOLDER = 1, 2


def files(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of every file of an archive; layout as ``rcc`` writes it, versions 1 to 3.

    Raises:
        ValueError: not such an archive.
    """
    if content[:4] != b"qres":
        raise ValueError("not a Qt resource archive")
    version, tree, data, names = struct.unpack(">4I", content[4:20])
    size = 14 if version < 2 else 22

    def name(offset: int) -> str:
        (length,) = struct.unpack(">H", content[names + offset : names + offset + 2])
        begin = names + offset + 6  # length and hash precede the text
        return content[begin : begin + 2 * length].decode("utf-16-be")

    def walk(index: int, path: str) -> Iterator[tuple[str, bytes]]:
        at = tree + index * size
        name_offset, flags = struct.unpack(">IH", content[at : at + 6])
        here = f"{path}/{name(name_offset)}" if index else ""
        if flags & _FOLDER:
            count, first = struct.unpack(">II", content[at + 6 : at + 14])
            for child in range(first, first + count):
                yield from walk(child, here)
            return
        (offset,) = struct.unpack(">I", content[at + 10 : at + 14])
        (length,) = struct.unpack(">I", content[data + offset : data + offset + 4])
        blob = content[data + offset + 4 : data + offset + 4 + length]
        yield here, zlib.decompress(blob[4:]) if flags & _COMPRESSED else blob

    yield from walk(0, "")
