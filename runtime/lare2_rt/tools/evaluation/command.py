"""An evaluation from scorers to a folder of reports, for the command and for the reference's own."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rich import box
from rich.table import Table
from rich.text import Text

from ...errors import EngineError, OutputError
from ...host.atomic import reason, write_bytes
from ...host.console import EXIT_FILES, Interrupted, say
from ...host.progress import stepping
from ...host.text import printable
from ...results.writers import print_tables
from . import figures
from .corruptions import choose
from .items import Selection
from .options import ReportOptions
from .report import as_dict, markdown
from .run import Evaluation, OpenScorer, Progress, Step, evaluate
from .summary import METRICS

Result = TypeVar("Result")


def evaluate_and_report(scorers: list[OpenScorer], selection: Selection, options: ReportOptions) -> int:
    """Evaluate scorers of any kind and write ``OUT/evaluation.{json,md}`` and ``OUT/figures``; return the exit code.

    Raises Lare2Error before the first image is scored.
    """
    # The decoder answers in sentences; Pillow's warnings about sizes and damaged metadata would come on top.
    warnings.filterwarnings("ignore", module=r"PIL\b")
    out = Path(options.out)
    corruptions = choose(options.corrupt) if options.corrupt is not None else []

    def scored(progress: Progress) -> Evaluation:
        say(f"{len(selection.items)} images of split {selection.split}, in {out}")
        return evaluate(scorers, selection, options, corruptions=corruptions, progress=progress)

    evaluation = until_stopped(scored, options.scores)
    if isinstance(evaluation, int):
        return evaluation
    _write(evaluation, out)
    failures = [failure for model in evaluation.models for failure in model.failures]
    for condition, failure in failures:
        say(f"{condition}: {failure.name}: {failure.error}")
    return EXIT_FILES if failures else 0


def until_stopped(work: Callable[[Progress], Result], scores: Path, *, option: str = "--out") -> Result | int:
    """Return what ``work`` returns, or the exit code of a run that stopped after its first progress and can go on.

    Args:
        scores: folder that the work keeps its scores in, made here; option: the one that chooses it.

    Raises Lare2Error before the first progress.
    """
    _make_folder(scores, option)
    begun = False

    def progress(total: int) -> contextlib.AbstractContextManager[Step]:
        nonlocal begun
        begun = True
        return stepping("scoring", total)

    try:
        return work(progress)
    except KeyboardInterrupt as error:
        ending = Interrupted(error)
        say(f"{ending}; the scores so far are in {scores}: run the same command again to go on")
        return ending.code
    except (EngineError, OutputError) as error:
        if not begun:
            raise
        say(f"stopped: {error}; the scores so far are in {scores}")
        return EXIT_FILES


def _make_folder(folder: Path, option: str = "--out") -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot create {folder}: {reason(error)}", remedy=f"choose another place with {option}"
        ) from error


def _write(evaluation: Evaluation, out: Path) -> None:
    drawn: list[str] | str = figures.MISSING
    if figures.available():
        _make_folder(out / "figures")
        drawn = figures.draw(evaluation, out / "figures")
    report = json.dumps(as_dict(evaluation), indent=2, allow_nan=False) + "\n"
    write_bytes(out / "evaluation.json", report.encode())
    write_bytes(out / "evaluation.md", markdown(evaluation, drawn).encode())
    print_tables((_table(evaluation),), sys.stdout, colour=sys.stdout.isatty())
    if isinstance(drawn, str):
        say(drawn)
    say(f"the report is {out / 'evaluation.md'}, all numbers are in {out / 'evaluation.json'}")


def _table(evaluation: Evaluation) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric")
    for model in evaluation.models:
        facts = model.provenance
        table.add_column(Text(printable(f"{facts.bundle_name} {facts.bundle_id[:8]}")), justify="right")
    for name, words in METRICS.items():
        values = [model.clean.overall.metrics.get(name) for model in evaluation.models]
        if any(value is not None for value in values):
            table.add_row(words, *("–" if value is None else value.text("  {:.3f}..{:.3f}") for value in values))
    return table
