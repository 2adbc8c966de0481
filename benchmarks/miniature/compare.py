"""Holds one report of the miniature against another: figures within the other's intervals, numbers that are equal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lare2_rt.errors import UsageError

_REMEDY = "name one that python -m benchmarks.miniature wrote"
_INTERVAL = {"value", "low", "high"}
# What says how a report came about, and costs, which are of the machine that day; ``key`` covers the data.
_NO_FINDINGS = ("schema", "protocol", "key", "machine", "data", "cost", "shipped", "compared")


def compare(report: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return, by part that both have, how a report stands to another of its protocol and photographs, both as read.

    Returns:
        ``parts``: name -> ``figures`` with an interval in ``other``, how many of them lie ``inside`` it, all
        ``numbers``, and how many of those are the ``same`` to the last digit; ``outside``: paths of figures that do
        not lie inside; ``left_out``: parts that one of the two does not have.

    Raises:
        UsageError: a figure that only one of the two has.
    """
    names = [name for name in other if name not in _NO_FINDINGS]
    both = [name for name in names if other[name] is not None and report.get(name) is not None]
    parts: dict[str, dict[str, int]] = {}
    outside: list[str] = []
    for name in both:
        part = dict.fromkeys(("figures", "inside", "numbers", "same"), 0)
        for path, mine, theirs in _pairs(name, report[name], other[name]):
            if isinstance(theirs, dict):
                part["figures"] += 1
                # Of few groups a percentile interval may miss its own figure; it reaches at least that far.
                inside = min(theirs.values()) <= mine["value"] <= max(theirs.values())
                part["inside"] += inside
                if not inside:
                    outside.append(path)
            else:
                part["numbers"] += 1
                part["same"] += mine == theirs
        parts[name] = part
    return {"parts": parts, "outside": outside, "left_out": [name for name in names if name not in both]}


def read_other(path: Path, key: str) -> dict[str, Any]:
    """Return a written report; UsageError when the file is none, or not of the protocol and photographs of ``key``."""
    try:
        report = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a report ({error})", remedy=_REMEDY) from None
    if not isinstance(report, dict) or not str(report.get("schema", "")).startswith("lare2-rt/miniature/"):
        raise UsageError(f"{path} is no report of the miniature", remedy=_REMEDY)
    if report.get("key") != key:
        raise UsageError(
            f"{path} is of another protocol or other photographs ({report.get('key')}, and this run is {key})",
            remedy="compare reports of one",
        )
    return report


def in_words(compared: Mapping[str, Any]) -> str:
    """Return a line on all parts together, and one for every figure outside and every part that one does not have."""
    total = {k: sum(p[k] for p in compared["parts"].values()) for k in ("figures", "inside", "numbers", "same")}
    line = (
        f"{total['inside']} of {total['figures']} figures lie within the other report's intervals, "
        f"{total['same']} of {total['numbers']} numbers are equal"
    )
    outside = (f"  outside: {path}" for path in compared["outside"])
    left_out = (f"  in one report only: {name}" for name in compared["left_out"])
    return "\n".join((line, *outside, *left_out))


def _pairs(path: str, mine: Any, theirs: Any) -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401 - JSON
    """Every interval as a pair, and every number of both, those of intervals too."""
    one, two = (dict(enumerate(values)) if isinstance(values, list) else values for values in (mine, theirs))
    if not isinstance(two, dict):
        yield path, one, two
        return
    if not isinstance(one, dict) or set(one) != set(two):
        raise UsageError(
            f"{path} has other entries in the two reports", remedy="write both with one version of the code"
        )
    if set(two) == _INTERVAL:
        yield path, one, two
    for key in two:
        yield from _pairs(f"{path}/{key}", one[key], two[key])
