"""What the embedded bundle is worth, as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.render.markdown import interval, number_table

Report = Mapping[str, Any]
_LISTS = {
    "as calibrated": "photographs and round trips against `sdedit50`",
    "all": "photographs and round trips against all four generators",
    "photographs": "photographs alone against all four",
    "round trips": "round trips alone against all four",
}
_QUALITY = {
    "ece": "ECE, 15 bins",
    "false_positive_rate": "real called generated",
    "miss_rate": "generated called real",
    "unsure_share": "unsure",
    "decided_accuracy": "ACC of verdicts",
}


def auc_table(report: Report) -> str:
    """AUC of the default bundle on what it has not seen."""
    rows = [[text, *_areas(report["held_out"][name])] for name, text in _LISTS.items()]
    if report["elsewhere"] is not None:
        rows.append(["real generators of other places (see below)", *_areas(report["elsewhere"])])
    return number_table(["test pictures", "real", "generated", "groups", "AUC", "ACC at 0.5"], rows)


def calibration_table(report: Report) -> str:
    """What calibration changed, on the held-out photographs, and what it gives elsewhere."""
    held, everything = report["held_out"]["as calibrated"], report["held_out"]["all"]["after"]
    # With all generators the classes have other shares than calibration saw, so an ECE would be of those.
    fitting = {**everything, "metrics": {k: v for k, v in everything["metrics"].items() if k != "ece"}}
    columns = [held["before"], held["after"], fitting]
    columns += [report["elsewhere"]["after"]] if report["elsewhere"] else []
    rows = [[text, *(interval(column["metrics"].get(key)) for column in columns)] for key, text in _QUALITY.items()]
    at_half = [_complement(column["metrics"]["real_accuracy_at_half"]) for column in columns]
    rows.insert(1, ["real called generated, were the threshold 0.5", *map(interval, at_half)])
    header = ["", "held out, `sdedit50`: before", "after", "held out, all four: after", "elsewhere: after"]
    return number_table(header[: len(columns) + 1], rows)


def elsewhere_table(report: Report) -> str:
    """AUC by generator of the set from elsewhere."""
    if report["elsewhere"] is None:
        return "*Not measured: `python -m benchmarks.miniature.default --also LIST`.*"
    counts = report["elsewhere"]["data"]["generators"]
    rows = [
        [name, str(counts[name]), interval(area)]
        for name, area in report["elsewhere"]["after"]["auc_by_generator"].items()
    ]
    return number_table(["generator", "pictures", "AUC"], rows)


def _areas(judged: Mapping[str, Any]) -> list[str]:
    data, metrics = judged["data"], judged["after"]["metrics"]
    counts = [str(data[name]) for name in ("real", "generated", "groups")]
    return [*counts, interval(metrics["auc"]), interval(metrics["accuracy_at_half"])]


def _complement(value: Mapping[str, float]) -> Mapping[str, float]:
    return {"value": 1 - value["value"], "low": 1 - value["high"], "high": 1 - value["low"]}


DEFAULT: dict[str, Callable[[Report], str]] = {
    "default-auc": auc_table,
    "default-calibration": calibration_table,
    "default-elsewhere": elsewhere_table,
}
