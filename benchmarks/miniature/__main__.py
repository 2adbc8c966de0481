#!/usr/bin/env python3
"""The paper in miniature: every network of LaRE² trained from 275 openly licensed photographs, and its claims measured.

    python -m benchmarks.miniature [--quick] [--work FOLDER] [--model FOLDER] [--out FILE] [--compare FILE]

Stages: photographs → autoencoder → UNet → generated pictures → LaRE → heads → report. Each is kept in ``--work`` under
a key of the protocol (``miniature_protocol.py``) and of the photographs; a killed run goes on where it stopped, and a
second run gives the same report from what was kept. With another ``--work``, ``--out`` and ``--compare`` everything is
done again, and figures that leave the intervals of an earlier report are named. In full about 90 minutes on two cores;
``--quick`` takes two and shows that every stage works, not what is true.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.miniature.compare import compare, in_words, read_other
from benchmarks.miniature.dire import measure
from benchmarks.miniature.figures import contact_sheet, draw
from benchmarks.miniature.model import write_model
from benchmarks.miniature.protocol import FULL, QUICK
from benchmarks.miniature.report import report
from benchmarks.miniature.stages import Work
from benchmarks.miniature.training import Say
from lare2_ref.quiet import quieten_libraries
from lare2_ref.sources import default_model_folder
from lare2_rt.host.atomic import write_bytes
from lare2_rt.host.machine import available_threads

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks/results/miniature.json"
IMAGES = ROOT / "docs/images"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; exit code 0 done, 1 ``--compare`` found a difference, 2 failed, 130 interrupted."""
    given = _parser().parse_args(arguments)
    begin = time.monotonic()

    def say(line: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - begin:7.1f} s] {line}\n")
        sys.stderr.flush()

    quieten_libraries()
    torch.set_num_threads(given.threads or available_threads())
    if given.model is not None and given.model.exists():
        sys.stderr.write(f"miniature: {given.model} exists already; remove it or name another folder\n")
        return 2
    try:
        content = _run(given, say)
    except ValueError as error:
        sys.stderr.write(f"miniature: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"miniature: {error}; free some space or name another --work\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("miniature: interrupted; run the same command again to go on\n")
        return 130
    return 1 if content.get("compared", {}).get("outside") else 0


def _run(given: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Compute what is missing, write report and figures, and return the report."""
    work = Work(given.work, QUICK if given.quick else FULL, say)
    say(f"{len(work.rows)} photographs; results are kept in {work.folder}")
    other = read_other(given.compare, work.key) if given.compare is not None else None
    out = given.out or (work.path("report.json") if given.quick else RESULT)
    images = given.images or (IMAGES if out == RESULT else None)
    for folder in (out.parent, images or out.parent):
        folder.mkdir(parents=True, exist_ok=True)  # now, not after an hour
    content = report(work, sweeps=not given.no_sweeps)
    content["cost"] = _cost(work, given.cost_rounds) if given.cost_rounds else _kept_cost(work)
    if given.model is not None:
        shipped = write_model(work, default_model_folder(), given.model)
        work.note("shipped.json", {"head": shipped.name, "validation_auc": shipped.validation})
    shipped_file = work.path("shipped.json")
    content["shipped"] = json.loads(shipped_file.read_text()) if shipped_file.exists() else None
    if other is not None:
        content["compared"] = compare(json.loads(json.dumps(content)), other)  # as it will be read
        say(in_words(content["compared"]))
    write_bytes(out, (json.dumps(content, indent=1) + "\n").encode())
    say(f"wrote {out}")
    if images is not None:
        for path in (*draw(content, images), contact_sheet(work, images)):
            say(f"wrote {path}")
    return content


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two minutes; every stage, no findings")
    parser.add_argument("--work", type=Path, default=ROOT / ".miniature", help="where stages are kept (.miniature)")
    parser.add_argument("--model", type=Path, help="also write the trained model folder here")
    parser.add_argument("--out", type=Path, help="the report (benchmarks/results/miniature.json)")
    parser.add_argument("--images", type=Path, help="folder of the figures (docs/images; with --out or --quick none)")
    parser.add_argument("--compare", type=Path, help="an earlier report; exit code 1 when a figure leaves its interval")
    parser.add_argument(
        "--no-sweeps", action="store_true", help="leave out draws, per-image noise and trained timesteps"
    )
    parser.add_argument(
        "--cost-rounds", type=int, default=0, help="measure LaRE beside DIRE this often (4 GB; needs a quiet machine)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (what affinity and quota allow)")
    return parser


def _cost(work: Work, rounds: int) -> object:
    work.note("cost.json", measure(rounds=rounds, threads=torch.get_num_threads(), say=work.say))
    return work.facts("cost.json")


def _kept_cost(work: Work) -> object:
    return work.facts("cost.json") if work.path("cost.json").exists() else None


if __name__ == "__main__":
    sys.exit(main())
