"""Speed and fidelity of every way to run LaRE², each beside the PyTorch reference in the same minutes.

    python -m benchmarks.throughput [--model DIR | --model-synthetic sd15] [--bundle DIR] [--images DIR] [--rows A,B]

For every row the reference and the candidate are two resident processes that take turns on the same photographs.
Writes a JSON report with the raw times; ``benchmarks.render`` turns it into the tables of README and docs. A run that
was ended goes on where it stopped: finished rows are kept, by everything that they were measured with.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.command import run_command, say, write_report
from benchmarks.throughput.options import Options, parse
from benchmarks.throughput.profiling import profile
from benchmarks.throughput.session import Session, prepare_bundle
from lare2_rt.errors import OutputError, UsageError
from lare2_rt.host.atomic import check_target, reason
from lare2_rt.host.locks import try_acquire


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line.

    Exit code 0: every row is measured or not usable here; 1: a row failed; 2: nothing could start; 130: interrupted.
    """
    rest = "finished rows are kept, run the same command again"
    return run_command("throughput", lambda: run(parse(arguments)), interrupted=rest)


def run(options: Options) -> int:
    """Measure, write the report and return the exit code; raises Lare2Error when nothing could start."""
    if not Path("/proc/self/status").exists():
        raise UsageError(
            "memory and CPU time of the processes are read from /proc", remedy="run the benchmark on Linux"
        )
    work = Path(options.setup.work)
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {work}: {reason(error)}", remedy="choose another --work") from error
    lock = try_acquire(work / ".lock", "exclusive")
    if lock is None:
        raise UsageError(f"another benchmark is using {work}", remedy="wait for it or choose another --work")
    try:
        say(f"what is built and measured is kept in {work}, what the libraries print in its folder logs")
        prepare_bundle(options.setup, say)
        out = options.out_path(options.setup.opened().manifest.model.name)
        check_target(out, overwrite=True)
        report = profile(options, say) if options.profile else Session(options, say).run()
        write_report(out, report)
    finally:
        lock.release()
    for line in overview(report):
        print(line)
    say(f"wrote {out}")
    return 1 if any(row["status"] == "failed" for row in report.get("rows", ())) else 0


def overview(report: dict[str, Any]) -> list[str]:
    """Return one line a row for the terminal; the tables are those of ``benchmarks.render``."""
    lines = []
    for row in report.get("rows", ()):
        if row["status"] != "measured":
            lines.append(f"{row['name']:26}{row['status']}: {row['reason']}")
            continue
        lare = row["fidelity"]["lare"]["worst_relative_l2"]
        lines.append(
            f"{row['name']:26}{row['latency_ms']['p50']:9.1f} ms {row['speedup']:6.2f} × reference "
            f"{100 * row['share_of_peak']:5.1f} % of peak {row['memory']['peak_bytes'] / 1e9:6.2f} GB  "
            f"LaRE {'broken' if lare is None else f'{lare:.1e}'}"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
