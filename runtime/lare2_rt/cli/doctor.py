"""``lare2-rt doctor``: look at everything, say what is wrong and what to do."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..host.console import EXIT_FILES
from ..tools import doctor
from ..tools.doctor import Finding

SCHEMA = "lare2-rt/doctor/1"


def run(bundle: str | None, *, as_json: bool, seconds: float) -> int:
    """Print what was found; returns 1 where something does not work, else 0."""
    findings = list(doctor.examine(bundle, engine_seconds=seconds, progress=_progress))
    _clear()
    bad = any(finding.status == "bad" for finding in findings)
    if as_json:
        json.dump(document(findings), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _print(findings)
    return EXIT_FILES if bad else 0


def document(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the JSON document: what the table says, with the home folder and the user's name taken out."""
    return {
        "schema": SCHEMA,
        "ok": all(finding.status != "bad" for finding in findings),
        "findings": [
            {
                "area": finding.area,
                "name": finding.name,
                "status": finding.status,
                "text": _impersonal(finding.text),
                "remedy": None if finding.remedy is None else _impersonal(finding.remedy),
                "facts": {
                    key: _impersonal(value) if isinstance(value, str) else value for key, value in finding.facts.items()
                },
            }
            for finding in findings
        ],
    }


def _impersonal(text: str) -> str:
    places = {
        str(Path(__file__).parents[1]): "<lare2_rt>",
        sys.prefix: "<python>",
        str(Path.cwd()): "<here>",
        str(Path.home()): "~",
    }
    for place, shown in sorted(places.items(), key=lambda pair: -len(pair[0])):
        if len(place) > 1:
            text = text.replace(place, shown)
    try:
        user = getpass.getuser()
    except Exception:  # no name for this number
        return text
    return text.replace(f"/{user}/", "/<user>/") if user not in ("", "root") else text


def _print(findings: Sequence[Finding]) -> None:
    try:
        from ..host.text import printable
    except Exception:  # rich, numpy or Pillow are among what is broken
        for finding in findings:
            remedy = f" -> {finding.remedy}" if finding.remedy else ""
            sys.stdout.write(
                ascii(f"{finding.status:5} {finding.area}: {finding.name}: {finding.text}{remedy}")[1:-1] + "\n"
            )
        return
    colour = sys.stdout.isatty()
    area = None
    for finding in findings:
        if finding.area != area:
            area = finding.area
            sys.stdout.write(f"{area}\n")
        status = _coloured(finding.status) if colour else f"{finding.status:5}"
        sys.stdout.write(f"  {status} {printable(finding.name)}: {printable(finding.text)}\n")
        if finding.remedy is not None:
            sys.stdout.write(f"        → {printable(finding.remedy)}\n")
    counts = [f"{sum(f.status == status for f in findings)} {status}" for status in _ANSI]
    sys.stdout.write(", ".join(counts) + "\n")


_ANSI = {"ok": "32", "note": "2", "warn": "33", "bad": "1;31"}


def _coloured(status: str) -> str:
    return f"\x1b[{_ANSI[status]}m{status:5}\x1b[0m"


def _progress(words: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[Klooking at {words} ...")
        sys.stderr.flush()


def _clear() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
