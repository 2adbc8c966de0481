"""Reports of the throughput benchmark's ``--profile`` as Markdown tables.

What a report does not have, because an engine could not be used where it was measured, is a dash or left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.common.markdown import NONE, gigabytes, milliseconds, percent, table
from benchmarks.throughput.layers import in_order

Report = Mapping[str, Any]


def profile_components_table(report: Report) -> str:
    """Profile: time of each component."""
    parts = report["parts"]
    medians = {
        engine: {name: statistics.median(times) for name, times in part["components"].items()}
        for engine, part in parts.items()
        if "components" in part
    }
    fewer = parts.get("onnxruntime", {}).get("winograd_flop", {})
    least = {name: flop - 0.75 * fewer[name] for name, flop in report["flop"].items() if name in fewer}
    lines = []
    for name, flop in report["flop"].items():
        cells = [f"{milliseconds(times[name] * 1e3)} ms" if name in times else NONE for times in medians.values()]
        lines.append([f"`{name}`", _giga(flop), _giga(least[name]) if name in least else NONE, *cells])
    whole = sum(least.values()) if least.keys() == report["flop"].keys() else None
    totals = [
        f"{milliseconds(sum(times.values()) * 1e3)} ms" if times.keys() >= report["flop"].keys() else NONE
        for times in medians.values()
    ]
    lines.append(["all", _giga(sum(report["flop"].values())), NONE if whole is None else _giga(whole), *totals])
    result, peak = table(["component", "GFLOP", "with F(4×4)", *medians], lines), report.get("peak_gflops")
    if whole is None or not peak:
        return result
    return (
        f"{result}\n\nThe floor: with F(4×4) in every 3×3 convolution and transforms that cost nothing, "
        f"{whole / 1e9:.0f} GFLOP would take {whole / peak / 1e6:.0f} ms at the {peak:.0f} GFLOP/s of the best matrix "
        "product."
    )


def _giga(flop: float) -> str:
    return f"{flop / 1e9:.2f}"


def blocks_table(report: Report) -> str:
    """Profile: time of each block of the UNet, and of the operators behind it."""
    parts = {name: part for name, part in report["parts"].items() if "blocks" in part}
    eager = {name: statistics.median(times) for name, times in parts.pop("eager", {}).get("blocks", {}).items()}
    sides: list[Mapping[str, float]] = [eager, *(part["blocks"] for part in parts.values())]
    lines = [
        [f"`{block}`", *(milliseconds(side[block] * 1e3) if block in side else NONE for side in sides)]
        for block in in_order({block for side in sides for block in side})
    ]
    tables = [table(["block of the UNet", "eager, ms", *(f"{name}, ms" for name in parts)], lines)]
    if parts:
        shares = ", ".join(f"{percent(part['named_share'])} of {name}'s" for name, part in parts.items())
        tables.append(f"Nodes that still carry a layer's name take {shares} time.")
        tables.append(_operators(parts))
    return "\n\n".join(tables)


def _operators(parts: Mapping[str, Report]) -> str:
    longest: dict[str, float] = {}
    for part in parts.values():
        for operator, seconds in part["operators"].items():
            longest[operator] = max(longest.get(operator, 0.0), seconds)
    total = {name: sum(part["operators"].values()) for name, part in parts.items()}
    cells = []
    for operator in sorted(longest, key=lambda name: -longest[name])[:14]:
        line = [f"`{operator}`"]
        for name, part in parts.items():
            seconds = part["operators"].get(operator, 0.0)
            line += [milliseconds(seconds * 1e3) if seconds else NONE, percent(seconds / total[name])]
        cells.append(line)
    return table(["operator", *(cell for name in parts for cell in (f"{name}, ms", "share"))], cells)


def sizes_table(report: Report) -> str:
    """Profile: cost against draws and images."""
    if not report["sizes"]:
        return "*Not measured yet: `python -m benchmarks.throughput --model-synthetic sd15 --profile`.*"
    points: dict[tuple[int, int], dict[str, Report]] = {}
    for size in report["sizes"]:
        points.setdefault((size["ensemble"], size["batch"]), {})[size["engine"]] = size
    lines = []
    for (ensemble, batch), engines in sorted(points.items(), key=lambda item: (item[0][1], item[0][0])):
        cells = [str(ensemble), str(batch)]
        for engine in ("eager", "onnxruntime"):
            if engine not in engines:
                cells += [NONE, NONE]
                continue
            seconds = statistics.median(engines[engine]["seconds"]) / batch
            cells += [milliseconds(seconds * 1e3), gigabytes(engines[engine]["peak_bytes"])]
        lines.append(cells)
    header = ["draws", "images", "eager, ms an image", "peak memory", "onnxruntime, ms an image", "peak memory"]
    return table(header, lines)


def layers_table(report: Report) -> str:
    """Profile: every shape of convolution by itself, directly and with both tiles, and what the engine takes."""
    lines = []
    for entry in report["parts"].get("winograd", {}).get("layers", ()):
        layer, chosen = entry["layer"], entry["chosen"]
        best = {
            tile: min((c["seconds"] for c in entry["choices"] if c["tile"] == tile), default=None) for tile in (2, 4)
        }
        taken = "direct" if chosen is None else f"F({chosen['tile']}×{chosen['tile']})"
        shape = f"{layer['inputs']} → {layer['outputs']} at {layer['height']}×{layer['width']}"
        times = [entry["direct"], best[2], best[4]]
        cells = [NONE if seconds is None else milliseconds(seconds * 1e3) for seconds in times]
        lines.append([f"{entry['component']}: {shape}", str(entry["count"]), *cells, taken])
    return table(["3×3 convolution", "layers", "direct, ms", "F(2×2), ms", "F(4×4), ms", "taken"], lines)


PROFILE: dict[str, Callable[[Report], str]] = {
    "profile-layers": layers_table,
    "profile-components": profile_components_table,
    "profile-blocks": blocks_table,
    "profile-sizes": sizes_table,
}
