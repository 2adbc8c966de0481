"""Reports of the throughput benchmark as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.common.facts import engines_on, libraries_of
from benchmarks.common.markdown import NONE, cell, error, gigabytes, milliseconds, percent, scientific, table
from benchmarks.throughput.rows import ROWS
from lare2_rt.bundle.manifest import COMPONENTS

Report = Mapping[str, Any]
_UNSTEADY, _BUSY = "†", "‡"
# A resting process that uses more of one core than this takes something from the one that is timed.
_IDLE_LIMIT = 0.02


def readme_table(report: Report) -> str:
    """The short table: speed and fidelity in one row."""
    header = ["row", "ms an image", "against eager", "of peak", "peak memory", "LaRE error", "logit error"]
    errors = (
        "Error of LaRE: relative L2 of the worst image against the reference; of the logit: largest difference in "
        "units of its standard deviation over the images."
    )
    parts = (_row_table(report, header, _readme_row), _notes(report), f"{_caption(report)} {errors}")
    return "\n\n".join(filter(None, parts))


def _row_table(report: Report, header: list[str], cells: Callable[[Report], list[str]]) -> str:
    """One line a row: its name and its cells, dashes where it was not measured."""
    blank = [NONE] * (len(header) - 1)
    lines = [[row_name(row), *(cells(row) if row["status"] == "measured" else blank)] for row in report["rows"]]
    return table(header, lines)


def _readme_row(row: Report) -> list[str]:
    logit = row["fidelity"]["logit"]["over_standard_deviation"]
    return [
        milliseconds(row["latency_ms"]["p50"]),
        f"{row['speedup']:.2f} ×",
        percent(row["share_of_peak"]),
        gigabytes(row["memory"]["peak_bytes"]),
        error(row["fidelity"]["lare"], "worst_relative_l2"),
        "broken" if logit is None else f"{scientific(logit)} σ",
    ]


def speed_table(report: Report) -> str:
    """Every latency, and how much of the machine is used."""
    header = [
        "row",
        "p50",
        "p90",
        "p99",
        "eager beside it",
        "ratio (range)",
        "images/s",
        "GFLOP/s",
        "of peak",
        "rounds",
    ]
    parts = (_row_table(report, header, _speed_row), _notes(report), _caption(report))
    return "\n\n".join(filter(None, parts))


def _speed_row(row: Report) -> list[str]:
    (low, high), rounds = row["speedup_range"], row["rounds"]
    return [
        *(milliseconds(row["latency_ms"][name]) for name in ("p50", "p90", "p99")),
        milliseconds(row["reference_latency_ms"]["p50"]),
        f"{row['speedup']:.2f} ({low:.2f} to {high:.2f})",
        f"{row['images_per_second']:.3g}",
        f"{row['gflops']:.0f}",
        percent(row["share_of_peak"]),
        f"{rounds['steady']} + {rounds['strayed']} strayed",
    ]


def fidelity_table(report: Report) -> str:
    """How far each array is from the reference's."""
    header = ["row", "latent", "noise prediction", "LaRE", "LaRE, largest", "CLIP embedding"]
    header += ["logit", "logit / σ", "same bits again"]
    images = len(report["images"])
    sigma = report["logit_standard_deviation"]
    note = (
        f"Relative L2 of the worst of {images} images, unless it says largest (absolute) or logit (absolute). σ of the "
        f"logit over the images: {scientific(sigma)}."
    )
    predictions = [(row.get("fidelity") or {}).get("noise_prediction") or {} for row in report["rows"]]
    apart = [entry["graph_differs_by"] for entry in predictions if "graph_differs_by" in entry]
    if apart:
        note += (
            " The noise prediction of the shipped engines is that of the same graph with one more output, whose LaRE "
            + (f"is within {scientific(max(apart))} of the row's." if max(apart) else "has the row's own bits.")
        )
    return f"{_row_table(report, header, _fidelity_row)}\n\n{note}"


def _fidelity_row(row: Report) -> list[str]:
    fidelity = row["fidelity"]
    return [
        *(error(fidelity[name], "worst_relative_l2") for name in ("latent", "noise_prediction", "lare")),
        error(fidelity["lare"], "max_abs"),
        error(fidelity.get("embedding"), "worst_relative_l2"),
        error(fidelity["logit"], "max_difference"),
        error(fidelity["logit"], "over_standard_deviation"),
        "yes" if row["same_bits_again"] else "no",
    ]


def start_table(report: Report) -> str:
    """Memory, and everything that happens before the second image."""
    header = ["row", "build", "build memory", "imports", "load", "first image", "peak memory", "at rest"]
    return _row_table(report, header, _start_row)


def _start_row(row: Report) -> list[str]:
    builds, memory, load = row["builds"].values(), row["memory"], row["load_s"]
    return [
        f"{sum(build['seconds'] for build in builds):.0f} s" if builds else NONE,
        gigabytes(max(build["peak_bytes"] for build in builds)) if builds else NONE,
        f"{row['import_s']:.1f} s",
        NONE if load is None else f"{load:.1f} s",
        f"{row['first_run_s']:.1f} s",
        gigabytes(memory["peak_bytes"]),
        gigabytes(memory["resident_bytes"]),
    ]


def conditions_table(report: Report) -> str:
    """Machine, versions, peak, and the layouts that were found best."""
    machine, layouts = report["machine"], report["layout_s"]
    lines = [
        ["processor", f"{machine['cpu']} ({machine['architecture']}), {machine['threads']} threads"],
        ["memory", f"{machine['memory_gb']:.0f} GB"],
        ["system", f"{machine['system']}, Python {machine['python']}"],
        ["packages", ", ".join(f"{name} {version}" for name, version in sorted(report["packages"].items()))],
        ["work of one image", f"{sum(report['flop'].values()) / 1e9:.1f} GFLOP ({_shares(report['flop'])})"],
    ]
    for session in report["sessions"]:
        probes = "; ".join(
            f"{when}: numpy {products['numpy']:.0f}, torch {products['torch']:.0f}"
            for when, products in sorted(session["probes"].items(), reverse=True)
        )
        load = session["started"]["load_average"][0]
        lines.append(
            [f"session {session['started']['time']}", f"2048³ product, GFLOP/s, {probes}; load at the start {load}"]
        )
    for name, layout in sorted(report["layout"].items()):
        times = ", ".join(f"{key} {milliseconds(min(values) * 1e3)} ms" for key, values in layouts[name].items())
        lines.append([f"layout of {name} in eager", f"{layout} ({times})"])
    return table(["", ""], lines)


def plot(report: Report) -> str:
    """The picture beside the page, which is drawn from the same report."""
    return "![How fast every row is, against how far its LaRE is from the reference](throughput.svg)"


def row_list(report: Report | None = None) -> str:
    """Every row with what runs and why it is there; needs no measurement."""
    return table(["row", "what runs", "what it stands for"], [[f"`{r.name}`", r.title, r.stands_for] for r in ROWS])


def components_table(report: Report) -> str:
    """Each component beside the reference's, from the same turns."""
    names = [name for name in COMPONENTS if name in report["flop"]]
    lines = []
    for row in report["rows"]:
        parts = row.get("components", {})
        cells = []
        for name in names:
            part = parts.get(name)
            cells.append(f"{milliseconds(part['p50_ms'])} ({part['speedup']:.2f} ×)" if part else NONE)
        lines.append([row_name(row), *cells])
    note = "Milliseconds at the median, and times as fast as the same component of eager in the same turns."
    return table(["row", *(f"`{name}`" for name in names)], lines) + "\n\n" + note


def _shares(flop: Mapping[str, int]) -> str:
    total = sum(flop.values())
    return ", ".join(f"{name} {percent(count / total)}" for name, count in flop.items())


def _unsteady(row: Report) -> bool:
    return bool(row["rounds"]["steady"] < row["rounds"]["wanted"])


def _busy(row: Report) -> bool:
    return bool(max(row["idle_cpu_share"].values()) > _IDLE_LIMIT)


def row_name(row: Report) -> str:
    """A row's name as code: ours in bold, with the marks of the notes below its table."""
    measured = row["status"] == "measured"
    marks = (_UNSTEADY if measured and _unsteady(row) else "") + (_BUSY if measured and _busy(row) else "")
    name = f"`{row['name']}`{f' {marks}' if marks else ''}"
    return f"**{name}**" if row["kind"] == "ours" else name


def _notes(report: Report) -> str:
    """What a reader must know about single rows: reasons for missing figures, and disturbances."""
    lines = []
    for row in report["rows"]:
        if row["status"] != "measured":
            lines.append(f"- `{row['name']}`: {row['status']}: {cell(row['reason'])}")
            continue
        rounds = row["rounds"]
        if _unsteady(row):
            counts = f"{rounds['steady']} of {rounds['wanted']} rounds were steady"
            lines.append(f"- {_UNSTEADY} `{row['name']}`: the machine was disturbed, only {counts}")
        if _busy(row):
            shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in row["idle_cpu_share"].items())
            lines.append(f"- {_BUSY} `{row['name']}`: the resting process used the CPU ({shares} of one core)")
    return "\n".join(lines)


def versions_of(report: Report, *first: str) -> str:
    """Versions of what engines compute with, after those of ``first``."""
    packages = report["packages"]
    names = dict.fromkeys((*first, *libraries_of(engines_on("cpu"))))
    return ", ".join(f"{name} {packages[name]}" for name in names if name in packages)


def _caption(report: Report) -> str:
    machine, method, settings = report["machine"], report["method"], report["settings"]
    versions = versions_of(report, "torch")
    dates = sorted({session["started"]["time"][:10] for session in report["sessions"]})
    when = f", {' to '.join(dict.fromkeys((dates[0], dates[-1])))}" if dates else ""
    peak = report["peak_gflops"]
    return (
        f"{report['model']}, {machine['cpu']}, {machine['threads']} threads{when}; {versions}; "
        f"{method['image_size']} pixels, {method['ensemble']} draws, batch {method['batch']}, float32; "
        f"{settings['rounds']} rounds over {settings['images']} photographs"
        + (f"; best matrix product {peak:.0f} GFLOP/s." if peak else ".")
    )


THROUGHPUT: dict[str, Callable[[Report], str]] = {
    "throughput": readme_table,
    "throughput-speed": speed_table,
    "throughput-fidelity": fidelity_table,
    "throughput-start": start_table,
    "throughput-conditions": conditions_table,
    "throughput-plot": plot,
    "throughput-components": components_table,
}
