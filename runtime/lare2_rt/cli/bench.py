"""``lare2-rt bench``: the engines on this machine, side by side."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text

from .._version import __version__
from ..bundle.locate import locate_bundle
from ..bundle.opening import Bundle, open_bundle
from ..engines.contract import EngineOptions
from ..engines.selection import select_engine
from ..errors import EngineError, UsageError
from ..host.atomic import atomic_text, check_target
from ..host.console import EXIT_FILES, say, say_if_restored
from ..host.machine import available_memory, available_threads, cpu_facts, processors
from ..host.progress import hashing_progress
from ..host.text import printable
from ..pixels.preprocess import preprocess
from ..results.writers import format_for, print_tables
from ..tools.bench.measure import BenchOptions, Mode, Row, measure

_HEADINGS = (
    "engine", "version", "batch", "threads", "p50 ms", "p90 ms", "p99 ms", "images/s", "load s", "peak MB",
    "LaRE error", "probability error", "check",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BenchCommand:
    """The options of ``lare2-rt bench``; None means default."""

    bundle: str | None
    engines: tuple[str, ...] | None
    threads: int | None
    batch: int | None
    rounds: int | None
    image: str | None
    format: Literal["table", "json"] | None
    out: str | None
    force: bool
    verify: bool


def run(command: BenchCommand) -> int:
    """Measure and write the report; return the exit code. Raises Lare2Error before anything is measured."""
    target = Path(command.out) if command.out is not None else None
    form = _format(command, target)
    if target is not None:
        check_target(target, overwrite=command.force)
    located = locate_bundle(command.bundle)
    say_if_restored(located)
    with hashing_progress() as hashed:
        bundle = open_bundle(located.path, verify=command.verify, progress=hashed)
    image = _image(command, bundle)
    options = BenchOptions(
        threads=command.threads or available_threads(),
        batch=command.batch,
        rounds=command.rounds,
        engines=command.engines,
        image=image,
    )
    say(f"measuring bundle {bundle.label} with {options.threads} threads")
    with _progress() as step:
        rows, mode = measure(bundle, options, notify=say, progress=step)
    text = _json(bundle, options, rows, mode) if form == "json" else _table(rows)
    if target is None:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        with atomic_text(target, overwrite=command.force) as stream:
            stream.write(text)
    _conclude(bundle, options, rows, mode)
    return EXIT_FILES if any(row.failed for row in rows) else 0


def _format(command: BenchCommand, target: Path | None) -> Literal["table", "json"]:
    if command.format is not None:
        return command.format
    form = "table" if target is None else format_for(target.suffix)
    if form == "table":
        return "table"
    if form == "json":
        return "json"
    raise UsageError(f"cannot tell the format of {target} from its ending", remedy="add --format table or json")


def _image(command: BenchCommand, bundle: Bundle) -> Path | None:
    """Read the picture once here, so that a bad one is told before any engine is loaded; raises ImageError."""
    if command.image is None:
        return None
    method = bundle.manifest.method
    preprocess(command.image, bundle.manifest.policy, image_size=method.image_size, crop_size=method.crop_size)
    return Path(command.image).absolute()


def _conclude(bundle: Bundle, options: BenchOptions, rows: Sequence[Row], mode: Mode) -> None:
    """Say on standard error what was not measured and why, how, and what ``auto`` makes of it."""
    for row in rows:
        if row.problem is not None:
            say(f"{row.name} {'failed' if row.attempted else 'was not measured'}: {row.problem}")
        elif row.check is not None and not row.check.passed:
            say(f"{row.name} is not faithful here and will not be used: {row.check.verdict}")
    measured = [row for row in rows if row.latency]
    if not measured:
        return
    rounds = {len(row.latency) for row in measured}
    counts = f"{min(rounds)} to {max(rounds)}" if len(rounds) > 1 else f"{max(rounds)}"
    say(f"{counts} calls of each engine, {mode}" if len(measured) > 1 else f"{counts} calls")
    with contextlib.suppress(EngineError):
        chosen, _ = select_engine("auto", bundle, EngineOptions(threads=options.threads, batch=options.batch))
        say(f"'auto' takes {chosen.name} for this bundle with {options.threads} threads at batch {options.batch or 1}")


def _table(rows: Sequence[Row]) -> str:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading in ("engine", "version", "check") else "right")
    for row in rows:
        if row.info is None or not row.latency:
            cells: tuple[str, ...] = (
                row.name,
                *[""] * (len(_HEADINGS) - 2),
                "failed" if row.attempted else "not usable",
            )
        else:
            check = row.check
            times = (f"{row.percentile(percent):.1f}" for percent in (50, 90, 99))
            cells = (
                row.name,
                row.info.version,
                str(row.info.batch),
                str(row.info.threads),
                *times,
                f"{1e3 * row.info.batch / row.percentile(50):.2f}",
                f"{row.load:.2f}",
                "" if row.peak is None else f"{row.peak / 1e6:.0f}",
                "" if check is None else f"{check.lare:.1e}",
                "" if check is None else f"{check.probability:.1e}",
                "none in the bundle" if check is None else "passed" if check.passed else "FAILED",
            )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    stream = io.StringIO()
    print_tables((table,), stream, colour=False)
    return stream.getvalue()


def _json(bundle: Bundle, options: BenchOptions, rows: Sequence[Row], mode: Mode) -> str:
    document = {
        "schema": "lare2-rt/bench/1",
        "lare2_rt": __version__,
        "bundle": {
            "name": bundle.manifest.model.name,
            "id": bundle.manifest.id,
            "path": str(bundle.path.absolute()),
        },
        "machine": {**cpu_facts(), "processors": processors(), "available_memory": available_memory()},
        "settings": {
            "threads": options.threads,
            "batch": options.batch or 1,
            "image": None if options.image is None else str(options.image),
            "order": mode,
        },
        "engines": [_entry(row) for row in rows],
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _entry(row: Row) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": row.name, "usable": row.attempted, "error": row.problem}
    if row.info is None or not row.latency:
        return entry
    check = None
    if row.check is not None:
        # JSON has no infinity, which is what a value that is not finite makes of the other figures.
        finite = {name: value if value != float("inf") else None for name, value in asdict(row.check).items()}
        check = finite
    return {
        **entry,
        **asdict(row.info),
        "rounds": len(row.latency),
        "latency_ms": {f"p{percent}": row.percentile(percent) for percent in (50, 90, 99)},
        "images_per_second": 1e3 * row.info.batch / row.percentile(50),
        "load_s": row.load,
        "peak_memory": row.peak,
        "check": check,
    }


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("rounds"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("rounds", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
