"""``lare2-rt evaluate``: labelled images in, metrics with intervals out."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from ..atomic import reason, write_bytes
from ..bundle import open_bundle
from ..detector import Detector
from ..errors import EngineError, OutputError, UsageError
from ..evaluation import figures
from ..evaluation.corruptions import choose
from ..evaluation.items import Selection, select
from ..evaluation.report import as_dict, markdown
from ..evaluation.run import Evaluation, EvaluationOptions, OpenScorer, Step, evaluate
from ..evaluation.scorer import DetectorScorer
from ..evaluation.summary import METRICS, Interval
from ..locate import locate_bundle
from ..manifest import Precision
from ..output import print_tables, printable
from .app import EXIT_FILES
from .console import Interrupted, say
from .progress import hashing_progress, scoring_progress

if TYPE_CHECKING:
    from ..datasets import Index


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """The options of ``lare2-rt evaluate``; None means default."""

    bundles: tuple[str, ...]
    engine: str
    precision: Precision | None
    threads: int | None
    batch: int | None
    threshold: float | None
    split: str | None
    out: str
    corrupt: str | None
    resamples: int
    seed: int
    verify: bool


def run(data: str, options: EvaluateOptions) -> int:
    """Evaluate and write the report; return the exit code. Raises Lare2Error before the first image is scored."""
    selection = select(open_data(data), options.split)
    for name in options.bundles if len(options.bundles) > 1 else ():
        open_bundle(name)  # a wrong one must not come to light after hours with the first
    return evaluate_and_report([_opener(name, options) for name in options.bundles or (None,)], selection, options)


def evaluate_and_report(scorers: list[OpenScorer], selection: Selection, options: EvaluateOptions) -> int:
    """Evaluate scorers of any kind and write ``OUT/evaluation.{json,md}`` and ``OUT/figures``; return the exit code."""
    # The decoder answers in sentences; Pillow's warnings about sizes and damaged metadata would come on top.
    warnings.filterwarnings("ignore", module=r"PIL\b")
    out = Path(options.out)
    _make_folder(out / "scores")
    chosen = tuple(choose(options.corrupt)) if options.corrupt is not None else ()
    settings = EvaluationOptions(out / "scores", chosen, options.resamples, options.seed)
    say(f"{len(selection.items)} images of split {selection.split}, in {out}")
    begun = False

    def progress(what: str, total: int) -> contextlib.AbstractContextManager[Step]:
        nonlocal begun
        begun = True
        return scoring_progress(total)

    try:
        evaluation = evaluate(scorers, selection, settings, progress=progress)
    except KeyboardInterrupt as error:
        ending = Interrupted(error)
        say(f"{ending}; the scores so far are in {out / 'scores'}: run the same command again to go on")
        return ending.code
    except (EngineError, OutputError) as error:
        if not begun:
            raise
        say(f"stopped: {error}; the scores so far are in {out / 'scores'}")
        return EXIT_FILES
    _write(evaluation, out)
    for model in evaluation.models:
        for condition in model.conditions:
            for failure in condition.failures:
                say(f"{condition.name}: {failure.name}: {failure.error}")
    return EXIT_FILES if evaluation.failures else 0


def open_data(data: str) -> Index:
    """Return the index in a Parquet file, or that of a folder or list, made on the way; raises UsageError."""
    from ..datasets import build_index, read_index

    if os.path.isfile(data) and _is_parquet(data):
        return read_index(data)
    say(f"indexing {data}; 'lare2-rt index' keeps the result for the next time")
    return build_index(data).index


def _is_parquet(path: str) -> bool:
    try:
        with Path(path).open("rb") as stream:
            return stream.read(4) == b"PAR1"
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}; check its access rights") from error


def _opener(name: str | None, options: EvaluateOptions) -> OpenScorer:
    return functools.partial(_open, name, options)


def _open(name: str | None, options: EvaluateOptions) -> DetectorScorer:
    with hashing_progress() as hashed:
        detector = Detector.load(
            locate_bundle(name).path if name is None else name,
            engine=options.engine,
            precision=options.precision,
            batch=options.batch,
            threads=options.threads,
            threshold=options.threshold,
            verify=options.verify,
            progress=hashed,
            notify=say,
        )
    facts = detector.info.provenance
    say(f"bundle {facts.bundle_name} ({facts.bundle_id[:12]}) on {facts.engine} {facts.engine_version} {facts.device}")
    if detector.info.rule.note is not None:
        say(f"note: {detector.info.rule.note}")
    return DetectorScorer(detector)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {folder}: {reason(error)}; choose another place with --out") from error


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
            table.add_row(words, *("–" if value is None else _shown(value) for value in values))
    return table


def _shown(interval: Interval) -> str:
    ends = "" if interval.low is None else f"  {interval.low:.3f}..{interval.high:.3f}"
    return f"{interval.value:.4f}{ends}"
