"""The pieces of a report as HTML. Everything that comes from outside is escaped here and nowhere else."""

from __future__ import annotations

import base64
import hashlib
import html
from collections import Counter
from dataclasses import dataclass
from importlib import resources
from string import Template

from ...detection import DecisionRule, Provenance
from ...host.text import printable
from .band import decimals
from .thumbnails import Thumbnails


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What judged the images: the rule, the bundle and the engine, and how the bundle describes itself."""

    provenance: Provenance
    rule: DecisionRule
    description: str
    calibrated_on: str | None
    weights: tuple[str, ...]
    policy: str


@dataclass(frozen=True, slots=True)
class Row:
    """One image of the table; a failed one has an ``error`` and no numbers."""

    source: str
    verdict: str
    probability: float | None
    lare: float | None
    error: str | None


def escaped(text: str) -> str:
    """Return text from outside, fit for an element or a quoted attribute; what cannot be seen stands as escapes."""
    return html.escape(printable(text), quote=True)


def template(name: str) -> str:
    """Return a packaged file of the page."""
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def policy_for(style: str, script: str) -> str:
    """Return a content security policy that allows these two texts, pictures inside the page, and nothing else."""
    return "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            f"style-src '{_digest(style)}'",
            f"script-src '{_digest(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def fill(text: str, values: dict[str, str]) -> str:
    """Fill in a template; raises KeyError where a value is missing."""
    return Template(text).substitute(values)


def row_html(number: int, row: Row, thumbnails: Thumbnails | None) -> str:
    """Return a line of the table; ``number`` counts from 1."""
    name = escaped(row.source)
    facts = f'data-name="{name}" data-verdict="{row.verdict}"'
    shown = {"Probability": "", "Mean LaRE": ""}
    if row.probability is not None and row.lare is not None:
        facts += f' data-probability="{row.probability!r}" data-lare="{row.lare!r}"'
        shown = {"Probability": html.escape(decimals(row.probability)), "Mean LaRE": f"{row.lare:.4f}"}
    error = f'<span class="error">{escaped(row.error)}</span>' if row.error is not None else ""
    numbers = "".join(
        f'<td role="cell" class="number" data-label="{label}">{text}</td>' if text else '<td role="cell"></td>'
        for label, text in shown.items()
    )
    return (
        f'<tr role="row" {facts}><td role="cell" data-label="No.">{number}</td>'
        f'<td role="cell" class="name"><bdi>{name}</bdi></td>'
        f'<td role="cell" class="thumbnails">{_pictures(thumbnails, failed=row.error is not None)}</td>'
        f'<td role="cell" class="verdict {row.verdict}">{row.verdict}{error}</td>{numbers}</tr>\n'
    )


def verdict_options(counts: Counter[str]) -> str:
    """Return the choices of the filter: all, and each verdict that occurs."""
    parts = [f'<option value="">all ({counts.total()})</option>']
    parts += [
        f'<option value="{verdict}">{verdict} ({counts[verdict]})</option>'
        for verdict in ("generated", "real", "unsure", "failed")
        if counts[verdict]
    ]
    return "".join(parts)


def notices_html(notices: list[str]) -> str:
    """Return sentences that nobody may overlook."""
    return "\n".join(f'<p class="notice" role="note">{escaped(_sentence(notice))}</p>' for notice in notices)


def rule_words(rule: DecisionRule) -> str:
    """Return in words, as HTML, how a probability became a verdict."""
    if not rule.decides or rule.real_below is None or rule.generated_from is None:
        return "Every verdict is <strong>unsure</strong>, for the reason at the top of this page."
    below, above = html.escape(decimals(rule.real_below)), html.escape(decimals(rule.generated_from))
    origin = "given by the caller" if rule.explicit else "the bundle's own, measured by calibration"
    words = f"<strong>generated</strong> from a probability of {above} on, <strong>real</strong> below {below}"
    between = ", <strong>unsure</strong> between" if rule.real_below < rule.generated_from else ""
    return f"Verdicts: {words}{between}. The thresholds are {origin}."


def facts_html(facts: ModelFacts) -> str:
    """Return the identity of bundle and engine as a list of terms."""
    provenance, rule = facts.provenance, facts.rule
    calibration: str = rule.calibration
    if facts.calibrated_on:
        calibration += f", on {facts.calibrated_on}"
    terms = {
        "Bundle": provenance.bundle_name,
        "Identity (sha256)": provenance.bundle_id,
        "Where it was": provenance.bundle_path,
        "What it is": facts.description,
        "Calibration": calibration,
        "Windows per image": f"{provenance.crops}; the rule was made with {rule.crops}",
        "Preprocessing": facts.policy,
        "Weights": "; ".join(facts.weights),
        "Engine": f"{provenance.engine} {provenance.engine_version}, {provenance.device}, {provenance.precision}",
        "Threads, batch": f"{provenance.threads}, {provenance.batch}",
        "Engine build": provenance.build_key,
    }
    return "".join(f"<dt>{term}</dt><dd>{escaped(words)}</dd>" for term, words in terms.items() if words)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _pictures(thumbnails: Thumbnails | None, *, failed: bool) -> str:
    if thumbnails is None:
        return "" if failed else '<span class="none">no small picture</span>'
    sizes = (thumbnails.size, thumbnails.size, thumbnails.attention_size)
    addresses = (thumbnails.picture, thumbnails.lare, thumbnails.attention)
    pictures = "".join(
        f'<img src="{address}" alt="{words}" width="{width}" height="{height}" loading="lazy" decoding="async">'
        for address, words, (width, height) in zip(addresses, ("picture", "LaRE", "attention"), sizes, strict=True)
    )
    return f'<div class="three">{pictures}</div>'


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
