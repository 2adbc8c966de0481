#!/usr/bin/env python3
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
import time
from pathlib import Path
from typing import Any

from benchmarks.build_cost.watch import Cost, disk_size, watch
from benchmarks.parity import cpu_name
from lare2_export.build.estimate import estimate
from lare2_export.build.keys import exporter_versions
from lare2_export.build.options import BuildOptions
from lare2_export.build.plan import make_plan
from lare2_export.parity.photographs import photographs
from lare2_ref.quiet import quieten_libraries
from lare2_ref.sources import default_model_folder, open_model_folder
from lare2_ref.synthetic import synthetic
from lare2_rt.errors import Lare2Error, UsageError
from lare2_rt.host.atomic import atomic_text, check_target
from lare2_rt.host.machine import available_threads

SCHEMA = "lare2-rt/build-cost/1"
_SCRIPT = Path(__file__).parents[2] / "export/build_engines.py"
# From here on libraries weigh less than networks, and what is promised in terms of the weights means something.
_FULL_SIZE = 1e9  # bytes of weights


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder for the bundle, on the disk that is to be measured")
    parser.add_argument("--model", type=Path, default=default_model_folder(), help="model folder (default: mini)")
    parser.add_argument("--synthetic", choices=["sd15"], help="instead of --model: these seeded weights")
    parser.add_argument("--batch", type=int, action="append", help="as for build_engines.py (default: 1 and 4)")
    parser.add_argument("--out", type=Path, help="report (default: benchmarks/results/build-MODEL.json)")
    options = parser.parse_args()
    quieten_libraries()
    try:
        report = run(options)
    except Lare2Error as error:
        print(f"build_cost: {error}", file=sys.stderr)
        return 2
    for sentence in report["broken"]:
        print(f"build_cost: {sentence}", file=sys.stderr)
    return 1 if report["broken"] else 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything and write the report; raises Lare2Error."""
    sources = synthetic(options.synthetic) if options.synthetic else open_model_folder(options.model)
    out = options.out or Path(f"benchmarks/results/build-{sources.name}.json")
    check_target(out, overwrite=True)
    if options.work is None or not options.work.is_dir() or (options.work / "bundle").exists():
        raise UsageError("name with --work a folder that exists and holds no 'bundle'")
    batches = tuple(sorted(set(options.batch or (1, 4))))
    need = estimate(make_plan(sources, BuildOptions(batches=batches)))
    which = ["--synthetic", options.synthetic] if options.synthetic else ["--model", str(options.model)]
    which += [word for batch in batches for word in ("--batch", str(batch))]
    bundle = options.work / "bundle"
    environment = {**os.environ, "LARE2_CACHE": str(options.work / "cache")}
    load = os.getloadavg()[0]
    command = [sys.executable, str(_SCRIPT), "--out", str(bundle), *which]
    cost = watch(command, options.work, environment=environment)
    if cost.code != 0:
        raise UsageError(f"the build ended with {cost.code}", remedy="see its last line above")
    time.sleep(3)  # only files that have stood still for a while are remembered by their hash
    starts = [_started(bundle, environment) for _ in ("checks every file", "finds them in the cache")]
    report = {
        "schema": SCHEMA,
        "model": sources.name,
        "batches": list(batches),
        "said": {"disk_bytes": need.bundle, "memory_bytes": need.memory},
        "weights_bytes": sum(need.weights.values()),
        "bundle_bytes": disk_size(bundle),
        "build": _build(cost),
        "start": {"first": starts[0], "later": starts[1]},
        "machine": _machine(load),
        "packages": {**exporter_versions(), "onnxruntime": starts[0].pop("engine_version")},
    }
    starts[1].pop("engine_version")
    report["broken"] = broken(report)
    with atomic_text(out) as stream:
        stream.write(json.dumps(report, indent=2, sort_keys=True) + "\n")
    print(out)
    return report


def _build(cost: Cost) -> dict[str, float]:
    return {
        "seconds": round(cost.seconds, 1),
        "disk_bytes": cost.disk_bytes,
        "memory_bytes": cost.memory_bytes,
        "together_bytes": cost.together_bytes,
    }


def _machine(load: float) -> dict[str, Any]:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu_name(),
        "threads": available_threads(),
        "memory_gb": round(total / 1e9, 1),
        "python": platform.python_version(),
        "load_before": round(load, 2),
    }


def _started(bundle: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Return what a start costs in a process of its own."""
    command = [sys.executable, str(_START), str(bundle), photographs()[0]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise UsageError(f"{bundle} could not be started", remedy="see above")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


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
