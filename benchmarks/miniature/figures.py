"""Pictures of the miniature's report."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.miniature.ablation import REAL
from benchmarks.miniature.protocol import GENERATORS, VARIANTS
from benchmarks.miniature.stages import Work
from lare2_rt.host.atomic import write_bytes

_COLOURS = {"real": "#1f5f8b", REAL: "#7aa6c2", "sdedit30": "#e0a030", "sdedit50": "#c1440e", "sdedit70": "#7a1f0e"}
_COLUMNS = 12


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the figures of a report; returns their paths."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    written = []
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": report["key"], "font.size": 9}):
        for name, plot in (("miniature-timesteps", _timesteps), ("miniature-ablation", _ablation)):
            figure = Figure(figsize=(7.2, 3.8), layout="constrained")
            plot(figure.subplots(), report)
            stream = io.BytesIO()
            figure.savefig(stream, format="svg", metadata={"Date": None})
            write_bytes(folder / f"{name}.svg", stream.getvalue())
            written.append(folder / f"{name}.svg")
    return written


def _timesteps(axes: Any, report: Mapping[str, Any]) -> None:  # noqa: ANN401 - matplotlib is untyped
    steps = [int(t) for t in report["timesteps"]]
    for name, colour in {**_COLOURS, "noise": "#777777"}.items():
        values = [report["timesteps"][str(t)][name]["mean"]["value"] for t in steps]
        axes.plot(steps, values, marker="o", markersize=3, color=colour, label=name)
    axes.set_xlabel("timestep")
    axes.set_ylabel("mean LaRE")
    axes.grid(alpha=0.3)
    axes.legend()


def _ablation(axes: Any, report: Mapping[str, Any]) -> None:  # noqa: ANN401
    rows = report["ablation"]
    places = np.arange(len(VARIANTS))
    for offset, (trunk, colour) in enumerate((("scratch", "#7aa6c2"), ("pretrained", "#1f5f8b"))):
        for place, variant in zip(places, VARIANTS, strict=True):
            row = rows.get(f"{trunk}/{variant}")
            if row is None:
                continue
            for kind, marker in (("sdedit50", "o"), ("unseen", "^")):
                area = row[REAL][kind]["auc"]
                x = place + (offset - 0.5) * 0.3 + (0.08 if kind == "unseen" else -0.08)
                label = f"{trunk}, {'unseen generators' if kind == 'unseen' else 'seen'}" if place == 0 else None
                error = [[area["value"] - area["low"]], [area["high"] - area["value"]]]
                axes.errorbar(x, area["value"], error, fmt=marker, color=colour, label=label, capsize=2, markersize=4)
    axes.axhline(0.5, color="#999999", linewidth=0.8)
    axes.set_xticks(places, VARIANTS)
    axes.set_ylabel("AUC against round trips")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=7)


def contact_sheet(work: Work, folder: Path) -> Path:
    """Write rows of real pictures, their round trips and generated ones; picture n of the first rows is one crop."""
    sets = work.sets("test")
    chosen = np.linspace(0, len(sets.photo) - 1, _COLUMNS).astype(int)
    names = ("real", REAL, *GENERATORS)
    rows = [np.concatenate(list(sets.pictures[name][chosen]), axis=1) for name in names]
    stream = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(stream, "JPEG", quality=88)
    path = folder / "miniature-pictures.jpg"
    write_bytes(path, stream.getvalue())
    return path
