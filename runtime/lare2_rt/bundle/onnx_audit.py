"""What an ONNX file may make a runtime do: checked with the standard library before any runtime opens the file.

Hashes only say that a bundle is the one its manifest describes, and whoever writes the one can write the other. A graph
can still name weight files anywhere on the disk, point at raw memory, or ask for operators out of other libraries. The
field numbers are those of ``onnx.proto``; fields that it does not have are refused, since a newer runtime may follow
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError
from ..host.atomic import reason
from ..host.integrity import HashCache, digest_of

MAX_BYTES = 16 << 20  # full-size graphs have 1 to 2 MB, because their weights lie in data files
_MAX_DEPTH = 40  # protobuf's own limit is 100
_REMEDY = "get or build the bundle again"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# For each message, its fields: "" holds nothing to check, a capital names the message inside, the rest are rules. Left
# out, and so refused, are functions (Model 25) and training graphs (Model 20), which could hide operators.
_PLAIN = ""
_MESSAGES: dict[str, dict[int, str]] = {
    "Model": {**dict.fromkeys((1, 2, 3, 4, 5, 6, 14), _PLAIN), 7: "Graph", 8: "Opset"},
    "Opset": {1: "domain", 2: _PLAIN},
    "Graph": {**dict.fromkeys((2, 10, 11, 12, 13, 14, 16), _PLAIN), 1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {**dict.fromkeys((1, 2, 3, 4, 6, 8, 9), _PLAIN), 5: "Attribute", 7: "domain"},
    "Attribute": {
        **dict.fromkeys((1, 2, 3, 4, 7, 8, 9, 13, 14, 15, 20, 21), _PLAIN),
        **dict.fromkeys((5, 10), "Tensor"),
        **dict.fromkeys((6, 11), "Graph"),
        **dict.fromkeys((22, 23), "Sparse"),
    },
    "Tensor": {**dict.fromkeys((*range(1, 13), 14, 16), _PLAIN), 13: "Entry"},
    "Sparse": {1: "Tensor", 2: "Tensor", 3: _PLAIN},
    "Entry": {1: "key", 2: "value"},
}
_DOMAINS = ("", "ai.onnx")
_ENTRY_KEYS = ("location", "offset", "length", "checksum")
# What a remembered verdict was reached by; the number is raised when the code below refuses more than it did.
_RULES = [1, MAX_BYTES, _MAX_DEPTH, repr(_MESSAGES), _DOMAINS, _ENTRY_KEYS]


@dataclass(frozen=True, slots=True)
class OnnxFacts:
    """External weight files and operator domains that an ONNX file names, wherever in it they stand."""

    locations: frozenset[str]
    domains: frozenset[str]


def audit_onnx(path: Path, *, files: Collection[str], cache: HashCache | None = None, fresh: bool = False) -> None:
    """Refuse an ONNX file that reaches outside its bundle or needs operators beyond ONNX's own.

    Args:
        path: the file.
        files: names of the weight files that its variant lists.
        cache: remembers what passed, by the hash of the very bytes, these rules and ``files``; what it remembers
            is trusted unless ``fresh``.

    Raises:
        BundleError: not an ONNX file, or one that names other files, other domains, functions or training graphs.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BundleError(f"{path} is larger than {MAX_BYTES >> 20} MiB, which no graph needs", remedy=_REMEDY)
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {reason(error)}", remedy="check its access rights") from error
    verdict = digest_of({"rules": _RULES, "sha256": hashlib.sha256(content).hexdigest(), "files": sorted(files)})
    if cache is not None and not fresh and cache.passed(verdict):
        return
    facts = read_facts(content, str(path))
    outside = sorted(facts.locations.difference(files))
    if outside:
        raise BundleError(
            f"{path} names weights in {outside[0]!a:.100}, which its manifest does not list", remedy=_REMEDY
        )
    foreign = sorted(facts.domains.difference(_DOMAINS))
    if foreign:
        raise BundleError(f"{path} needs operators of {foreign[0]!a:.100}, only ONNX's own are allowed", remedy=_REMEDY)
    if cache is not None:
        cache.remember(verdict)


def read_facts(content: bytes, where: str) -> OnnxFacts:
    """Return what an ONNX file names; ``where`` names the file in errors.

    Raises:
        BundleError: not an ONNX file, or one with functions, training graphs or fields that ONNX does not have.
    """
    walk = _Walk(content, where)
    walk.message("Model", 0, len(content), 0)
    return OnnxFacts(frozenset(walk.locations), frozenset(walk.domains))


class _Walk:
    """One pass over the bytes. Repeated singular fields, which protobuf merges, are all looked at."""

    def __init__(self, content: bytes, where: str) -> None:
        self._content = content
        self._where = where
        self.locations: set[str] = set()
        self.domains: set[str] = set()

    def _error(self, words: str = "is not a valid ONNX file") -> BundleError:
        return BundleError(f"{self._where} {words}", remedy=_REMEDY)

    def message(self, name: str, begin: int, end: int, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise self._error("is nested too deeply")
        content, fields, position = self._content, _MESSAGES[name], begin
        entry: dict[str, str] = {}
        while position < end:
            tag, position = self._varint(position, end)
            rule, wire = fields.get(tag >> 3), tag & 7
            if rule is None:
                raise self._error(f"has field {tag >> 3} in {name}, which is unknown or not allowed")
            begin = position
            if wire == _BYTES:
                size, begin = self._varint(position, end)
                position = begin + size
            elif wire == _VARINT:
                _, position = self._varint(position, end)
            else:  # anything else runs over the end
                position += {_FIXED64: 8, _FIXED32: 4}.get(wire, end)
            if position > end or (rule and wire != _BYTES):
                raise self._error()
            if not rule:
                continue
            if rule in _MESSAGES:
                self.message(rule, begin, position, depth + 1)
                continue
            text = content[begin:position].decode("utf-8", "backslashreplace")
            if rule == "domain":
                self.domains.add(text)
            elif rule in entry:  # which of two counts is up to the reader
                raise self._error()
            else:
                entry[rule] = text
        key = entry.get("key", "")
        if name == "Entry" and key not in _ENTRY_KEYS:
            raise self._error(f"describes external weights by {key!a:.100}, which is unknown")
        if key == "location":
            self.locations.add(entry.get("value", ""))

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        """Return a variable-length integer of at most 64 bits and the position behind it."""
        value = 0
        for shift in range(0, 70, 7):
            if position >= end:
                break
            byte = self._content[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise self._error()
