"""An evaluation as JSON for programs and Markdown for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import PIL

from ..._version import __version__
from ...host.text import printable
from .corruptions import VERSION
from .run import Condition, Evaluation, ModelResult
from .scores import ECE_BINS
from .summary import LEVEL, METRICS, Interval, Summary

SCHEMA = "lare2-rt/evaluation/1"
FOOT = """\
- ACC at 0.5, real ACC, generated ACC: the threshold is 0.5, whatever the bundle's own. Balanced ACC is the mean of the
  real and the generated one, so it does not depend on how many of each there are.
- ACC at the calibrated threshold: of all images, called generated from the bundle's own `generated from` on; those that
  it is unsure about count as not called generated.
- ACC of verdicts, unsure, real called generated, generated called real: under the bundle's own thresholds, where it has
  any; ACC of verdicts leaves out the images that it is unsure about.
- Oracle ACC is the best of all thresholds, **chosen on these very images**: no user gets it. Papers have
  printed it as ACC.
- TPR at 1 % FPR: share of generated images found while at most 1 % of the real ones are called generated.
- ECE: 15 equally wide bins of the probability. All but it and the Brier score are better when higher.
- Per generator: its images against all real ones."""


def as_dict(evaluation: Evaluation) -> dict[str, Any]:
    """Return the report as plain types, schema ``lare2-rt/evaluation/1``; the same evaluation gives the same report."""
    selection, options = evaluation.selection, evaluation.options
    return {
        "schema": SCHEMA,
        "data": {
            "index_sha256": selection.digest,
            "layout": selection.layout,
            "split": selection.split,
            "real": int((~selection.generated).sum()),
            "generated": int(selection.generated.sum()),
            "generators": selection.generators,
            "groups": len(np.unique(selection.groups)),
            "unreadable": selection.unreadable,
            "duplicates": selection.duplicates,
        },
        "settings": {
            "ece_bins": ECE_BINS,
            "corruption_version": VERSION,
            "bootstrap": {"resamples": options.resamples, "seed": options.seed, "level": LEVEL, "by": "source"},
        },
        "versions": {"lare2-rt": __version__, "numpy": np.__version__, "pillow": PIL.__version__},
        "models": [_model(model) for model in evaluation.models],
        "matrix": matrix(evaluation),
    }


def _model(model: ModelResult) -> dict[str, Any]:
    facts = model.provenance
    same = {name: getattr(facts, name) for name in ("device", "precision", "batch", "threads", "build_key")}
    return {
        "bundle": {"name": facts.bundle_name, "id": facts.bundle_id},
        "engine": {"name": facts.engine, "version": facts.engine_version, **same},
        "decision": asdict(model.rule),
        "conditions": [_condition(condition) for condition in model.conditions],
    }


def _condition(condition: Condition) -> dict[str, Any]:
    return {
        "name": condition.name,
        "describe": condition.describe,
        "overall": asdict(condition.overall),
        "generators": {name: asdict(summary) for name, summary in condition.generators.items()},
        "reliability": [b._asdict() for b in condition.reliability],
        "stability": None if condition.stability is None else asdict(condition.stability),
        "failures": [asdict(failure) for failure in condition.failures],
    }


def matrix(evaluation: Evaluation) -> dict[str, Any] | None:
    """Return the cross-generator matrix (a row per model, a column per generator); None for a single model.

    Cells are balanced accuracies at 0.5, which is GenImage's protocol (as many real as generated images), and AUC.
    """
    if len(evaluation.models) < 2:
        return None
    columns = list(evaluation.selection.generators)
    table: dict[str, Any] = {"rows": [_label(model) for model in evaluation.models], "columns": columns}
    for name in ("balanced_accuracy_at_half", "auc"):
        table[name] = [
            [
                model.clean.generators[column].metrics[name].value if column in model.clean.generators else None
                for column in columns
            ]
            for model in evaluation.models
        ]
    return table


def _label(model: ModelResult) -> str:
    return f"{model.provenance.bundle_name} ({model.provenance.bundle_id[:12]})"


def markdown(evaluation: Evaluation, figures: list[str] | str) -> str:
    """Return the report as Markdown; ``figures`` are names in ``figures/``, or a sentence on why there are none."""
    selection, options = evaluation.selection, evaluation.options
    data = as_dict(evaluation)["data"]
    about = (
        f"{data['real']} real and {data['generated']} generated images of {len(selection.generators)} generators in "
        f"{data['groups']} groups, split `{selection.split}`, index sha256 `{selection.digest[:12] or 'none'}`. "
        f"Left out: {selection.unreadable} unreadable, {selection.duplicates} duplicates."
    )
    brackets = (
        f"In brackets: {LEVEL:.0%} bootstrap intervals over groups of related images ({options.resamples} resamples, "
        f"seed {options.seed})."
    )
    lines = ["# Evaluation", "", about, "", brackets, ""]
    for model in evaluation.models:
        lines += _model_lines(model)
    table = matrix(evaluation)
    if table is not None:
        lines += _matrix_lines(table)
    if isinstance(figures, str):
        lines += [figures, ""]
    else:
        lines += [f"![{name.removesuffix('.png').replace('-', ' ')}](figures/{name})" for name in figures] + [""]
    return "\n".join([*lines, "## What the words mean", "", FOOT, ""])


def _model_lines(model: ModelResult) -> list[str]:
    facts, rule, clean = model.provenance, model.rule, model.clean
    thresholds = f"real below {rule.real_below}, generated from {rule.generated_from}"
    engine = ", ".join(map(_cell, (f"{facts.engine} {facts.engine_version}", facts.device, facts.precision)))
    lines = [
        f"## {_cell(_label(model))}",
        "",
        f"{engine}; {rule.calibration}, {thresholds if rule.decides else 'no thresholds'}.",
        "",
        *_rows(["metric", "value"], ([METRICS[name], _shown(value)] for name, value in clean.overall.metrics.items())),
        *_table("generator", [(_cell(name), summary) for name, summary in clean.generators.items()]),
    ]
    damaged = model.conditions[1:]
    if damaged:
        lines += _table("condition", [(f"{_cell(c.name)}, {c.describe}", c.overall) for c in model.conditions])
        shifts = [(c.name, c.stability) for c in damaged if c.stability is not None]
        rows = ([name, f"{stability.mean_shift:.4f}", f"{stability.flips:.1%}"] for name, stability in shifts)
        lines += _rows(["condition", "mean shift of the probability", "changed sides"], rows)
    failures = model.failures
    if failures:
        lines += [f"{len(failures)} scores could not be had:", ""]
        lines += [f"- {name}: {_cell(failure.name)}: {_cell(failure.error)}" for name, failure in failures[:20]]
        lines += ["- … (all are in evaluation.json)"] if len(failures) > 20 else []
        lines.append("")
    return lines


def _rows(headings: list[str], rows: Iterable[list[str]]) -> list[str]:
    """A Markdown table and the empty line after it."""
    shown = [f"| {' | '.join(row)} |" for row in (headings, *rows)]
    return [shown[0], "|" + "---|" * len(headings), *shown[1:], ""]


def _table(first: str, rows: list[tuple[str, Summary]]) -> list[str]:
    """One row per condition or generator, with the metrics that are compared most."""
    if not rows:
        return []
    names = ["auc", "average_precision", "balanced_accuracy_at_half", "generated_accuracy_at_half", "tpr_at_fpr_5"]
    names += ["false_positive_rate", "unsure_share"]
    has = [name for name in names if name in rows[0][1].metrics]
    cells = (
        [words, str(summary.real + summary.generated), *(_shown(summary.metrics.get(key)) for key in has)]
        for words, summary in rows
    )
    return _rows([first, "images", *(METRICS[name] for name in has)], cells)


def _matrix_lines(table: dict[str, Any]) -> list[str]:
    values = table["balanced_accuracy_at_half"]
    means = [_mean(column) for column in zip(*values, strict=True)]
    named = [*zip(map(_cell, table["rows"]), values, strict=True), ("mean over models", means)]
    rows = ([words, *map(_percent, [*row, _mean(row)])] for words, row in named)
    headings = ["model", *map(_cell, table["columns"]), "mean"]
    return ["## Cross-generator matrix", "", "Balanced ACC at 0.5; each row is one model.", "", *_rows(headings, rows)]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _shown(interval: Interval | None) -> str:
    return "–" if interval is None else interval.text(" [{:.4f}, {:.4f}]")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _cell(text: str) -> str:
    """Text that neither a table nor Markdown or HTML takes for its own."""
    escaped = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|~#!" else c for c in escaped)
