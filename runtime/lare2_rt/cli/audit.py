"""``lare2-rt audit``: how well facts about the files alone tell generated from real images; ``index`` says it too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..host.console import EXIT_FILES, say
from ..host.progress import counting
from .options import Root, Threads

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from ..tools.datasets.audit import AuditReport, Finding
    from ..tools.datasets.table import Index

SCHEMA = "lare2-rt/audit/1"


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What is reported of an index, and where matched copies of its images go."""

    matched: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Write matched copies here: one size, one encoding, no metadata; and audit them."
        ),
    ] = None
    matched_size: Annotated[
        int, typer.Option(min=1, help="Edge of the copies' centre window in pixels; smaller images are left out.")
    ] = 256
    matched_format: Annotated[Literal["jpeg", "png"], typer.Option(help="Encoding of the copies.")] = "jpeg"
    matched_quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality of the copies.")] = 96
    threads: Threads = None
    format: Annotated[Literal["table", "json"], typer.Option(help="Form of the report on standard output.")] = "table"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command; None means default."""

    index: Annotated[str, typer.Argument(metavar="INDEX", help="Index from 'lare2-rt index'.")] = "index.parquet"
    root: Root = None
    report: ReportOptions


def run(options: Options) -> int:
    """Say how well size, shape, format, JPEG quality and bytes per pixel alone tell generated from real images.

    Exit code: 0 audited, whatever was found; 1 some matched copies could not be made; 2 no usable index.
    """
    from ..tools.datasets.table import read_index

    index = read_index(options.index, root=options.root)
    report = Report({"index": options.index})
    report.add_audit("audit", index)
    failed = report.add_matched(index, options.report)
    report.show(options.report.format)
    return EXIT_FILES if failed else 0


@dataclass(slots=True)
class Report:
    """What goes to standard output: for programs and, part by part, for people."""

    content: dict[str, Any]
    parts: list[Table | str] = field(default_factory=list)

    def add_audit(self, name: str, index: Index) -> None:
        """Audit an index."""
        from ..tools.datasets.audit import audit_index
        from .tables import listing

        audit = audit_index(index)
        self.content[name] = {"schema": SCHEMA, "groups": [asdict(group) for group in audit.groups]}
        numbers = ("real", "generated", "AUC", "|AUC − 0.5|", "by chance")
        self.parts += [
            listing(("images", "fact alone", *numbers, ""), _rows(audit), right=numbers),
            "AUC of a fact alone as a score for 'generated': 0.5 tells nothing, 0 as much as 1 (the other way round)",
            *_leaks(audit),
        ]

    def add_matched(self, index: Index, options: ReportOptions) -> bool:
        """Write matched copies where they are asked for, and audit them; say whether some could not be made."""
        from ..host.text import printable
        from ..tools.datasets.matched import INDEX_NAME, MatchedOptions, write_matched

        if options.matched is None:
            return False
        choice = MatchedOptions(options.matched_size, options.matched_format, options.matched_quality)
        with counting("matching") as step:
            made = write_matched(index, options.matched, choice, threads=options.threads, progress=step)
        for problem in made.problems:
            say(f"{problem.path}: {problem.reason}")
        real, generated = made.too_small
        if real or generated:
            size = options.matched_size
            say(
                f"note: {real} real and {generated} generated images are smaller than {size}×{size} and left out; "
                "--matched-size chooses another size"
            )
        if made.repeated:
            say(f"note: {made.repeated} copies of other images are left out")
        place = str(Path(options.matched, INDEX_NAME))
        self.content["matched"] = {
            "index": place,
            **asdict(choice),
            "images": len(made.index),
            "too_small_real": real,
            "too_small_generated": generated,
            "repeated": made.repeated,
            "failed": [{"path": problem.path, "error": problem.reason} for problem in made.problems],
        }
        self.parts.append(f"\nmatched copies: {len(made.index)} images in {printable(place)}")
        self.add_audit("matched_audit", made.index)
        return bool(made.problems)

    def show(self, form: Literal["table", "json"]) -> None:
        """Print everything."""
        from .tables import show, show_json

        if form == "json":
            show_json(self.content)
        else:
            show(*self.parts)


def _rows(audit: AuditReport) -> Iterator[tuple[str | Text, ...]]:
    from rich.text import Text

    styles = {"leak": "bold red", "content": "yellow"}
    for group in audit.groups:
        for i, finding in enumerate(group.findings):
            verdict = Text(finding.verdict, styles[finding.verdict]) if finding.verdict in styles else ""
            numbers = ("–", "–", "–")
            if finding.auc is not None:
                numbers = (f"{finding.auc:.3f}", f"{finding.distance:.3f}", f"< {finding.chance:.3f}")
            name = group.group if i == 0 else ""
            yield name, _words(finding), str(finding.real), str(finding.generated), *numbers, verdict


def _leaks(audit: AuditReport) -> list[str]:
    """Return a line for each fact that tells the classes apart."""
    found: dict[tuple[str, str], list[str]] = {}
    meanings: dict[str, str] = {}
    for group in audit.groups:
        for finding in group.findings:
            if finding.verdict in ("leak", "content"):
                found.setdefault((finding.verdict, _words(finding)), []).append(group.group)
                meanings[_words(finding)] = finding.meaning
    lines = [f"{verdict}: {fact} in {', '.join(groups)}: {meanings[fact]}" for (verdict, fact), groups in found.items()]
    return lines or ["no fact about the files tells the classes apart by more than chance"]


def _words(finding: Finding) -> str:
    return finding.fact.replace("_", " ")
