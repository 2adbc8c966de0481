"""The GPU report for people: one Markdown page, made of nothing but the report's JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import markdown
from benchmarks.gpu_report.cases import EAGER

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
