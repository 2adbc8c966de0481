"""How close to the reference: parity reports of bundles, and engines on photographs, as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.common.markdown import NONE, error, scientific, table
from benchmarks.render.throughput import versions_of

Report = Mapping[str, Any]


def parity_components(report: Report) -> str:
    """Each output of each component on the reference's own inputs, with what is allowed and why."""
    lines = [
        [f"`{name}`", f"`{output}`", *_figures(entry), component["reason"]]
        for name, component in sorted(report["components"].items())
        for output, entry in sorted(component["outputs"].items())
    ]
    header = ["component", "output", "measured", "allowed", "largest difference", "why that much is allowed"]
    return f"{table(header, lines)}\n\n{_caption(report)}"


def parity_chain(report: Report) -> str:
    """The chain from pixels to probability."""
    chain = report["end_to_end"]
    lines = [[name, *_figures(chain[name]), chain[name]["reason"]] for name in ("lare", "logits")]
    gap = chain["probability"]
    lines.append(
        ["probability", scientific(gap["max_difference"]), scientific(gap["tolerance"]), "the same", gap["reason"]]
    )
    header = ["result", "measured", "allowed", "largest difference", "why that much is allowed"]
    return f"{table(header, lines)}\n\nVerdicts that flipped: {chain['verdict_flips']}. {_caption(report)}"


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


def fidelity_table(report: Report) -> str:
    """Every engine on many photographs, component by component."""
    limits = report["limits"]
    header = ["engine", "`vae_encoder`: latent", "`unet_step`: noise prediction", "LaRE"]
    header += ["`clip_backbone`: embedding", "`egre`: logit / σ", "other verdicts", "within"]
    lines = [["allowed", *(scientific(limits[n]) for n in ("latent", "noise_prediction", "lare")), NONE]]
    lines[0] += [scientific(limits["logit"]), "0", ""]
    for name, entry in report["engines"].items():
        if "reason" in entry:
            lines.append([f"`{name}`", *[NONE] * 6, entry["reason"]])
            continue
        fidelity = entry["fidelity"]
        names = ("latent", "noise_prediction", "lare", "embedding")
        values = [error(fidelity.get(n), "worst_relative_l2") for n in names]
        logit = error(fidelity["logit"], "over_standard_deviation")
        flips = NONE if entry.get("flips") is None else str(entry["flips"])
        lines.append([f"`{name}`", *values, logit, flips, "yes" if entry["passed"] else "**no**"])
    machine, spread = report["machine"], scientific(report["logit_standard_deviation"])
    note = (
        f"{report['model']}, {len(report['images'])} pictures, the worst of each; relative L2, and for the logit "
        f"the largest difference in units of its standard deviation over them, {spread}. {machine['cpu']}, "
        f"{machine['threads']} threads; {versions_of(report)}."
    )
    return table(header, lines) + "\n\n" + note


PARITY: dict[str, Callable[[Report], str]] = {"parity-components": parity_components, "parity-chain": parity_chain}
FIDELITY: dict[str, Callable[[Report], str]] = {"fidelity-photographs": fidelity_table}
FIDELITY_MINI: dict[str, Callable[[Report], str]] = {"fidelity-mini": fidelity_table}
