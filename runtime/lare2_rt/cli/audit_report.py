"""The audit for people (a table and a line for each leak) and for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ..tools.datasets.audit import AuditReport, Finding

SCHEMA = "lare2-rt/audit/1"


def as_dict(report: AuditReport) -> dict[str, Any]:
    """Return the audit as plain types for JSON."""
    return {"schema": SCHEMA, "groups": [asdict(group) for group in report.groups]}


def parts(report: AuditReport) -> list[Table | str]:
    """Return the audit for people: a table, how to read it, and a line for each fact that tells the classes apart."""
    how = "AUC of each fact alone as a score for 'generated': 0.5 tells nothing, 0 as much as 1 (the other way round)"
    return [_table(report), how, *_lines(report)]


def _table(report: AuditReport) -> Table:
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    result.add_column("images", no_wrap=True)
    result.add_column("fact alone", no_wrap=True)
    for heading in ("real", "generated", "AUC", "|AUC − 0.5|", "by chance"):
        result.add_column(heading, justify="right", no_wrap=True)
    result.add_column("", no_wrap=True)
    styles = {"leak": "bold red", "content": "yellow"}
    for group in report.groups:
        for i, finding in enumerate(group.findings):
            counts = (str(finding.real), str(finding.generated))
            verdict = Text(finding.verdict, styles[finding.verdict]) if finding.verdict in styles else ""
            name = group.group if i == 0 else ""
            result.add_row(name, _words(finding), *counts, *_numbers(finding), verdict)
    return result


def _lines(report: AuditReport) -> list[str]:
    found: dict[tuple[str, str], list[str]] = {}
    meanings: dict[str, str] = {}
    for group in report.groups:
        for finding in group.findings:
            if finding.verdict in ("leak", "content"):
                found.setdefault((finding.verdict, _words(finding)), []).append(group.group)
                meanings[_words(finding)] = finding.meaning
    lines = [f"{verdict}: {fact} in {', '.join(groups)}: {meanings[fact]}" for (verdict, fact), groups in found.items()]
    return lines or ["no fact about the files tells the classes apart by more than chance"]


def _numbers(finding: Finding) -> tuple[str, str, str]:
    if finding.auc is None:
        return "–", "–", "–"
    return f"{finding.auc:.3f}", f"{finding.distance:.3f}", f"< {finding.chance:.3f}"


def _words(finding: Finding) -> str:
    return finding.fact.replace("_", " ")
