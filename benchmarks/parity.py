"""How far a bundle is from the PyTorch reference on real photographs.

    python -m benchmarks.parity --images DIR [--bundle DIR] [--model DIR | --synthetic sd15] [--limit N] [--out FILE]

Writes a JSON report: per component, LaRE, logits and probability, with hashes of the images and not the images.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import sys
from pathlib import Path
from typing import Any

from benchmarks.common.command import add_model_options, model_of, run_command, write_report
from benchmarks.common.reference import accurate_reference, check_sources
from lare2_export.parity.measure import has_half, measure, measure_half, reference_arrays, with_half
from lare2_export.parity.parity_step import pixels_of
from lare2_export.parity.tolerances import worst_component
from lare2_ref import quieten_libraries
from lare2_ref.sources import ModelSources
from lare2_rt.bundle.locate import embedded_bundle
from lare2_rt.bundle.opening import Bundle, open_bundle
from lare2_rt.errors import UsageError
from lare2_rt.host.machine import available_threads, cpu_facts
from lare2_rt.pixels.decode import SUFFIXES


def main() -> int:
    """Run from the command line; exit code 0 within tolerance, 1 outside, 2 when nothing could be measured."""
    given = parser().parse_args()
    quieten_libraries()
    return run_command("parity", lambda: _measure(given))


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__.splitlines()[0])
    result.add_argument("--images", type=Path, required=True, help="folder of photographs, searched recursively")
    result.add_argument("--bundle", type=Path, default=embedded_bundle(), help="bundle (default: the embedded one)")
    add_model_options(result)
    result.add_argument("--limit", type=int, default=64, help="number of images, evenly spread (default: %(default)s)")
    result.add_argument("--out", type=Path, default=Path("benchmarks/results/parity.json"), help="default: %(default)s")
    return result


def _measure(given: argparse.Namespace) -> int:
    report = run(open_bundle(given.bundle), model_of(given), spread(given.images, given.limit))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_report(given.out, report, indent=2)
    name, value = worst_component(report)
    gap = report["end_to_end"]["probability"]["max_difference"]
    verdict = "within" if report["passed"] else "OUTSIDE"
    print(
        f"{len(report['image_files'])} images, {verdict} tolerance: worst component {name} {value:.1e} relative L2, "
        f"probability difference {gap:.1e}; {given.out}"
    )
    return 0 if report["passed"] else 1


def spread(folder: Path, limit: int) -> list[Path]:
    """Return at most ``limit`` images below a folder, evenly spread over its sorted listing; raises UsageError."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found or limit < 1:
        raise UsageError(f"no images below {folder}", remedy="name a folder of photographs with --images")
    count = min(limit, len(found))
    return [found[index * len(found) // count] for index in range(count)]


def run(bundle: Bundle, sources: ModelSources, files: list[Path]) -> dict[str, Any]:
    """Measure a bundle against its sources on image files; raises UsageError when they do not belong together."""
    manifest = bundle.manifest
    check_sources(sources, bundle)
    pictures = [pixels_of(path, manifest.policy, manifest.method) for path in files]
    reference = accurate_reference(sources, bundle)
    expected = reference_arrays(reference, pictures)
    del reference  # 4 GB at full size, and the engine is still to come
    threads = available_threads()
    report = measure(expected, bundle, pictures, rule=manifest.rule, threads=threads)
    if has_half(manifest):
        report = with_half(report, measure_half(expected, bundle, rule=manifest.rule, threads=threads))
    return {
        **report,
        "bundle": {"name": manifest.model.name, "id": manifest.id},
        "image_files": [hashlib.sha256(path.read_bytes()).hexdigest() for path in files],
        "machine": {"cpu": cpu_facts()["cpu"], "threads": threads, "python": platform.python_version()},
    }


if __name__ == "__main__":
    sys.exit(main())
