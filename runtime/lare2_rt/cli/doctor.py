"""``lare2-rt doctor``: look at everything, say what is wrong and what to do."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..host.console import EXIT_FILES

if TYPE_CHECKING:
    from ..tools.doctor import Finding

SCHEMA = "lare2-rt/doctor/1"
_ANSI = {"ok": "32", "note": "2", "warn": "33", "bad": "1;31"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command; None means default."""

    bundle: Annotated[
        str | None, typer.Option(help="Bundle folder to look at. Default: the one that 'infer' would use.")
    ] = None
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON to paste into an issue, without your home folder and name.")
    ] = False
    seconds: Annotated[
        float, typer.Option("--engine-seconds", min=1, help="Give up on an engine that takes longer to open.")
    ] = 120


def run(options: Options) -> int:
    """Look for what does not work here: packages, machine, GPU, bundle, cache, formats, and each engine by opening it.

    Exit code: 0 nothing is broken, 1 something is, with its remedy, 130 interrupted.
    """
    from ..tools import doctor

    findings = list(doctor.examine(options.bundle, engine_seconds=options.seconds, progress=_progress))
    if sys.stderr.isatty():
        _status("")
    if options.as_json:
        sys.stdout.write(json.dumps(document(findings), indent=2) + "\n")
    else:
        _print(findings)
    return EXIT_FILES if any(finding.status == "bad" for finding in findings) else 0


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
    from ..host.text import printable

    colour = sys.stdout.isatty()
    area = None
    for finding in findings:
        if finding.area != area:
            area = finding.area
            sys.stdout.write(f"{area}\n")
        status = f"{finding.status:5}"
        if colour:
            status = f"\x1b[{_ANSI[finding.status]}m{status}\x1b[0m"
        sys.stdout.write(f"  {status} {printable(finding.name)}: {printable(finding.text)}\n")
        if finding.remedy is not None:
            sys.stdout.write(f"        → {printable(finding.remedy)}\n")
    counts = [f"{sum(f.status == status for f in findings)} {status}" for status in _ANSI]
    sys.stdout.write(", ".join(counts) + "\n")


def _progress(words: str) -> None:
    if sys.stderr.isatty():
        _status(f"looking at {words} ...")


def _status(words: str) -> None:
    sys.stderr.write(f"\r\x1b[K{words}")
    sys.stderr.flush()
