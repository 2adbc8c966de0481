"""``--report FILE``: a run as one page that needs nothing but a browser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ...detection import Detection
from ...host.atomic import draft_text
from . import page
from .histogram import Histogram
from .maps import ATTENTION_COLOURS, LARE_COLOURS, bar
from .page import ModelFacts, Row
from .record import Evidence
from .scale import Scales
from .thumbnails import MOST, MostLikely, data_address

MOST_ROWS = 20_000  # a browser lays out that many in seconds; the results file has them all


class Report:
    """Collects results; a few hundred bytes each, and the thumbnails of the likeliest."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._counts: Counter[str] = Counter()
        self._histogram = Histogram()
        self._likeliest = MostLikely()

    def add(self, result: Detection, evidence: Evidence | None) -> None:
        """Take one result, with what can be shown of it unless it failed."""
        verdict = "failed" if evidence is None else evidence.verdict
        self._counts[verdict] += 1
        if evidence is not None:
            self._histogram.add(evidence.probability)
        if len(self._rows) >= MOST_ROWS:
            return
        if evidence is None:
            self._rows.append(Row(result.source, verdict, None, None, result.error or ""))
            return
        self._likeliest.add(len(self._rows), evidence)
        self._rows.append(Row(result.source, verdict, evidence.probability, evidence.lare_mean, None))

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
            for piece in self.pieces(scales, facts, stopped=stopped):
                draft.stream.write(piece)
        return draft.target

    def pieces(self, scales: Scales, facts: ModelFacts, *, stopped: str | None = None) -> Iterator[str]:
        """Yield the page piece by piece: with ten thousand rows it is larger than anything else in memory."""
        before, after = page.template("report.html").split("$rows")
        values = self._values(scales, facts, stopped)
        yield page.fill(before, values)
        drawn = self._likeliest.draw(scales)
        for index, row in enumerate(self._rows):
            yield page.row_html(index + 1, row, drawn.get(index))
        yield page.fill(after, values)

    def _values(self, scales: Scales, facts: ModelFacts, stopped: str | None) -> dict[str, str]:
        style, script = page.template("report.css"), page.template("report.js")
        total, scored = self._counts.total(), self._counts.total() - self._counts["failed"]
        counts = ", ".join(f"{self._counts[verdict]} {verdict}" for verdict in _VERDICTS if self._counts[verdict])
        left_out = total - len(self._rows)
        notices = [facts.rule.note, facts.rule.misfit(facts.provenance.crops), stopped]
        if left_out:
            notices.append(
                f"the table has the first {len(self._rows)} of {total} images, so that a browser can show it; the "
                "counts and the histogram are about all of them, and the results file holds all"
            )
        few = (
            f"Only the {MOST} images with the highest probability have small pictures, so that this page stays small."
            if scored > MOST
            else ""
        )
        crops = facts.provenance.crops
        return {
            "policy": page.policy_for(style, script),
            "style": style,
            "script": script,
            "title": f"LaRE² report: {total} {'image' if total == 1 else 'images'}",
            "summary": f"{counts or 'nothing was scored'}, by bundle {page.escaped(facts.provenance.bundle_name)}",
            "notices": page.notices_html([notice for notice in notices if notice is not None]),
            "histogram": self._histogram.svg(facts.rule),
            "histogram_words": self._histogram.sentence(),
            "rule": page.rule_words(facts.rule),
            "lare_bar": data_address(bar(240, 14, LARE_COLOURS), form="PNG"),
            "lare_low": f"{scales.lare.low:.3g}",
            "lare_high": f"{scales.lare.high:.3g}",
            "attention_bar": data_address(bar(240, 14, ATTENTION_COLOURS), form="PNG"),
            "attention_low": f"{scales.attention.low:.3g}",
            "attention_high": f"{scales.attention.high:.3g}",
            "windows": _SEEN if crops == 1 else f"CLIP saw up to {crops} windows, shown in their places.",
            "thumbnails": few,
            "verdicts": page.verdict_options(Counter(row.verdict for row in self._rows)),
            "count": f"{len(self._rows)} rows",
            "facts": page.facts_html(facts),
        }


_VERDICTS = ("generated", "real", "unsure", "failed")
_SEEN = "CLIP saw a window in the centre at full resolution: of a large picture only a small part."
