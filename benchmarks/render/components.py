"""Reports of throughput.py as Markdown: what stands out, and each component beside the reference's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.render.markdown import NONE, gigabytes, milliseconds, row_name, table
from lare2_rt.bundle.manifest import COMPONENTS

Report = Mapping[str, Any]


def components_table(report: Report) -> str:
    """Each component beside the reference's, from the same turns."""
    names = [name for name in COMPONENTS if name in report["flop"]]
    lines = []
    for row in report["rows"]:
        parts = row.get("components", {})
        cells = []
        for name in names:
            part = parts.get(name)
            cells.append(_beside(part) if part else NONE)
        lines.append([row_name(row), *cells])
    note = "Milliseconds at the median, and times as fast as the same component of eager in the same turns."
    return table(["row", *(f"`{name}`" for name in names)], lines) + "\n\n" + note


def _beside(part: Mapping[str, float]) -> str:
    return f"{milliseconds(part['p50_ms'])} ({part['speedup']:.2f} ×)"


def summary(report: Report) -> str:
    """The fastest of our rows against eager and against the fastest peer."""
    measured = [row for row in report["rows"] if row["status"] == "measured"]
    ours = max((row for row in measured if row["kind"] == "ours"), key=lambda row: row["speedup"], default=None)
    peer = max((row for row in measured if row["kind"] == "peer"), key=lambda row: row["speedup"], default=None)
    if ours is None or peer is None:
        return "*No row of ours, or no peer, was measured.*"
    encoder = ours.get("components", {}).get("vae_encoder")
    lines = [
        ["fastest row", f"`{ours['name']}`, {milliseconds(ours['latency_ms']['p50'])} ms an image"],
        ["against eager beside it", f"{ours['speedup']:.2f} ×"],
        ["against the fastest peer", f"{ours['speedup'] / peer['speedup']:.2f} × `{peer['name']}`"],
        ["its VAE encoder against eager's", f"{encoder['speedup']:.2f} ×" if encoder else NONE],
        ["its peak memory", gigabytes(ours["memory"]["peak_bytes"])],
    ]
    return table(["", ""], lines)


TABLES: dict[str, Callable[[Report], str]] = {
    "throughput-summary": summary,
    "throughput-components": components_table,
}
