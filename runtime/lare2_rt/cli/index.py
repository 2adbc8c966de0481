"""``lare2-rt index``: a labelled set becomes a table."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..host.console import EXIT_FILES, say
from ..host.progress import counting
from .audit import Report, ReportOptions
from .options import Root

if TYPE_CHECKING:
    from ..tools.datasets.build import Indexed
    from ..tools.datasets.split import Overlaps
    from ..tools.datasets.table import Index

REPORT_SCHEMA = "lare2-rt/index-report/1"
_SHOWN = 5  # groups of duplicates that are named; the others are counted


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command; None means default."""

    data: Annotated[str, typer.Argument(metavar="DATA", help="Folder of labelled images, list 'PATH LABEL', or CSV.")]
    out: Annotated[str, typer.Option(help="Parquet file of the index.")] = "index.parquet"
    layout: Annotated[
        Literal["auto", "genimage", "tiny-genimage", "aigcdetect", "folders", "community-forensics", "list"],
        typer.Option(help="How the set is laid out; auto tells it from the folders."),
    ] = "auto"
    root: Root = None
    val_share: Annotated[
        float,
        typer.Option(help="Move this share (0..1) of the training images to the split val, by source; 0 leaves it."),
    ] = 0.0
    test_share: Annotated[float, typer.Option(help="The same for the split test.")] = 0.0
    val_is_test: Annotated[
        bool, typer.Option("--val-is-test", help="Call the set's split val test, as GenImage's results are on it.")
    ] = False
    split_seed: Annotated[int, typer.Option(min=0, help="Seed that decides which images move.")] = 0
    audit: Annotated[
        bool, typer.Option("--audit", help="Say how well size, format and the like alone tell the classes apart.")
    ] = False
    report: ReportOptions
    force: Annotated[bool, typer.Option("--force", help="Replace an existing index.")] = False


def run(options: Options) -> int:
    """Index a labelled set: label, generator, split, size, format and hash of every image in one Parquet file.

    Exit code: 0 all fine, 1 some images cannot be used, 2 nothing could be indexed, 130 interrupted.
    """
    from ..host.atomic import check_target
    from ..results.parquet import arrow
    from ..tools.datasets.build import build_index
    from ..tools.datasets.split import TEST, VAL, SplitOptions, arrange_splits, find_overlaps
    from ..tools.datasets.table import write_index

    splits = SplitOptions(options.val_share, options.test_share, options.split_seed, options.val_is_test)
    target = Path(options.out)
    check_target(target, overwrite=options.force)
    arrow()  # missing, it should not show after an hour of reading
    with counting("indexing") as step:
        made = build_index(
            options.data, layout=options.layout, root=options.root, threads=options.report.threads, progress=step
        )
    index = arrange_splits(made.index, splits)
    made = replace(made, index=index)
    _say_lists(options.data)
    if VAL in index.split and TEST not in index.split:
        say(
            "note: the set has a split val and no test; GenImage and others report their results on val: --val-is-test "
            "calls it so, and --val-share draws images for validation and calibration from the training images"
        )
    write_index(target, index, overwrite=options.force)
    failed = _failures(made)
    for path, error in failed:
        say(f"{path}: {error}")
    if made.unlabelled:
        example = made.unlabelled[0]
        say(f"note: {len(made.unlabelled)} images lie in no folder with a label and are left out, such as {example}")
    overlaps = find_overlaps(index)
    _say_overlaps(index, overlaps)
    report = _report(made, overlaps, target=target)
    if options.audit or options.report.matched is not None:
        report.add_audit("audit", index)
    unmatched = report.add_matched(index, options.report)
    report.show(options.report.format)
    return EXIT_FILES if failed or unmatched else 0


def _failures(made: Indexed) -> list[tuple[str, str]]:
    """Return path and reason of everything that should be in the set and is of no use to it."""
    index = made.index
    broken = [(path, error) for path, error in zip(index.path, index.error, strict=True) if error]
    return [*((problem.path, problem.reason) for problem in made.problems), *broken]


def _say_lists(data: str) -> None:
    """Many sets are folders with a list beside them, which knows more than the folders do."""
    from ..tools.datasets.lists import lists_in

    for name in lists_in(data):
        path = os.path.join(data, name)
        say(
            f"note: {path} lists images with their labels, which a folder's index does not take up; 'lare2-rt index "
            f"{path}' does, with the splits, generators and sources that it names"
        )


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


def _report(made: Indexed, overlaps: Overlaps, *, target: Path) -> Report:
    from ..tools.datasets.audit import count_by
    from .tables import facts, listing

    index = made.index
    counts = [
        {"split": split, "generator": generator, "images": count}
        for (split, generator), count in sorted(count_by(index).items())
    ]
    generated = int(index.label.sum())
    values = {
        "index": str(target),
        "layout": index.layout,
        "root": index.root,
        "images": len(index),
        "real": len(index) - generated,
        "generated": generated,
        "not decodable": sum(1 for error in index.error if error),
        "left out, no label": len(made.unlabelled),
        "other files": made.others,
        "copies of another": overlaps.copies,
        "in several splits": len(overlaps.across_splits),
        "with both labels": len(overlaps.across_labels),
        "sources in several splits": len(overlaps.sources_across_splits),
    }
    content = {
        "schema": REPORT_SCHEMA,
        **{name.replace(",", "").replace(" ", "_"): value for name, value in values.items()},
        "failed": [{"path": path, "error": error} for path, error in _failures(made)],
        "duplicates": [[index.path[i] for i in group] for group in overlaps.duplicates],
        "counts": counts,
    }
    headings = ("split", "generator", "images")
    rows = ([str(row[name]) or "–" for name in headings] for row in counts)
    return Report(content, [facts(values), listing(headings, rows, right=("images",))])
