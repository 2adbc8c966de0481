"""How the benchmarks' commands start, report and end."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lare2_rt.errors import Lare2Error
from lare2_rt.host.atomic import atomic_text
from lare2_rt.host.console import Interrupted

if TYPE_CHECKING:
    from lare2_ref.sources import ModelSources

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"
_BEGIN = time.perf_counter()


def run_command(name: str, work: Callable[[], int], *, interrupted: str = "") -> int:
    """Return the exit code of ``work``; 2 and a sentence for an error, 130 or 143 where a signal ended it.

    Args:
        interrupted: what is told of a run that a signal ended.
    """
    try:
        return work()
    except Lare2Error as error:
        print(f"{name}: {error}", file=sys.stderr)
    except OSError as error:
        print(f"{name}: {error}; free some space or name another folder", file=sys.stderr)
    except KeyboardInterrupt as error:
        ending = Interrupted(error)
        print(f"{name}: {ending}{interrupted and f'; {interrupted}'}", file=sys.stderr)
        return ending.code
    return 2


def say(line: str) -> None:
    """Write one line of progress with the time since the start."""
    print(f"[{time.perf_counter() - _BEGIN:7.1f} s] {line}", file=sys.stderr, flush=True)


def write_report(path: Path, report: Any, *, indent: int = 1) -> None:  # noqa: ANN401 - plain data
    """Write a report as JSON with sorted keys, whole or not at all; raises OutputError."""
    with atomic_text(path) as stream:
        stream.write(json.dumps(report, indent=indent, sort_keys=True, allow_nan=False) + "\n")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--model`` and ``--synthetic``, of which ``model_of`` makes the sources."""
    from lare2_ref.sources import default_model_folder

    parser.add_argument("--model", type=Path, default=default_model_folder(), help="model folder (default: mini)")
    parser.add_argument("--synthetic", choices=["sd15"], help="instead of --model: these seeded weights")


def model_of(given: argparse.Namespace) -> ModelSources:
    """Return the sources that a command line names; raises SourceError."""
    from lare2_ref.sources import open_model_folder
    from lare2_ref.synthetic import synthetic

    return synthetic(given.synthetic) if given.synthetic else open_model_folder(given.model)
