"""``--report FILE``: a run as one page that needs nothing but a browser."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from ...detection import DecisionRule, Detection, Provenance
from ...host.atomic import draft_text
from ...host.text import printable
from .drawing import decimals, zones
from .maps import ATTENTION_COLOURS, LARE_COLOURS, Scales, bar
from .panel import MOST, MostLikely, data_address
from .record import Evidence

if TYPE_CHECKING:
    from jinja2 import Template

MOST_ROWS = 20_000  # a browser lays out that many in seconds; the results file has them all
BINS = 20
_VERDICTS = ("generated", "real", "unsure", "failed")
_PIECES = 200  # of the page in one write


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


class Histogram:
    """Counts probabilities in ``BINS`` equal bins of 0..1; the last one holds 1 as well."""

    def __init__(self) -> None:
        self._counts = [0] * BINS

    def add(self, probability: float) -> None:
        """Count one."""
        self._counts[min(BINS - 1, int(probability * BINS))] += 1

    def sentence(self) -> str:
        """Return in words what the drawing shows."""
        total = sum(self._counts)
        if not total:
            return "No image was scored."
        filled = [(index, count) for index, count in enumerate(self._counts) if count]
        parts = (f"{count} between {index / BINS:.2f} and {(index + 1) / BINS:.2f}" for index, count in filled)
        return f"Of {total} probabilities, {', '.join(parts)}."

    def svg(self, rule: DecisionRule) -> str:
        """Return an SVG element: bars over the stretches of the verdicts, with the thresholds between them."""
        most, left, right = max(*self._counts, 1), 36, 392
        bars = [(i / BINS, (i + 1) / BINS, count / most) for i, count in enumerate(self._counts) if count]
        thresholds = [(rule.generated_from, "generated from", 28), (rule.real_below, "real below", 12)]
        if rule.real_below == rule.generated_from:
            del thresholds[1]
        return _template("histogram.svg").render(
            words=self.sentence(),
            at=lambda probability: left + probability * (right - left),
            top=36,
            bottom=196,
            zones=zones(rule),
            bars=bars,
            most=most,
            thresholds=thresholds if rule.decides else [],
        )


class Report:
    """Collects results; a few hundred bytes each, and the thumbnails of the likeliest."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._counts: Counter[str] = Counter()
        self._histogram = Histogram()
        self._likeliest = MostLikely()

    def add(self, result: Detection, evidence: Evidence | None) -> None:
        """Take one result, with what can be shown of it unless it failed."""
        if evidence is None:
            row = Row(result.source, "failed", None, None, result.error or "")
        else:
            row = Row(result.source, evidence.verdict, evidence.probability, evidence.lare_mean, None)
            self._histogram.add(evidence.probability)
        self._counts[row.verdict] += 1
        if len(self._rows) < MOST_ROWS:
            if evidence is not None:
                self._likeliest.add(len(self._rows), evidence)
            self._rows.append(row)

    def write(
        self, path: Path, scales: Scales, facts: ModelFacts, *, overwrite: bool, stopped: str | None = None
    ) -> Path:
        """Write the page, complete or not at all; returns the name that it got.

        Args:
            path: the file; scales: of the run; facts: what judged the images.
            overwrite: whether an existing file is replaced; else the page gets a number.
            stopped: why the run ended before the last image.

        Raises:
            OutputError: it cannot be written.
        """
        with draft_text(path, overwrite=overwrite) as draft:
            draft.stream.writelines(self.pieces(scales, facts, stopped=stopped))
        return draft.target

    def pieces(self, scales: Scales, facts: ModelFacts, *, stopped: str | None = None) -> Iterator[str]:
        """Yield the page piece by piece: with ten thousand rows it is larger than anything else in memory."""
        style, script = _packaged("report.css"), _packaged("report.js")
        total = self._counts.total()
        notices = [facts.rule.note, facts.rule.misfit(facts.provenance.crops), stopped]
        if len(self._rows) < total:
            notices.append(
                f"the table has the first {len(self._rows)} of {total} images, so that a browser can show it; the "
                "counts and the histogram are about all of them, and the results file holds all"
            )
        listed = Counter(row.verdict for row in self._rows)
        page = _template("report.html").stream(
            policy=_policy(style, script),
            style=style,
            script=script,
            facts=facts,
            scales=scales,
            total=total,
            scored=total - self._counts["failed"],
            most=MOST,
            counts=", ".join(f"{self._counts[verdict]} {verdict}" for verdict in _VERDICTS if self._counts[verdict]),
            notices=[notice for notice in notices if notice is not None],
            histogram=self._histogram.svg(facts.rule),
            histogram_words=self._histogram.sentence(),
            lare_bar=data_address(bar(240, 14, LARE_COLOURS), form="PNG"),
            attention_bar=data_address(bar(240, 14, ATTENTION_COLOURS), form="PNG"),
            listed={verdict: listed[verdict] for verdict in _VERDICTS if listed[verdict]},
            rows=self._rows,
            drawn=self._likeliest.draw(scales),
        )
        page.enable_buffering(_PIECES)
        yield from page


def _template(name: str) -> Template:
    """Return a template whose every value is made printable and escaped, unless it says ``safe``."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # slow to import, and only pages need it

    environment = Environment(
        loader=PackageLoader("lare2_rt.tools.evidence"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,  # not what is markup already
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["decimals"] = decimals
    return environment.get_template(name)


def _packaged(name: str) -> str:
    return resources.files("lare2_rt.tools.evidence").joinpath("templates", name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Return a content security policy that allows these two texts, pictures inside the page, and nothing else."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script))
    allowed = "style-src 'sha256-{}'; script-src 'sha256-{}'".format(*digests)
    return f"default-src 'none'; img-src data:; {allowed}; base-uri 'none'; form-action 'none'"
