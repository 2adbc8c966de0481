"""``lare2-rt bench``: the engines on this machine, side by side."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .._version import __version__
from ..errors import EngineError, UsageError
from ..host.console import EXIT_FILES, say
from ..host.progress import counting, hashing_progress
from .options import Threads, Verify, located

if TYPE_CHECKING:
    from ..bundle.opening import Bundle
    from ..tools.bench.measure import BenchOptions, Mode, Row

_HEADINGS = (
    "engine", "version", "batch", "threads", "p50 ms", "p90 ms", "p99 ms", "images/s", "load s", "peak MB",
    "LaRE error", "probability error", "check",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command; None means default."""

    bundle: Annotated[str | None, typer.Option(help="Bundle folder. Default: the one that 'infer' would use.")] = None
    engine: Annotated[
        list[str] | None, typer.Option(help="Engine to measure; repeat for several. Default: all that can be used.")
    ] = None
    threads: Threads = None
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images per engine call, one of the bundle's sizes. Default: 1.")
    ] = None
    rounds: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help="Timed calls of each engine. Default: as many as take 40 seconds."),
    ] = None
    image: Annotated[
        str | None, typer.Option(help="Picture to score. Default: a drawn one; the time does not depend on it.")
    ] = None
    format: Annotated[
        Literal["table", "json"] | None,
        typer.Option(help="Output format. Default: by the ending of --out, else table."),
    ] = None
    out: Annotated[str | None, typer.Option(help="Write to this file instead of standard output.")] = None
    force: Annotated[bool, typer.Option("--force", help="Let --out replace an existing file.")] = False
    verify: Verify = False


def run(options: Options) -> int:
    """Measure the engines on this machine in about a minute; from then on 'auto' takes the fastest.

    Each is checked against what the reference gave when the bundle was built. Engines that compile do so first.

    Exit code: 0 all fine, 1 an engine failed or is not faithful, 2 nothing could start, 130 interrupted.
    """
    from ..bundle.opening import open_bundle
    from ..host.atomic import atomic_text, check_target
    from ..host.machine import available_threads
    from ..tools.bench.measure import BenchOptions, measure

    target = Path(options.out) if options.out is not None else None
    form = _format(options, target)
    if target is not None:
        check_target(target, overwrite=options.force)
    found = located(options.bundle)
    with hashing_progress() as hashed:
        bundle = open_bundle(found.path, verify=options.verify, progress=hashed)
    wanted = BenchOptions(
        threads=options.threads or available_threads(),
        batch=options.batch,
        rounds=options.rounds,
        engines=tuple(options.engine) if options.engine else None,
        image=_image(options, bundle),
    )
    say(f"measuring bundle {bundle.label} with {wanted.threads} threads")
    with counting("rounds") as step:
        rows, mode = measure(bundle, wanted, notify=say, progress=step)
    text = _json(bundle, wanted, rows, mode) if form == "json" else _table(rows)
    if target is None:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        with atomic_text(target, overwrite=options.force) as stream:
            stream.write(text)
    _conclude(bundle, wanted, rows, mode)
    return EXIT_FILES if any(row.failed for row in rows) else 0


def _format(options: Options, target: Path | None) -> str:
    from ..results.writers import format_for

    form = options.format or ("table" if target is None else format_for(target.suffix))
    if form not in ("table", "json"):
        raise UsageError(f"cannot tell the format of {target} from its ending", remedy="add --format table or json")
    return form


def _image(options: Options, bundle: Bundle) -> Path | None:
    """Read the picture once here, so that a bad one is told before any engine is loaded; raises ImageError."""
    if options.image is None:
        return None
    bundle.manifest.preprocess(options.image)
    return Path(options.image).absolute()


def _conclude(bundle: Bundle, options: BenchOptions, rows: Sequence[Row], mode: Mode) -> None:
    """Say on standard error what was not measured and why, how, and what ``auto`` makes of it."""
    from ..engines.contract import EngineOptions
    from ..engines.selection import select_engine

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
    from ..results.writers import print_tables
    from .tables import listing

    right = [heading for heading in _HEADINGS if heading not in ("engine", "version", "check")]
    stream = io.StringIO()
    print_tables((listing(_HEADINGS, map(_cells, rows), right=right),), stream, colour=False)
    return stream.getvalue()


def _cells(row: Row) -> list[str]:
    if row.info is None or not row.latency:
        return [row.name, *[""] * (len(_HEADINGS) - 2), "failed" if row.attempted else "not usable"]
    check = row.check
    return [
        row.name,
        row.info.version,
        str(row.info.batch),
        str(row.info.threads),
        *(f"{row.percentile(percent):.1f}" for percent in (50, 90, 99)),
        f"{1e3 * row.info.batch / row.percentile(50):.2f}",
        f"{row.load:.2f}",
        "" if row.peak is None else f"{row.peak / 1e6:.0f}",
        "" if check is None else f"{check.lare:.1e}",
        "" if check is None else f"{check.probability:.1e}",
        "none in the bundle" if check is None else "passed" if check.passed else "FAILED",
    ]


def _json(bundle: Bundle, options: BenchOptions, rows: Sequence[Row], mode: Mode) -> str:
    from ..host.machine import available_memory, cpu_facts, processors

    document = {
        "schema": "lare2-rt/bench/1",
        "lare2_rt": __version__,
        "bundle": {"name": bundle.manifest.model.name, "id": bundle.manifest.id, "path": str(bundle.path.absolute())},
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
        check = {name: None if value == float("inf") else value for name, value in asdict(row.check).items()}
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
