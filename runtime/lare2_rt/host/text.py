"""Text from outside, made fit to be shown or stored: file names are hostile and need not be text at all."""

from __future__ import annotations

import os
import re

from ..errors import UsageError

_UNSAFE = re.compile("[%\udc80-\udcff]")
_ESCAPE = re.compile("%(.{0,2})", re.DOTALL)
_AMOUNT = re.compile(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?)b?\s*", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def printable(text: str) -> str:
    """Return ``text`` with control characters, line breaks and undecodable bytes as backslash escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def spreadsheet_safe(text: str) -> str:
    """Return ``printable(text)`` such that no spreadsheet takes it for a formula."""
    shown = printable(text)
    # Some spreadsheets read the full-width forms of Japanese and Chinese keyboards as the plain ones.
    return "'" + shown if shown.startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠")) else shown


def encode_name(name: str) -> str:
    """Return a native file name as it stands in tables: POSIX separators, UTF-8.

    Each byte that is not UTF-8 becomes ``%XX``, and the percent sign itself ``%25``, so that the name can be had back.
    """
    posix = name if os.sep == "/" else name.replace(os.sep, "/")
    return _UNSAFE.sub(lambda match: f"%{ord(match[0]) & 0xFF:02X}", posix)


def decode_name(stored: str) -> str:
    """Return the native file name that ``encode_name`` stored; raises UsageError when it could not have."""

    def byte(match: re.Match[str]) -> str:
        digits = match[1]
        value = int(digits, 16) if re.fullmatch("[0-9A-F]{2}", digits) else 0
        if value == 0x25:
            return "%"
        if value < 0x80:
            raise UsageError(
                f"the name {stored[:200]!r} has a wrong escape '%{digits}'", remedy="write the index again"
            )
        return chr(0xDC00 + value)

    native = _ESCAPE.sub(byte, stored)
    if "\0" in native:
        raise UsageError(
            f"the name {stored[:200]!r} holds a NUL, which no file name does", remedy="write the index again"
        )
    return native if os.sep == "/" else native.replace("/", os.sep)


def parse_amount(text: str, name: str) -> int:
    """Return the whole number that ``text`` writes, such as 5000000, 5M or 0.5G (decimal units to T, an optional B).

    Raises:
        UsageError: the amount cannot be parsed; the text names ``name``, the option or variable.
    """
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise UsageError(f"{name} is {text!r}, which is no amount", remedy="write for instance 50M or 2G")
    return int(float(match[1]) * _UNITS[match[2].lower()])
