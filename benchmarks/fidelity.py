"""How faithful every engine is on real photographs, component by component, against the reference.

    python -m benchmarks.fidelity --model-synthetic sd15 --images DIR [--limit 32] [--engines A,B]

No speed is measured here; the throughput benchmark has a few photographs beside every time, this has many. Writes a
JSON report; ``benchmarks.render`` turns it into the table of docs/cpu.md. A run that was ended goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common.command import RESULTS, run_command, say, write_report
from benchmarks.common.kept import kept_images
from benchmarks.common.resident import FailedError, RefusedError
from benchmarks.throughput.builds import Builder
from benchmarks.throughput.measure import ImageArrays, compare
from benchmarks.throughput.options import add_setup_options, find_images, setup_of
from benchmarks.throughput.rows import BUILDS, ENGINES, Build, here, predictions
from benchmarks.throughput.session import header, prepare_bundle
from benchmarks.throughput.setup import PREDICTIONS, TRUTH, Setup
from lare2_rt.detection import DecisionRule
from lare2_rt.engines.registry import entry_of
from lare2_rt.errors import UsageError
from lare2_rt.host.atomic import check_target
from lare2_rt.host.integrity import sha256_of

SCHEMA = "lare2-rt/fidelity/1"
# What the default of every engine has to keep, relative L2, and the logit in its standard deviations.
LIMITS = {"latent": 3e-4, "noise_prediction": 3e-4, "lare": 1e-3}
LOGIT_LIMIT = 1e-2
# Where logits hardly differ between photographs, a difference in units of their spread says nothing.
LEAST_SPREAD = 1e-2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; exit code 0 within the limits, 1 outside or failed, 2 when nothing could start."""
    rest = "finished engines are kept, run the same command again"
    return run_command("fidelity", lambda: _overview(run(parser().parse_args(arguments))), interrupted=rest)


def _overview(report: dict[str, Any]) -> int:
    engines = report["engines"]
    for name, entry in engines.items():
        print(f"{name:14}{entry['reason'] if 'reason' in entry else 'within' if entry['passed'] else 'OUTSIDE'}")
    return 0 if all(entry.get("passed", "reason" in entry) for entry in engines.values()) else 1


def parser() -> argparse.ArgumentParser:
    """Return the parser: the throughput benchmark's options for the model, without those of its rows."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", description=__doc__.splitlines()[0])
    add_setup_options(result, "fidelity", images=32)
    result.add_argument("--images", type=Path, required=True, help="folder of photographs, searched recursively")
    result.add_argument("--engines", default=",".join(ENGINES), help="names separated by commas (default: %(default)s)")
    return result


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measure every engine, write the report and return it; raises Lare2Error when nothing could start."""
    names = [name.strip() for name in given.engines.split(",")]
    for name in names:
        entry_of(name)
    if given.limit < 2:
        raise UsageError("the logit is judged by its spread over the images", remedy="set --limit to at least 2")
    setup = setup_of(given, find_images([given.images], given.limit))
    Path(setup.work).mkdir(parents=True, exist_ok=True)
    prepare_bundle(setup, say)
    out = given.out or RESULTS / f"fidelity-{setup.opened().manifest.model.name}.json"
    check_target(out, overwrite=True)
    report = measure(setup, names, say)
    write_report(out, report)
    say(f"wrote {out}")
    return report


def measure(setup: Setup, names: Sequence[str], report: Callable[[str], None]) -> dict[str, Any]:
    """Return the report; each engine is kept like a build. Raises RefusedError or FailedError for the reference."""
    begin = header(setup, SCHEMA)
    builder = Builder(setup, BUILDS | builds(names), identity=begin["identity"], report=report)
    prepared = builder.get("fidelity-reference").result
    truth = kept_images(setup.folder("fidelity-reference") / TRUTH)
    engines: dict[str, Any] = {}
    manifest = setup.opened().manifest
    for name in names:
        try:
            facts = builder.get(f"fidelity-{name}").result
        except (RefusedError, FailedError) as error:
            report(f"{name}: {error}")
            engines[name] = {"reason": str(error).replace(setup.work, "the work folder")}
            continue
        found = kept_images(setup.folder(f"fidelity-{name}") / PREDICTIONS)
        entry = compare(found, truth, prepared["logit_standard_deviation"])
        flips = flipped(found, truth, manifest.rule)
        engines[name] = {**facts, "fidelity": entry, "flips": flips, "passed": passes(entry) and not flips}
    return {
        **begin,
        # Hashes and not names: the photographs are the user's own.
        "images": [sha256_of(Path(path)) for path in setup.images],
        "limits": {**LIMITS, "logit": LOGIT_LIMIT},
        "logit_standard_deviation": prepared["logit_standard_deviation"],
        "engines": engines,
    }


def flipped(found: ImageArrays, truth: ImageArrays, rule: DecisionRule) -> int | None:
    """Return how many images get another verdict than the reference gives; None for a bundle that gives none."""
    if not rule.decides:
        return None

    def verdicts(arrays: ImageArrays) -> list[str]:
        return [rule.verdict(rule.probability(one["logits"][0])) for one in arrays]

    return sum(a != b for a, b in zip(verdicts(found), verdicts(truth), strict=True))


def passes(entry: dict[str, Any]) -> bool:
    """Return whether every figure is within its limit; a missing or a broken one is not."""
    values = {name: (entry[name] or {}).get("worst_relative_l2") for name in LIMITS}
    logit, spread = entry["logit"]["over_standard_deviation"], entry["logit"]["standard_deviation"]
    arrays = all(value is not None and value <= LIMITS[name] for name, value in values.items())
    return arrays and spread >= LEAST_SPREAD and logit is not None and logit <= LOGIT_LIMIT


def builds(names: Sequence[str]) -> dict[str, Build]:
    """Return what is computed once for these photographs: the reference, and every engine."""
    truth = replace(BUILDS["reference"], function=here("reference:true_arrays"), arguments=("fidelity-reference",))
    return {"fidelity-reference": truth, **{f"fidelity-{n}": predictions(n, f"fidelity-{n}") for n in names}}


if __name__ == "__main__":
    sys.exit(main())
