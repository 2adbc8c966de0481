"""The plot of a throughput report: how fast against how faithful."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

_COLOURS = {"reference": "#555555", "peer": "#c1440e", "step": "#7aa6c2", "ours": "#1f5f8b"}
_BESIDE, _LETTER, _LINE = 5.0, 4.8, 10.0  # points: from a point to its name, width of a letter, height of a name
_FLOOR = 1e-8  # exact agreement has no place on a logarithmic axis


def svg(report: Mapping[str, Any], digest: str) -> bytes:
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


def _name_points(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:  # noqa: ANN401 - matplotlib has no types
    """Write the names beside the points, the next free line up where rows are close, with a line to the point then."""
    taken: list[tuple[float, float, float]] = []  # left, right, height of each name, in points of 1/72 inch
    for row in sorted(rows, key=lambda row: (error_of(row), row["speedup"])):
        place = (row["speedup"], error_of(row))
        x, y = axes.transData.transform(place) * 72 / axes.figure.dpi
        left, right, up = x + _BESIDE, x + _BESIDE + len(row["name"]) * _LETTER, 4.0
        while any(left < other[1] and right > other[0] and abs(y + up - other[2]) < _LINE for other in taken):
            up += _LINE
        taken.append((left, right, y + up))
        line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.5, "relpos": (0, 0)} if up > _LINE else None
        axes.annotate(row["name"], place, xytext=(_BESIDE, up), textcoords="offset points", fontsize=8, arrowprops=line)


def error_of(row: Mapping[str, Any]) -> float:
    """Return the ordinate of a row; what is broken stands at 1."""
    value = row["fidelity"]["lare"]["worst_relative_l2"]
    return 1.0 if value is None else max(float(value), _FLOOR)
