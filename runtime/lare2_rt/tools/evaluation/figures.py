"""Figures of an evaluation, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...host.atomic import write_bytes
from ...host.text import printable
from .run import Evaluation, ModelResult
from .scores import rank
from .summary import Summary

MISSING = "Figures need matplotlib, which is not installed: `pip install matplotlib` and run the command again."
_INK, _GRID = "#1f2933", "#d5dbe1"
_COLOURS = ("#0b6bcb", "#d1495b", "#2a9d8f", "#e9a23b", "#6d4fc4", "#52606d")  # told apart in grey and colour-blind


def available() -> bool:
    """Whether matplotlib can be imported."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(evaluation: Evaluation, folder: Path) -> list[str]:
    """Write ``roc.png``, one reliability diagram and one bar chart per model; returns the names. Raises OutputError."""
    pictures = {"roc.png": _roc(evaluation)}
    for number, model in enumerate(evaluation.models, start=1):
        name = re.sub(r"[^A-Za-z0-9]+", "-", model.provenance.bundle_name)[:40]
        pictures[f"reliability-{number}-{name}.png"] = _reliability(model)
        pictures[f"generators-{number}-{name}.png"] = _generators(model)
        if len(model.conditions) > 1:
            overall = [(condition.name, condition.overall) for condition in model.conditions]
            pictures[f"corruptions-{number}-{name}.png"] = _bars(model, overall, "corrupted images")
    for name, content in pictures.items():
        write_bytes(folder / name, content)
    return list(pictures)


def _axes(width: float, height: float) -> tuple[Any, Any]:
    # Without pyplot there is no global state and no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _png(figure: Any) -> bytes:  # noqa: ANN401 - matplotlib is not a dependency
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # the same evaluation, the same bytes
    return buffer.getvalue()


def _roc(evaluation: Evaluation) -> bytes:
    figure, axes = _axes(5.2, 4.6)
    axes.plot([0, 1], [0, 1], color=_GRID, linewidth=1)
    for model, colour in zip(evaluation.models, _COLOURS * len(evaluation.models), strict=False):
        sample = model.clean.sample
        sample = sample.only(~np.isnan(sample.probabilities))
        curve = rank(sample.generated, sample.probabilities).curve()
        auc = model.clean.overall.metrics["auc"]
        label = f"{_plain(model.provenance.bundle_name)} {model.provenance.bundle_id[:8]}: AUC {auc.value:.3f}"
        x, y = curve.false_positives / curve.negatives, curve.true_positives / curve.positives
        axes.plot(x, y, color=colour, linewidth=1.8, label=label)
    axes.set(xlabel="real images called generated", ylabel="generated images found", xlim=(-0.01, 1), ylim=(0, 1.01))
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    return _png(figure)


def _reliability(model: ModelResult) -> bytes:
    figure, axes = _axes(4.8, 4.6)
    axes.plot([0, 1], [0, 1], color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    filled = [b for b in model.clean.reliability if b.generated is not None]
    style = {"align": "edge", "color": _COLOURS[0], "edgecolor": "white", "alpha": 0.85}
    axes.bar([b.low for b in filled], [b.generated for b in filled], width=[b.high - b.low for b in filled], **style)
    for b in filled:
        x, y = (b.low + b.high) / 2, (b.generated or 0) + 0.015
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # the diagonal would cross the numbers out
        axes.text(x, y, str(b.images), ha="center", fontsize=7, color=_INK, bbox=paper)
    ece = model.clean.overall.metrics["ece"].value
    title = f"{_plain(model.provenance.bundle_name)}: ECE {ece:.3f} (numbers: images)"
    axes.set(xlabel="probability of being generated", ylabel="share generated", xlim=(0, 1), ylim=(0, 1.08))
    axes.set_title(title, fontsize=9, color=_INK, loc="left")
    return _png(figure)


def _bars(model: ModelResult, rows: Sequence[tuple[str, Summary]], title: str) -> bytes:
    """A bar of the AUC for each name and summary."""
    figure, axes = _axes(6.4, 0.9 + 0.34 * len(rows))
    places = np.arange(len(rows))[::-1]
    intervals = [summary.metrics["auc"] for _, summary in rows]
    axes.barh(places, np.array([auc.value for auc in intervals]), height=0.62, color=_COLOURS[0])
    for place, auc in zip(places, intervals, strict=True):
        if auc.low is not None and auc.high is not None:
            axes.plot([auc.low, auc.high], [place, place], color=_INK, linewidth=1.4)
        axes.text(1.015, place, f"{auc.value:.3f}", va="center", fontsize=8, color=_INK)
    axes.axvline(0.5, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_yticks(places, [name for name, _ in rows], fontsize=8)
    axes.set(xlim=(0, 1), xlabel="AUC; dashed: chance")
    axes.set_title(f"{_plain(model.provenance.bundle_name)}: {title}", fontsize=9, color=_INK, loc="left")
    axes.grid(visible=False, axis="y")
    return _png(figure)


def _generators(model: ModelResult) -> bytes:
    summaries = {"all": model.clean.overall, **model.clean.generators}
    rows = [(f"{_plain(name)} ({summary.generated})", summary) for name, summary in summaries.items()]
    return _bars(model, rows, "per generator (generated images)")


def _plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    shown = printable(text)
    return (shown if len(shown) <= 40 else f"{shown[:39]}…").replace("$", r"\$")
