"""``lare2-rt index`` and ``lare2-rt audit``: a set becomes a table, and the table is looked at."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text

from ..host.atomic import check_target
from ..host.console import EXIT_FILES, say
from ..host.progress import counting
from ..host.text import printable
from ..results.arrow import arrow
from ..results.writers import print_tables
from ..tools.datasets.audit import AuditReport, audit_index, count_by
from ..tools.datasets.build import Indexed, LayoutChoice, build_index
from ..tools.datasets.lists import lists_in
from ..tools.datasets.matched import INDEX_NAME, Matched, MatchedOptions, write_matched
from ..tools.datasets.overlaps import Overlaps, find_overlaps
from ..tools.datasets.split import TEST, VAL, SplitOptions, arrange_splits
from ..tools.datasets.table import Index, read_index, write_index
from . import audit_report

REPORT_SCHEMA = "lare2-rt/index-report/1"
_SHOWN = 5  # groups of duplicates that are named; the others are counted


@dataclass(frozen=True, slots=True)
class MatchedChoice:
    """Where matched copies go and how they are made; see ``datasets.matched.MatchedOptions``."""

    folder: str
    size: int
    format: Literal["jpeg", "png"]
    quality: int


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """The options of ``lare2-rt index``; None means default."""

    out: str
    layout: LayoutChoice
    root: str | None
    splits: SplitOptions
    audit: bool
    matched: MatchedChoice | None
    threads: int | None
    form: Literal["table", "json"]
    force: bool


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """The options of ``lare2-rt audit``; None means default."""

    root: str | None
    matched: MatchedChoice | None
    threads: int | None
    form: Literal["table", "json"]


@dataclass(slots=True)
class _Report:
    """What goes to standard output."""

    content: dict[str, Any]
    parts: list[Table | str]


def run_index(data: str, options: IndexOptions) -> int:
    """Index a set; return the exit code. Raises Lare2Error when nothing can be indexed."""
    # The decoder answers in sentences; Pillow's warnings about sizes and damaged metadata would come on top.
    warnings.filterwarnings("ignore", module=r"PIL\b")
    target = Path(options.out)
    check_target(target, overwrite=options.force)
    arrow()  # missing, it should not show after an hour of reading
    with counting("indexing") as step:
        made = build_index(data, layout=options.layout, root=options.root, threads=options.threads, progress=step)
    made = replace(made, index=arrange_splits(made.index, options.splits))
    _say_lists(data)
    if VAL in made.index.split and TEST not in made.index.split:
        say(
            "note: the set has a split val and no test; GenImage and others report their results on val: --val-is-test "
            "calls it so, and --val-share draws images for validation and calibration from the training images"
        )
    write_index(target, made.index, overwrite=options.force)
    failed = _say_failures(made)
    overlaps = find_overlaps(made.index)
    _say_overlaps(made.index, overlaps)
    report = _index_report(made, overlaps, target=target)
    if options.audit or options.matched is not None:
        _add_audit(report, "audit", audit_index(made.index))
    if options.matched is not None:
        failed |= _match(report, made.index, options.matched, options.threads)
    _print(report, options.form)
    return EXIT_FILES if failed else 0


def run_audit(index: str, options: AuditOptions) -> int:
    """Audit an index; return the exit code. Raises Lare2Error when there is none."""
    warnings.filterwarnings("ignore", module=r"PIL\b")
    found = read_index(index, root=options.root)
    report = _Report({"index": index}, [])
    _add_audit(report, "audit", audit_index(found))
    failed = options.matched is not None and _match(report, found, options.matched, options.threads)
    _print(report, options.form)
    return EXIT_FILES if failed else 0


def _say_lists(data: str) -> None:
    """Many sets are folders with a list beside them, which knows more than the folders do."""
    for name in lists_in(data):
        path = os.path.join(data, name)
        say(
            f"note: {path} lists images with their labels, which a folder's index does not take up; 'lare2-rt index "
            f"{path}' does, with the splits, generators and sources that it names"
        )


def _say_failures(made: Indexed) -> bool:
    """One line for everything that should be in the set and is of no use to it."""
    index = made.index
    broken = [(path, error) for path, error in zip(index.path, index.error, strict=True) if error]
    for path, error in (*((problem.path, problem.reason) for problem in made.problems), *broken):
        say(f"{path}: {error}")
    if made.unlabelled:
        example = made.unlabelled[0]
        say(f"note: {len(made.unlabelled)} images lie in no folder with a label and are left out, such as {example}")
    return bool(broken or made.problems)


def _say_overlaps(index: Index, overlaps: Overlaps) -> None:
    for words, groups in (
        ("the same file with both labels", overlaps.across_labels),
        ("the same file in several splits", overlaps.across_splits),
        ("one source in several splits", overlaps.sources_across_splits),
    ):
        for group in groups[:_SHOWN]:
            say(f"{words}: " + ", ".join(index.path[i] for i in group))
        if len(groups) > _SHOWN:
            say(f"{words}: {len(groups) - _SHOWN} more")


def _index_report(made: Indexed, overlaps: Overlaps, *, target: Path) -> _Report:
    index = made.index
    counts = [
        {"split": split, "generator": generator, "images": count}
        for (split, generator), count in sorted(count_by(index).items())
    ]
    generated = int(index.label.sum())
    broken = sum(1 for error in index.error if error)
    facts = {
        "index": str(target),
        "layout": index.layout,
        "root": index.root,
        "images": len(index),
        "real": len(index) - generated,
        "generated": generated,
        "not decodable": broken,
        "left out, no label": len(made.unlabelled),
        "other files": made.others,
        "copies of another": overlaps.copies,
        "in several splits": len(overlaps.across_splits),
        "with both labels": len(overlaps.across_labels),
        "sources in several splits": len(overlaps.sources_across_splits),
    }
    content = {
        "schema": REPORT_SCHEMA,
        **{name.replace(",", "").replace(" ", "_"): value for name, value in facts.items()},
        "failed": [
            *({"path": problem.path, "error": problem.reason} for problem in made.problems),
            *({"path": p, "error": e} for p, e in zip(index.path, index.error, strict=True) if e),
        ],
        "duplicates": [[index.path[i] for i in group] for group in overlaps.duplicates],
        "counts": counts,
    }
    return _Report(content, [_facts_table(facts), _counts_table(counts)])


def _facts_table(facts: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(printable(str(value))))
    return table


def _counts_table(counts: Iterable[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("split", no_wrap=True)
    table.add_column("generator", overflow="fold")
    table.add_column("images", justify="right", no_wrap=True)
    for row in counts:
        table.add_row(row["split"] or "–", Text(printable(row["generator"])), str(row["images"]))
    return table


def _add_audit(report: _Report, name: str, audit: AuditReport) -> None:
    report.content[name] = audit_report.as_dict(audit)
    report.parts.extend(audit_report.parts(audit))


def _match(report: _Report, index: Index, choice: MatchedChoice, threads: int | None) -> bool:
    """Write matched copies and audit them; say whether some could not be made."""
    options = MatchedOptions(choice.size, choice.format, choice.quality)
    with counting("matching") as step:
        made = write_matched(index, choice.folder, options, threads=threads, progress=step)
    for problem in made.problems:
        say(f"{problem.path}: {problem.reason}")
    _say_matched(made, choice)
    report.content["matched"] = {
        "index": str(Path(choice.folder, INDEX_NAME)),
        **asdict(options),
        "images": len(made.index),
        "too_small_real": made.too_small[0],
        "too_small_generated": made.too_small[1],
        "repeated": made.repeated,
        "failed": [{"path": problem.path, "error": problem.reason} for problem in made.problems],
    }
    place = printable(str(Path(choice.folder, INDEX_NAME)))
    report.parts.append(f"\nmatched copies: {len(made.index)} images in {place}")
    _add_audit(report, "matched_audit", audit_index(made.index))
    return bool(made.problems)


def _say_matched(made: Matched, choice: MatchedChoice) -> None:
    if any(made.too_small):
        real, generated = made.too_small
        say(
            f"note: {real} real and {generated} generated images are smaller than {choice.size}×{choice.size} and left "
            "out; --matched-size chooses another size"
        )
    if made.repeated:
        say(f"note: {made.repeated} copies of other images are left out")


def _print(report: _Report, form: Literal["table", "json"]) -> None:
    if form == "json":
        # ASCII output escapes every control character and lone surrogate, so any file name survives.
        sys.stdout.write(json.dumps(report.content, ensure_ascii=True, allow_nan=False, indent=2) + "\n")
        return
    for part in report.parts:
        if isinstance(part, str):
            sys.stdout.write(part + "\n")
        else:
            print_tables((part,), sys.stdout, colour=sys.stdout.isatty())
