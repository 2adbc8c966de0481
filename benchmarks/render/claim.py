"""The README's first sentence, made of the throughput report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.render.markdown import scientific

Report = Mapping[str, Any]


def claim(report: Report) -> str:
    """Say how fast the fastest shipped engine is beside eager PyTorch, how exact, on what machine, and next to whom."""
    rows = [row for row in report["rows"] if row["status"] == "measured"]
    exact = [row for row in rows if row["kind"] == "ours" and row["fidelity"]["lare"]["worst_relative_l2"] is not None]
    # A row that was disturbed throughout is no claim, unless there is no other.
    steady = [row for row in exact if row["rounds"]["steady"] >= row["rounds"]["wanted"]] or exact
    if not steady:
        return "*No engine of this project's is in the report: measure it again.*"
    best = max(steady, key=lambda row: float(row["speedup"]))
    return f"{_claim(report, best)}{_peers(rows)}. [Every row, and how it is measured](#how-fast)."


def _claim(report: Report, row: Report) -> str:
    machine, fidelity = report["machine"], row["fidelity"]
    seconds, place = row["latency_ms"]["p50"] / 1e3, f"{machine['threads']} threads of an {machine['cpu']}"
    logit = fidelity["logit"]["over_standard_deviation"]
    return (
        f"**LaRE² at full size takes {seconds:.1f} s an image on {place}, without torch and {row['speedup']:.2f} times "
        f"as fast as PyTorch eager** (Stable Diffusion 1.5 and CLIP RN50, {report['method']['ensemble']} draws, "
        f"float32, engine `{row['name']}`), with LaRE within {scientific(fidelity['lare']['worst_relative_l2'])} of "
        "the reference's"
        + (f" and the logit within {scientific(logit)} standard deviations" if logit is not None else "")
    )


def _peers(rows: list[Report]) -> str:
    """The other ways to run it, as far as they are not slower than what they are compared with."""
    peers = [f"`{row['name']}` {row['speedup']:.2f} ×" for row in rows if row["kind"] == "peer" and row["speedup"] > 1]
    return f". Peers beside the same PyTorch: {', '.join(peers)}" if peers else ""
