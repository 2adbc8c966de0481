"""What a build and the first verdict from its bundle cost, beside what the dry run said: time, disk and memory.

    python -m benchmarks.build_cost --work DIR [--synthetic sd15 | --model DIR] [--batch N] [--out FILE]

Builds into DIR/bundle, where there must be none, and starts twice in fresh processes: the first checks the hash of
every file, later ones find them in the cache. Exit code 0: all that is promised is kept; 1: something is not, and what;
2: nothing could be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.command import ROOT, add_model_options, model_of, run_command, write_report
from benchmarks.common.facts import memory_gb
from benchmarks.common.resident import child_environment
from lare2_export.build.options import BuildOptions
from lare2_export.build.plan import estimate, exporter_versions, make_plan
from lare2_export.parity.parity_step import photographs
from lare2_ref import quieten_libraries
from lare2_rt.errors import UsageError
from lare2_rt.host.atomic import check_target
from lare2_rt.host.child import Child
from lare2_rt.host.machine import available_threads, cpu_facts

SCHEMA = "lare2-rt/build-cost/1"
_SCRIPT = ROOT / "export/build_engines.py"
_INTERVAL = 0.1  # seconds
_SESSION = 3  # place in /proc/PID/stat after the name
# From here on libraries weigh less than networks, and what is promised in terms of the weights means something.
_FULL_SIZE = 1e9  # bytes of weights


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command took.

    Attributes:
        seconds: from its start to its end; code: exit code; log: its standard error.
        memory_bytes: largest resident size of any one of its processes, as the kernel keeps it.
        together_bytes: largest sum of what its processes held at once; pages that they share count more than once.
        disk_bytes: largest size of all files below the folder, less what was there before.
    """

    seconds: float
    code: int
    log: str
    memory_bytes: int
    together_bytes: int
    disk_bytes: int


def main() -> int:
    """Run from the command line."""
    given = parser().parse_args()
    quieten_libraries()
    return run_command("build_cost", lambda: _measure(given))


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.build_cost", description=__doc__.splitlines()[0])
    result.add_argument("--work", type=Path, help="folder for the bundle, on the disk that is to be measured")
    add_model_options(result)
    result.add_argument("--batch", type=int, action="append", help="as for build_engines.py (default: 1 and 4)")
    result.add_argument("--out", type=Path, help="report (default: benchmarks/results/build-MODEL.json)")
    return result


def _measure(given: argparse.Namespace) -> int:
    report = run(given)
    for sentence in report["broken"]:
        print(f"build_cost: {sentence}", file=sys.stderr)
    return 1 if report["broken"] else 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything and write the report; raises Lare2Error."""
    sources = model_of(options)
    out = options.out or Path(f"benchmarks/results/build-{sources.name}.json")
    check_target(out, overwrite=True)
    if options.work is None or not options.work.is_dir() or (options.work / "bundle").exists():
        raise UsageError(
            "the bundle needs a folder of its own", remedy="name with --work one that exists and holds no 'bundle'"
        )
    batches = tuple(sorted(set(options.batch or (1, 4))))
    need = estimate(make_plan(sources, BuildOptions(batches=batches)))
    which = ["--synthetic", options.synthetic] if options.synthetic else ["--model", str(options.model)]
    which += [word for batch in batches for word in ("--batch", str(batch))]
    bundle = options.work / "bundle"
    environment = child_environment(LARE2_CACHE=str((options.work / "cache").absolute()))
    load = os.getloadavg()[0]
    command = [sys.executable, str(_SCRIPT), "--out", str(bundle), *which]
    cost = watch(command, options.work, environment=environment)
    if cost.code != 0:
        raise UsageError(f"the build ended with {cost.code}", remedy="see its last line above")
    time.sleep(3)  # only files that have stood still for a while are remembered by their hash
    starts = [start(bundle, photographs()[0], environment) for _ in ("checks every file", "finds them in the cache")]
    report = {
        "schema": SCHEMA,
        "model": sources.name,
        "batches": list(batches),
        "said": {"disk_bytes": need.bundle, "memory_bytes": need.memory},
        "weights_bytes": sum(need.weights.values()),
        "bundle_bytes": disk_size(bundle),
        "build": {
            "seconds": round(cost.seconds, 1),
            **{name: getattr(cost, name) for name in ("disk_bytes", "memory_bytes", "together_bytes")},
        },
        "start": {"first": starts[0], "later": starts[1]},
        "machine": _machine(load),
        "packages": {**exporter_versions(), "onnxruntime": starts[0].pop("engine_version")},
    }
    starts[1].pop("engine_version")
    report["broken"] = broken(report)
    write_report(out, report, indent=2)
    print(out)
    return report


def _machine(load: float) -> dict[str, Any]:
    return {
        "cpu": cpu_facts()["cpu"],
        "threads": available_threads(),
        "memory_gb": memory_gb(),
        "python": platform.python_version(),
        "load_before": round(load, 2),
    }


def start(bundle: Path, photo: str | Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what a start costs in a process of its own; raises UsageError."""
    child = Child("benchmarks.build_cost.start", bundle, photo, env=environment, text=True)
    try:
        said = child.stdout.read()
        if child.wait() != 0:
            raise UsageError(f"{bundle} could not be started: the process {child.ending()}", remedy="build it again")
    finally:
        child.close()
    result: dict[str, Any] = json.loads(said)
    return result


def watch(command: Sequence[str], folder: Path, *, environment: Mapping[str, str]) -> Cost:
    """Run a command in a session of its own, its lines shown on standard error, and say what it took. Linux only."""
    before, peaks = disk_size(folder), [0, 0, 0]
    ended = threading.Event()
    begin = time.monotonic()
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=dict(environment)
    )

    def sample() -> None:
        while not ended.wait(_INTERVAL):
            own, together = memory(process.pid)
            for index, value in enumerate((own, together, disk_size(folder) - before)):
                peaks[index] = max(peaks[index], value)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    lines = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            sys.stderr.write(line)
        code = process.wait()
    finally:
        ended.set()
        sampler.join()
        process.kill()
    return Cost(time.monotonic() - begin, code, "".join(lines), *peaks)


def memory(session: int) -> tuple[int, int]:
    """Return the largest peak of any process of a session, and what all of them hold now, in bytes."""
    peak = together = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[_SESSION]) != session:
                continue
            status = dict(line.split(":", 1) for line in stat.with_name("status").read_text().splitlines())
        except (OSError, ValueError):  # it has just ended
            continue
        peak = max(peak, _kilobytes(status.get("VmHWM")))
        together += _kilobytes(status.get("VmRSS"))
    return peak, together


def _kilobytes(field: str | None) -> int:
    return int(field.split()[0]) * 1024 if field else 0


def disk_size(folder: Path) -> int:
    """Return the size of all files below a folder, in bytes; files that go meanwhile count as gone."""
    total = 0
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except OSError:
            continue
        total += 0 if path.is_dir() else status.st_size
    return total


def broken(report: dict[str, Any]) -> list[str]:
    """Return a sentence for everything that is promised and not kept; what is promised by the weights at full size."""
    said, build, weights = report["said"], report["build"], report["weights_bytes"]
    later = report["start"]["later"]
    beyond = sum(later[name] for name in ("import_s", "load_s", "first_verdict_s")) - later["inference_s"]
    checks = [
        (abs(said["disk_bytes"] / build["disk_bytes"] - 1) <= 0.05, "the dry run's disk is more than 5 % off"),
        (said["memory_bytes"] >= build["memory_bytes"], "the dry run said less memory than was taken"),
        (said["memory_bytes"] <= 1.4 * build["memory_bytes"], "the dry run said over 40 % more memory than was taken"),
    ]
    if weights >= _FULL_SIZE:
        checks += [
            (build["seconds"] <= 15 * 60, "the build took over 15 minutes"),
            (build["memory_bytes"] <= 14e9, "a process of the build held over 14 GB"),
            (build["disk_bytes"] <= 2.2 * weights, "the build took over 2.2 times the weights on the disk"),
            (report["bundle_bytes"] <= 1.05 * weights, "the bundle is over 1.05 times its weights"),
            (later["memory_bytes"] <= 1.5 * weights, "the engine held over 1.5 times the weights"),
            (beyond <= 10, "the first verdict took over 10 seconds more than an inference"),
        ]
    return [sentence for kept, sentence in checks if not kept]


if __name__ == "__main__":
    sys.exit(main())
