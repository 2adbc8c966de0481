"""The miniature's reports as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from benchmarks.common.markdown import NONE, interval, number_table

Report = Mapping[str, Any]
_GENERATORS = ("sdedit30", "sdedit50", "sdedit70", "noise")
# Paper, Tables 2 and 3: ACC / AP over eight test sets, trained on SD 1.5 (second-hand, notes on published numbers).
_PAPER = {
    "image": "73.1 / 92.3",
    "lare": "66.2 / 68.3",
    "concat": "76.8 / 93.5",
    "esr": "81.7 / 97.6",
    "ecr": "78.8 / 94.7",
    "egre": "84.5 / 99.5",
    "egre-v7": NONE,
}


def data_table(report: Report) -> str:
    """Photographs and pictures of every split."""
    rows = [
        [name, str(part["photographs"]), str(part["groups"]), str(part["pictures"])]
        for name, part in report["data"]["splits"].items()
    ]
    return number_table(["split", "photographs", "groups", "pictures cut from them"], rows)


def timestep_table(report: Report) -> str:
    """Mean LaRE, and how it tells generated pictures from real ones, by timestep."""
    rows = []
    for timestep, sets in report["timesteps"].items():
        cells = [timestep, _mean(sets["real"]["mean"]), _mean(sets["roundtrip"]["mean"])]
        cells += [
            f"{_mean(sets[name]['mean'])}; d {sets[name]['d_real']:+.2f}; {sets[name]['auc_real']['value']:.3f} / "
            f"{sets[name]['auc_roundtrip']['value']:.3f}"
            for name in _GENERATORS
        ]
        rows.append([*cells, _mean(sets["memorised"]["mean"])])
    return number_table(["t", "real", "round trip", *_GENERATORS, "real, trained on"], rows)


def re_encoding_table(report: Report) -> str:
    """What JPEG on both classes does to mean LaRE."""
    rows = []
    for name, row in report["re_encoding"].items():
        areas = [NONE, NONE] if name == "roundtrip" else [interval(row[f"auc_{kind}"]) for kind in ("plain", "jpeg")]
        rows.append([name, f"{row['plain']:.4f}", _mean(row["jpeg"]), *areas])
    header = ["pictures", "mean LaRE", "after JPEG", "AUC of −LaRE against round trips", "both after JPEG"]
    return number_table(header, rows)


def differences_table(report: Report) -> str:
    """Differences of areas on the same pictures."""
    rows = [[name, _signed(row["sdedit50"]), _signed(row["unseen"])] for name, row in report["differences"].items()]
    return number_table(["AUC of the first − AUC of the second", "seen", "unseen"], rows)


def complexity_table(report: Report) -> str:
    """Areas of mean LaRE, of complexity alone, and of LaRE without it."""
    names = {"energy": "latent gradient energy alone", "lare": "mean LaRE", "normalised": "complexity-normalised LaRE"}
    rows = [
        [
            {"real": "real", "roundtrip": "round trip"}[reference],
            text,
            *(interval(report["complexity"][reference][kind][g]) for g in _GENERATORS),
        ]
        for reference in ("roundtrip", "real")
        for kind, text in names.items()
    ]
    return number_table(["against", "score", *_GENERATORS], rows)


def earned_table(report: Report) -> str:
    """What normalised LaRE adds to heads."""
    rows = [
        [head.replace("/", ": "), _signed(row["seen"]), _signed(row["unseen"])]
        for head, row in report["normalised_beside_heads"].items()
        if isinstance(row, Mapping)
    ]
    return number_table(["trunk: head", "AUC gained, seen", "AUC gained, unseen"], rows)


def ablation_table(report: Report, reference: str = "roundtrip") -> str:
    """Generated pictures against round trips, the fair task, or against raw photographs; by trunk and input."""
    rows = []
    for key, row in report["ablation"].items():
        trunk, variant = key.split("/")
        judged = row[reference]
        shown = NONE if variant == "lare" else trunk
        rows.append(
            [
                variant,
                shown,
                interval(judged["sdedit50"]["auc"]),
                interval(judged["unseen"]["auc"]),
                *(f"{judged[g]['auc']['value']:.3f}" for g in _GENERATORS if g != "sdedit50"),
                f"{100 * judged['sdedit50']['accuracy']['value']:.1f} %",
                _PAPER[variant],
            ]
        )
    rows.sort(key=lambda r: (r[1] != NONE, r[1]))
    header = ["input", "trunk", "AUC, seen (sdedit50)", "AUC, unseen", "sdedit30", "sdedit70", "noise"]
    return number_table([*header, "ACC at 0.5, seen", "paper, ACC / AP"], rows)


def why_table(report: Report) -> str:
    """One thing changed at a time."""
    if report["why"] is None:
        return _missing()
    rows = [
        [change, *(f"{row[v]['seen']['value']:.3f} / {row[v]['unseen']['value']:.3f}" for v in row)]
        for change, row in report["why"].items()
    ]
    return number_table(["changed", *next(iter(report["why"].values()))], rows)


def network_table(report: Report, part: str, name: str) -> str:
    """A network on maps, by number and kind of draws or by timestep."""
    if report[part] is None:
        return _missing()
    rows = [
        [
            key,
            *(interval(row[g]["network"]) for g in _GENERATORS),
            " / ".join(f"{row[g]['mean']['value']:.3f}" for g in _GENERATORS),
        ]
        for key, row in report[part].items()
    ]
    return number_table([name, *(f"network, {g}" for g in _GENERATORS), "mean LaRE, the same four"], rows)


def cost_table(report: Report) -> str:
    """LaRE beside DIRE."""
    cost = report["cost"]
    if cost is None:
        return _missing(" --cost-rounds 5")
    dire, lare = cost["dire"], cost["lare"]
    rows = [
        ["DIRE", f"{dire['steps']} calls of an ADM at 256²", f"{dire['seconds']:.0f} s", f"{dire['tflop']:.1f}"],
        ["LaRE", "VAE encoder and one UNet call, 4 draws", f"{lare['seconds']:.1f} s", f"{lare['tflop']:.2f}"],
        ["ratio", "paper: 8", f"{cost['ratio_of_seconds']:.0f}", f"{cost['ratio_of_tflop']:.0f}"],
    ]
    return number_table(["feature", "work", f"seconds an image, {cost['threads']} threads", "TFLOP"], rows)


def _missing(options: str = "") -> str:
    return f"*Not measured yet: `python -m benchmarks.miniature{options}`.*"


def _mean(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.4f} ± {(estimate['high'] - estimate['low']) / 2:.4f}"


def _signed(estimate: Mapping[str, float]) -> str:
    return interval(estimate, signed=True)


_PARTS = {
    "autoencoder": "autoencoder",
    "unet": "UNet",
    "timesteps": "LaRE against the timestep",
    "complexity": "complexity",
    "re_encoding": "JPEG",
    "ablation": "ablation",
    "differences": "differences",
    "normalised_beside_heads": "normalised LaRE beside heads",
    "why": "one thing changed at a time",
    "noise": "draws and noise",
    "timesteps_trained": "timestep, with a network",
}


def again_table(report: Report) -> str:
    """How a report of a second run from nothing stands to the first; parts by name, with figures and numbers."""
    rows = [
        [
            _PARTS[name],
            f"{part['inside']} of {part['figures']}" if part["figures"] else NONE,
            f"{part['same']} of {part['numbers']}",
        ]
        for name, part in report["compared"]["parts"].items()
    ]
    return number_table(["part", "figures within the first run's interval", "numbers equal to the last digit"], rows)


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


AGAIN: dict[str, Callable[[Report], str]] = {"miniature-again": again_table}
MINIATURE: dict[str, Callable[[Report], str]] = {
    "miniature-data": data_table,
    "miniature-timesteps": timestep_table,
    "miniature-complexity": complexity_table,
    "miniature-earned": earned_table,
    "miniature-ablation": ablation_table,
    "miniature-raw": partial(ablation_table, reference="real"),
    "miniature-differences": differences_table,
    "miniature-re-encoding": re_encoding_table,
    "miniature-why": why_table,
    "miniature-noise": partial(network_table, part="noise", name="draws"),
    "miniature-timesteps-trained": partial(network_table, part="timesteps_trained", name="t"),
    "miniature-cost": cost_table,
}
DEFAULT: dict[str, Callable[[Report], str]] = {
    "default-auc": auc_table,
    "default-calibration": calibration_table,
    "default-elsewhere": elsewhere_table,
}
