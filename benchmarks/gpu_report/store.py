"""The GPU report as it grows: what earlier starts measured stays, and nothing of another machine or model gets in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import markdown
from benchmarks.common.facts import GPU_PACKAGES, packages
from benchmarks.gpu_report.cases import EAGER, ROWS
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


_HEADINGS = (
    "row", "batch", "precision", "ms a call", "p99", "ms an image", "images/s", "× eager fp16", "LaRE error",
    "probability error", "parity", "two images", "rows equal", "GPU memory",
)  # fmt: skip


def page(report: Mapping[str, Any]) -> str:
    """Return the whole page."""
    machine, conclusion = report["machine"], report["conclusion"]
    gpu = machine["gpu"]
    versions = ", ".join(f"{name} {version}" for name, version in report["packages"].items())
    where = f"{gpu['name']} (compute capability {gpu['capability']})" if gpu else machine["cpu"]["cpu"]
    lines = [
        f"# LaRE² on {where}",
        "",
        f"**{conclusion['sentence']}**",
        "",
        f"Model {report['model']['name']}, bundle {report['model']['bundle'][:12]}, lare2-rt {report['lare2_rt']}.",
        f"Driver: {gpu['driver'] if gpu else 'none'}. Packages: {versions}.",
        "",
        "Times are of whole calls, from pixels on the host to logits on the host. LaRE error: relative L2, the worst",
        "of the procedural pictures, against the PyTorch reference's answers.",
        "",
        *table(report["cases"]),
        "",
        *_reasons(report["cases"]),
        *_opinion(report["polygraphy"]),
        "",
    ]
    return "\n".join(lines)


def table(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table of all cases that were measured."""
    measured = [case for case in cases if case["status"] == "measured"]
    if not measured:
        return ["Nothing was measured."]
    eager = {case["batch"]: case["speed"]["image_ms"] for case in measured if case["row"] == EAGER}
    return markdown.table(_HEADINGS, [_cells(case, eager.get(case["batch"])) for case in measured]).splitlines()


def _cells(case: Mapping[str, Any], eager: float | None) -> list[str]:
    speed, parity, rows = case["speed"], case["parity"], case["rows"]
    memory = case["gpu_peak_bytes"]
    return [
        case["row"],
        str(case["batch"]),
        case["precision"],
        f"{speed['call_ms']['p50']:.2f}",
        f"{speed['call_ms']['p99']:.2f}",
        f"{speed['image_ms']:.2f}",
        f"{speed['images_per_second']:.1f}",
        "" if eager is None or case["device"] != "cuda" else f"{eager / speed['image_ms']:.2f}",
        _number(parity["relative_l2"]["lare"]),
        _number(parity["probability"]),
        "passed" if parity["passed"] else "FAILED",
        "passed" if case["two_images"]["passed"] else "FAILED",
        "" if rows is None else "yes" if rows["equal"] else f"no ({_number(rows['relative_l2'])})",
        "" if memory is None else f"{memory / 1e9:.2f} GB",
    ]


def _reasons(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for every reason, with the rows that it keeps away and their batch sizes."""
    reasons: dict[tuple[str, str], dict[str, list[str]]] = {}
    for case in cases:
        if case["status"] != "measured":
            rows = reasons.setdefault((case["status"], case["reason"]), {})
            rows.setdefault(case["row"], []).append(str(case["batch"]))
    lines = []
    for (status, reason), rows in reasons.items():
        names = "; ".join(f"{row} at batch {', '.join(batches)}" for row, batches in rows.items())
        lines.append(f"- {status}: {reason}: {names}")
    return ["Not measured:", "", *lines, ""] if lines else []


def _opinion(opinion: Mapping[str, Any]) -> list[str]:
    if opinion["status"] != "measured":
        return [f"Polygraphy: {opinion['status']}: {opinion['reason']}"]
    gaps = [
        f"{name} {output} {_number(figures['relative_l2'])}"
        for name, entry in opinion["components"].items()
        for output, figures in entry["outputs"].items()
    ]
    verdict = "passed" if opinion["passed"] else "FAILED"
    return [f"Polygraphy {opinion['polygraphy']} on {opinion['ran_on']}: {verdict} ({', '.join(gaps)})"]


def _number(value: float | None) -> str:
    return "not finite" if value is None else markdown.scientific(value)
