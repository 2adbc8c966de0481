"""Parity reports of bundles as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.render.markdown import scientific
from benchmarks.render.markdown import table as markdown_table

Report = Mapping[str, Any]


def parity_components(report: Report) -> str:
    """Each output of each component on the reference's own inputs, with what is allowed and why."""
    lines = [
        [f"`{name}`", f"`{output}`", *_figures(entry), component["reason"]]
        for name, component in sorted(report["components"].items())
        for output, entry in sorted(component["outputs"].items())
    ]
    header = ["component", "output", "measured", "allowed", "largest difference", "why that much is allowed"]
    return f"{markdown_table(header, lines)}\n\n{_caption(report)}"


def parity_chain(report: Report) -> str:
    """The chain from pixels to probability."""
    chain = report["end_to_end"]
    lines = [[name, *_figures(chain[name]), chain[name]["reason"]] for name in ("lare", "logits")]
    gap = chain["probability"]
    lines.append(
        ["probability", scientific(gap["max_difference"]), scientific(gap["tolerance"]), "the same", gap["reason"]]
    )
    header = ["result", "measured", "allowed", "largest difference", "why that much is allowed"]
    return f"{markdown_table(header, lines)}\n\nVerdicts that flipped: {chain['verdict_flips']}. {_caption(report)}"


def _figures(entry: Report) -> list[str]:
    return [scientific(entry[name]) for name in ("worst_relative_l2", "tolerance", "max_abs")]


def _caption(report: Report) -> str:
    machine, engine = report["machine"], report["engine"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(report["reference"].items()))
    return (
        f"{report['bundle']['name']}, {len(report['images'])} photographs, {machine['cpu']}, {machine['threads']} "
        f"threads; {engine['name']} {engine['version']} against {versions}. Measured is the relative L2 of the worst "
        "image, of the probability the largest difference."
    )


PARITY: dict[str, Callable[[Report], str]] = {"parity-components": parity_components, "parity-chain": parity_chain}
