"""The GPU report as it grows: what earlier starts measured stays, and nothing of another machine or model gets in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common.facts import GPU_PACKAGES, packages
from benchmarks.gpu_report.cases import ROWS
from lare2_rt._version import __version__
from lare2_rt.errors import UsageError, first_line
from lare2_rt.host.machine import cpu_facts

SCHEMA = "lare2-rt/gpu-report/1"
# What must be the same, beside row and batch, for a case to count as measured.
SETTINGS = ("threads", "seconds", "reference", "bundle")
_REMEDY = "choose another --out, or --fresh, which replaces it"
_ORDER = {row.name: number for number, row in enumerate(ROWS)}
Record = dict[str, Any]


def new_report(gpu: Record | None, model: str, bundle: str | None) -> Record:
    """Return a report in which nothing is measured.

    Args:
        gpu: facts of the GPU; model: its name; bundle: its id, or None where it has yet to be built.
    """
    return {
        "schema": SCHEMA,
        "lare2_rt": __version__,
        "machine": {"gpu": gpu, "cpu": cpu_facts()},
        "packages": packages(GPU_PACKAGES),
        "model": {"name": model, "bundle": bundle},
        "cases": [],
        "polygraphy": {"status": "not usable", "reason": "it was not asked yet"},
    }


def resumed(path: Path, report: Record) -> Record:
    """Return a new report with all that earlier starts left in ``path``; raises UsageError if it is of another kind."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return report
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a GPU report ({first_line(error)})", remedy=_REMEDY) from error
    other = _other(found, report)
    if other is not None:
        raise UsageError(f"{path} is {other}", remedy=_REMEDY)
    # Another environment may have measured them: what it had is kept with each case.
    return {**report, "cases": found["cases"], "polygraphy": found["polygraphy"]}


def _other(found: Any, report: Record) -> str | None:  # noqa: ANN401 - whatever lies there
    """Return of what else an earlier report is; None if both can be one."""
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        return "no GPU report"
    if found.get("machine") != report["machine"]:
        return "the report of another machine, GPU or driver"
    if found.get("lare2_rt") != report["lare2_rt"]:
        return f"a report of lare2-rt {found.get('lare2_rt')}, and this is {report['lare2_rt']}"
    # A bundle of seeded weights may have got more batch sizes since; one that is given must be the very same.
    ours, theirs = report["model"], found["model"]
    if theirs["name"] != ours["name"]:
        return f"the report of another model, {theirs['name']}"
    if ours["bundle"] not in (None, theirs["bundle"]):
        return f"the report of another bundle, {theirs['bundle'][:12]}"
    return None


def measured(report: Record, case: Record) -> Record | None:
    """Return what an earlier start measured, and passed, of this very case: same row, batch and settings."""
    for found in report["cases"]:
        if found["status"] == "measured" and found["passed"] and _key(found) == _key(case):
            return dict(found)
    return None


def keep(report: Record, case: Record) -> None:
    """Put a case into a report, where it replaces an older one of its row and batch.

    One that cannot run in this environment replaces nothing: another environment has measured it, or seen it fail.
    """
    older = [found for found in report["cases"] if _place(found) == _place(case)]
    if case["status"] == "not usable" and any(found["status"] != "not usable" for found in older):
        return
    others = [found for found in report["cases"] if found not in older]
    report["cases"] = sorted([*others, case], key=lambda found: (_ORDER.get(found["row"], len(_ORDER)), found["batch"]))


def keep_opinion(report: Record, opinion: Record) -> None:
    """Put Polygraphy's opinion into a report, by the same rule."""
    if opinion["status"] != "not usable" or report["polygraphy"]["status"] == "not usable":
        report["polygraphy"] = opinion


def _place(case: Mapping[str, Any]) -> tuple[Any, ...]:
    return case["row"], case["batch"]


def _key(case: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*_place(case), *(case.get(name) for name in SETTINGS))
