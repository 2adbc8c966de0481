"""The paper in miniature: every network of LaRE² trained from 275 openly licensed photographs, and its claims measured.

    python -m benchmarks.miniature [--quick] [--work FOLDER] [--model FOLDER] [--out FILE] [--compare FILE]

Stages: photographs → autoencoder → UNet → generated pictures → LaRE → heads → report. Each is kept in ``--work`` under
a key of the protocol (``protocol.py``) and of the photographs; a killed run goes on where it stopped, and a
second run gives the same report from what was kept. With another ``--work``, ``--out`` and ``--compare`` everything is
done again, and figures that leave the intervals of an earlier report are named. In full about 90 minutes on two cores;
``--quick`` takes two and shows that every stage works, not what is true.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common.command import RESULTS, ROOT, run_command, say
from benchmarks.miniature.compare import compare, in_words, read_other
from benchmarks.miniature.dire import measure
from benchmarks.miniature.model import write_model
from benchmarks.miniature.protocol import FULL, QUICK
from benchmarks.miniature.report import contact_sheet, draw, report
from benchmarks.miniature.stages import Work
from lare2_ref import quieten_libraries
from lare2_ref.sources import default_model_folder
from lare2_rt.errors import UsageError
from lare2_rt.host.atomic import write_bytes
from lare2_rt.host.machine import available_threads

RESULT = RESULTS / "miniature.json"
IMAGES = ROOT / "docs/images"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; exit code 0 done, 1 ``--compare`` found a difference, 2 failed, 130 interrupted."""
    given = parser().parse_args(arguments)
    quieten_libraries()
    torch.set_num_threads(given.threads or available_threads())
    return run_command("miniature", lambda: _run(given), interrupted="run the same command again to go on")


def _run(given: argparse.Namespace) -> int:
    """Compute what is missing, write report and figures, and return the exit code."""
    if given.model is not None and given.model.exists():
        raise UsageError(f"{given.model} exists already", remedy="remove it or name another folder")
    work = Work(given.work, QUICK if given.quick else FULL, say)
    say(f"{len(work.rows)} photographs; results are kept in {work.folder}")
    other = read_other(given.compare, work.key) if given.compare is not None else None
    out = given.out or (work.path("report.json") if given.quick else RESULT)
    images = given.images or (IMAGES if out == RESULT else None)
    for folder in (out.parent, images or out.parent):
        folder.mkdir(parents=True, exist_ok=True)  # now, not after an hour
    content = report(work, sweeps=not given.no_sweeps)
    if given.cost_rounds:
        work.note("cost.json", measure(rounds=given.cost_rounds, threads=torch.get_num_threads(), say=say))
    content["cost"] = work.facts("cost.json") if work.path("cost.json").exists() else None
    if given.model is not None:
        shipped = write_model(work, default_model_folder(), given.model)
        work.note("shipped.json", {"head": shipped.name, "validation_auc": shipped.validation})
    content["shipped"] = work.facts("shipped.json") if work.path("shipped.json").exists() else None
    if other is not None:
        content["compared"] = compare(json.loads(json.dumps(content)), other)  # as it will be read
        say(in_words(content["compared"]))
    write_bytes(out, (json.dumps(content, indent=1) + "\n").encode())
    say(f"wrote {out}")
    if images is not None:
        for path in (*draw(content, images), contact_sheet(work, images)):
            say(f"wrote {path}")
    return 1 if content.get("compared", {}).get("outside") else 0


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.miniature", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--quick", action="store_true", help="two minutes; every stage, no findings")
    result.add_argument("--work", type=Path, default=ROOT / ".miniature", help="where stages are kept (.miniature)")
    result.add_argument("--model", type=Path, help="also write the trained model folder here")
    result.add_argument("--out", type=Path, help="the report (benchmarks/results/miniature.json)")
    result.add_argument("--images", type=Path, help="folder of the figures (docs/images; with --out or --quick none)")
    result.add_argument("--compare", type=Path, help="an earlier report; exit code 1 when a figure leaves its interval")
    result.add_argument(
        "--no-sweeps", action="store_true", help="leave out draws, per-image noise and trained timesteps"
    )
    result.add_argument(
        "--cost-rounds", type=int, default=0, help="measure LaRE beside DIRE this often (4 GB; needs a quiet machine)"
    )
    result.add_argument("--threads", type=int, help="CPU threads (what affinity and quota allow)")
    return result


if __name__ == "__main__":
    sys.exit(main())
