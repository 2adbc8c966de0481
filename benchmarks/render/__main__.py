"""Write the tables of README.md and docs/ from the committed reports and from the code, and the plot beside them.

    python -m benchmarks.render [--check]

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``; what was between them is replaced.
``--check`` writes nothing and fails when a page or the plot is not what the reports say.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.command import ROOT, run_command
from benchmarks.common.facts import PACKAGES
from benchmarks.render.claim import CLAIM, svg
from benchmarks.render.columns import SCHEMA_FILE, TABLES as COLUMNS, schema_text
from benchmarks.render.fidelity import FIDELITY, FIDELITY_MINI, PARITY
from benchmarks.render.miniature import AGAIN, DEFAULT, MINIATURE
from benchmarks.render.profile import PROFILE
from benchmarks.render.throughput import THROUGHPUT, row_list
from benchmarks.throughput.rows import ROWS
from lare2_rt.errors import UsageError
from lare2_rt.host.atomic import write_bytes
from lare2_rt.host.integrity import digest_of

MODEL = "synthetic-sd15"
PLOT = "docs/throughput.svg"
_BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
_SOURCES = {
    "throughput": CLAIM | THROUGHPUT,
    "profile": PROFILE,
    "fidelity": FIDELITY,
    "fidelity-mini": FIDELITY_MINI,
    "parity": PARITY,
    "miniature": MINIATURE,
    "miniature-again": AGAIN,
    "miniature-default": DEFAULT,
}
_OF_CODE = {"rows": row_list, **COLUMNS}  # need no report
# How each report is measured, for a table that has none yet.
_COMMANDS = {
    "throughput": "throughput --model-synthetic sd15",
    "profile": "throughput --model-synthetic sd15 --profile",
    "fidelity": "fidelity --model-synthetic sd15 --images DIR",
    "fidelity-mini": "fidelity --images DIR --limit 247",
    "parity": "parity --images DIR --bundle BUNDLE --synthetic sd15",
    "miniature": "miniature",
    "miniature-again": (
        "miniature --work FOLDER --out benchmarks/results/miniature-again.json "
        "--compare benchmarks/results/miniature.json"
    ),
    "miniature-default": "miniature.default --model FOLDER --out FOLDER",
}
# Reports of the embedded model; the others are of ``MODEL``.
_SMALL = ("fidelity-mini", "miniature", "miniature-again", "miniature-default")
# Reports with an entry for each row of the throughput benchmark, or for some of them.
_BY_ROW = ("throughput", "profile", "fidelity", "fidelity-mini")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; exit code 0 written or as it should be, 1 ``--check`` found a difference, 2 failed."""
    given = parser().parse_args(arguments)
    return run_command("render", lambda: _render(given.root, check=given.check))


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.render", description=__doc__.splitlines()[0])
    result.add_argument("--check", action="store_true", help="write nothing; fail when something is out of date")
    result.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    return result


def _render(root: Path, *, check: bool) -> int:
    changed = changes(root)
    for path, content in changed.items():
        if check:
            print(f"{path.relative_to(root)} is out of date; run python -m benchmarks.render")
        else:
            write_bytes(path, content)
            print(f"wrote {path.relative_to(root)}")
    return 1 if check and changed else 0


def changes(root: Path) -> dict[Path, bytes]:
    """Return every file below ``root`` whose content differs from what the reports say; raises UsageError."""
    results = root / "benchmarks/results"
    files = {kind: f"{kind}.json" if kind in _SMALL else f"{kind}-{MODEL}.json" for kind in _SOURCES}
    reports = {kind: read_report(results / name) for kind, name in files.items()}
    for kind in _BY_ROW:
        if (report := reports[kind]) is not None:
            reports[kind] = of_known_rows(report)
    wanted: dict[Path, bytes] = {}
    for page in (root / "README.md", *sorted((root / "docs").glob("**/*.md"))):
        text = page.read_bytes().decode()  # not read_text, which would change line ends
        wanted[page] = rendered(text, page.name, reports).encode()
    if (schema := root / SCHEMA_FILE).parent.is_dir():
        wanted[schema] = schema_text().encode()
    plot = root / PLOT
    report = reports["throughput"]
    digest = _plot_digest(report) if report is not None else ""
    if report is not None and not (plot.exists() and digest.encode() in plot.read_bytes()):
        try:
            wanted[plot] = svg(report, digest)
        except ModuleNotFoundError as error:
            raise UsageError(f"the plot needs {error.name}", remedy="pip install matplotlib") from None
    return {path: content for path, content in wanted.items() if not path.exists() or path.read_bytes() != content}


def rendered(text: str, page: str, reports: dict[str, dict[str, Any] | None]) -> str:
    """Return a page with every table filled in; raises UsageError for a table that nobody knows or that has no end."""
    opened = len(re.findall(r"<!-- table: ", text))

    def fill(found: re.Match[str]) -> str:
        # Blank lines, because not every Markdown takes a table right after a comment.
        return f"{found[1]}\n{table(found[2], page, reports)}\n\n{found[4]}"

    result, closed = _BLOCK.subn(fill, text)
    if closed != opened:
        raise UsageError(f"{page} has a table without '<!-- end of table -->'", remedy="close it")
    return result


def table(name: str, page: str, reports: dict[str, dict[str, Any] | None]) -> str:
    """Return the Markdown of one table, or the line that says how to measure it; raises UsageError."""
    if name in _OF_CODE:
        return _OF_CODE[name]()
    for kind, tables in _SOURCES.items():
        if name in tables:
            report = reports[kind]
            if report is None:
                return f"*Not measured yet: `python -m benchmarks.{_COMMANDS[kind]}`.*"
            return tables[name](report)
    known = ", ".join([*_OF_CODE, *(name for tables in _SOURCES.values() for name in tables)])
    raise UsageError(f"{page} asks for a table {name!r}, which does not exist", remedy=f"tables are {known}")


def read_report(path: Path) -> dict[str, Any] | None:
    """Return a report, None where it was not measured yet; raises UsageError when it cannot be read."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error})", remedy="measure it again") from error
    return content


def of_known_rows(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report without the rows, and the packages, of engines that were removed after it was measured."""
    names, kept = {row.name for row in ROWS}, dict(report)
    if "rows" in report:
        kept["rows"] = [row for row in report["rows"] if row["name"] in names]
    for key, known in (("parts", names), ("engines", names), ("packages", PACKAGES)):
        if key in report:
            kept[key] = {name: value for name, value in report[key].items() if name in known}
    return kept


def _plot_digest(report: dict[str, Any]) -> str:
    """Return sha256 over what the plot shows: a plot is compared by this, since its bytes depend on matplotlib's."""
    shown = [(row["name"], row.get("speedup"), row.get("fidelity")) for row in report["rows"]]
    return digest_of(shown)


if __name__ == "__main__":
    sys.exit(main())
