"""What stands out of the throughput report: the README's first sentence, the fastest row, and the plot."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common.markdown import NONE, gigabytes, milliseconds, scientific, table

Report = Mapping[str, Any]
_COLOURS = {"reference": "#555555", "peer": "#c1440e", "step": "#7aa6c2", "ours": "#1f5f8b"}
_BESIDE, _LETTER, _LINE = 5.0, 4.8, 10.0  # points: from a point to its name, width of a letter, height of a name
_FLOOR = 1e-8  # exact agreement has no place on a logarithmic axis


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


def svg(report: Report, digest: str) -> bytes:
    """Return the plot as SVG; ``digest`` names the report that it was made from, inside the file.

    Points further right are faster than eager PyTorch on the same machine, points further down closer to the reference.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Text stays text and identifiers do not change from run to run, so that a new plot differs only where figures do.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": digest, "font.size": 9}):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        rows = [row for row in report["rows"] if row["status"] == "measured"]
        for kind, colour in _COLOURS.items():
            points = [(row["speedup"], error_of(row), row["name"]) for row in rows if row["kind"] == kind]
            if not points:
                continue
            axes.scatter([p[0] for p in points], [p[1] for p in points], color=colour, label=kind, zorder=3)
        axes.set_yscale("log")
        axes.axvline(1, color="#999999", linewidth=0.8)
        axes.set_xlabel("times as fast as eager PyTorch, in the same turns")
        axes.set_ylabel("LaRE, relative L2 to the reference")
        axes.set_title(f"{report['model']}, {report['machine']['cpu']}, {report['machine']['threads']} threads")
        axes.grid(alpha=0.3)
        axes.margins(x=0.18, y=0.15)
        if rows:
            axes.legend(loc="best")  # not over a point
            figure.draw_without_rendering()  # only now is known where on the page a point lies
            _name_points(axes, rows)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Description": digest})
    return stream.getvalue()


def _name_points(axes: Any, rows: Sequence[Report]) -> None:  # noqa: ANN401 - matplotlib has no types
    """Write the names beside the points, the next free line up where rows are close, with a line to the point then."""
    rows = sorted(rows, key=lambda row: (error_of(row), row["speedup"]))
    places = [(row["speedup"], error_of(row)) for row in rows]
    points = axes.transData.transform(places) * 72 / axes.figure.dpi
    # Left, right and height of each point and of each name, in points of 1/72 inch.
    taken = [(x - _BESIDE / 2, x + _BESIDE / 2, y) for x, y in points]
    for row, place, (x, y) in zip(rows, places, points, strict=True):
        left, right, up = x + _BESIDE, x + _BESIDE + len(row["name"]) * _LETTER, 4.0
        while any(left < other[1] and right > other[0] and abs(y + up - other[2]) < _LINE for other in taken):
            up += _LINE
        taken.append((left, right, y + up))
        line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.5, "relpos": (0, 0)} if up > _LINE else None
        axes.annotate(row["name"], place, xytext=(_BESIDE, up), textcoords="offset points", fontsize=8, arrowprops=line)


def error_of(row: Report) -> float:
    """Return the ordinate of a row; what is broken stands at 1."""
    value = row["fidelity"]["lare"]["worst_relative_l2"]
    return 1.0 if value is None else max(float(value), _FLOOR)


CLAIM: dict[str, Callable[[Report], str]] = {"claim": claim, "throughput-summary": summary}
