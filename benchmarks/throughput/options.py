"""The command line of the throughput benchmark, checked."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.command import RESULTS, ROOT
from benchmarks.throughput.rows import ROWS, Row
from benchmarks.throughput.setup import Setup
from benchmarks.throughput.turns import Schedule
from lare2_rt.bundle.locate import embedded_bundle
from lare2_rt.errors import UsageError
from lare2_rt.host.integrity import cache_folder
from lare2_rt.host.machine import available_threads, processors
from lare2_rt.tools.inputs import expand

MINI = ROOT / "lare2_ref/models/mini"
_IMAGES = (ROOT / "tests/photos", ROOT / "examples")


@dataclass(frozen=True, slots=True)
class Options:
    """One run.

    Attributes:
        limit: bytes that both processes may take together; fresh: measure finished rows again.
        profile: where the time goes, instead of the rows; sizes: with what more draws and images cost.
        out: the report, None for the default place.
    """

    setup: Setup
    schedule: Schedule
    rows: tuple[Row, ...]
    limit: int
    fresh: bool
    profile: bool
    out: Path | None
    sizes: bool = True

    def out_path(self, model: str) -> Path:
        """Return where the report goes, for a model of this name."""
        kind = "profile" if self.profile else "throughput"
        return self.out or RESULTS / f"{kind}-{model}.json"


def parse(arguments: Sequence[str] | None) -> Options:
    """Return the options of a command line; raises UsageError, or exits as argparse does."""
    given = parser().parse_args(arguments)
    for name in ("rounds", "limit", "memory"):
        if not 0 < getattr(given, name) < math.inf:
            raise UsageError(f"--{name} must be positive", remedy="leave it out for its default")
    setup = setup_of(given, find_images([given.images] if given.images else _IMAGES, given.limit))
    return Options(
        setup=setup,
        schedule=Schedule(rounds=given.rounds, images=len(setup.images), repeats=max(2, given.rounds)),
        rows=chosen_rows(given.rows),
        limit=int(given.memory * 1e9),
        fresh=given.fresh,
        profile=given.profile,
        sizes=not given.no_sizes,
        out=given.out,
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser; the end of its help lists the rows."""
    rows = "\n".join(f"  {row.name:26}{row.title}" for row in ROWS)
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description="Speed and fidelity of every way to run LaRE², each beside the PyTorch reference.",
        epilog=f"rows:\n{rows}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_setup_options(result, "throughput", images=4)
    result.add_argument("--images", type=Path, help="folder of photographs (default: the repository's)")
    result.add_argument("--rows", help="names separated by commas (default: all)")
    result.add_argument("--rounds", type=int, default=8, help="steady rounds a row (default: %(default)s)")
    result.add_argument("--memory", type=float, default=20.0, help="GB for both processes (default: %(default)s)")
    result.add_argument("--fresh", action="store_true", help="measure finished rows again")
    result.add_argument("--profile", action="store_true", help="where the time goes, instead of the rows")
    result.add_argument("--no-sizes", action="store_true", help="profile without other numbers of draws and images")
    return result


def add_setup_options(result: argparse.ArgumentParser, kind: str, *, images: int) -> None:
    """Add what ``setup_of`` reads, and where the report of this kind goes; ``images`` are taken by default."""
    model = result.add_mutually_exclusive_group()
    model.add_argument("--model", default="mini", help="model folder, or mini (default: %(default)s)")
    model.add_argument("--model-synthetic", choices=["sd15"], help="seeded random weights of this geometry instead")
    result.add_argument("--bundle", type=Path, help="its bundle (default: mini's embedded one; others are built)")
    result.add_argument("--limit", type=int, default=images, help="images taken, evenly spread (default: %(default)s)")
    result.add_argument("--threads", type=int, help="CPU threads (default: all that this process may use)")
    result.add_argument("--work", type=Path, help="folder of exports and drafts (default: in the user's cache)")
    result.add_argument("--out", type=Path, help=f"report (default: benchmarks/results/{kind}-MODEL.json)")


def chosen_rows(names: str | None) -> tuple[Row, ...]:
    """Return rows in the table's order; raises UsageError for a name that is none."""
    if names is None:
        return ROWS
    wanted = {name.strip() for name in names.split(",")}
    unknown = sorted(wanted - {row.name for row in ROWS})
    if unknown:
        raise UsageError(f"there is no row {unknown[0]!r}", remedy=f"rows are {', '.join(row.name for row in ROWS)}")
    return tuple(row for row in ROWS if row.name in wanted)


def find_images(folders: Sequence[Path], limit: int) -> list[str]:
    """Return at most ``limit`` images, evenly spread over the sorted listings; raises UsageError."""
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder", remedy="name a folder of photographs with --images")
    found = expand(map(str, folders))
    count = min(limit, len(found))
    return [str(Path(found[index * len(found) // count]).absolute()) for index in range(count)]


def setup_of(given: argparse.Namespace, images: Sequence[str]) -> Setup:
    """Return what ``--model``, ``--model-synthetic``, ``--bundle``, ``--threads`` and ``--work`` ask for.

    Raises:
        UsageError: a folder is none, or there are not so many processors.
    """
    threads = available_threads() if given.threads is None else given.threads
    if not 1 <= threads <= processors():
        raise UsageError(f"there are no {threads} threads", remedy=f"set --threads to 1 to {processors()}")
    if given.model_synthetic:
        model, name = given.model_synthetic, f"synthetic-{given.model_synthetic}"
    else:
        folder = MINI if given.model == "mini" else Path(given.model)
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a model folder", remedy="give a folder, mini, or --model-synthetic sd15")
        model, name = str(folder.absolute()), folder.absolute().name
    work = (given.work or cache_folder() / "throughput").absolute() / name
    bundle = given.bundle or (embedded_bundle() if model == str(MINI) else work / "bundle")
    return Setup(
        model=model,
        synthetic=bool(given.model_synthetic),
        bundle=str(Path(bundle).absolute()),
        work=str(work),
        threads=threads,
        images=tuple(images),
    )
