#!/usr/bin/env python3
"""How far a bundle is from the PyTorch reference on real photographs.

    python -m benchmarks.parity --images DIR [--bundle DIR] [--model DIR | --synthetic sd15] [--limit N] [--out FILE]

Writes a JSON report: per component, LaRE, logits and probability, with hashes of the images and not the images.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

from lare2_export.parity.half_parity import has_half, measure_half, with_half
from lare2_export.parity.measure import measure, reference_arrays, worst_component
from lare2_export.parity.parity_step import pixels_of
from lare2_ref.quiet import quieten_libraries
from lare2_ref.sources import ModelSources, default_model_folder, load_reference, open_model_folder
from lare2_ref.synthetic import synthetic
from lare2_rt.bundle.locate import embedded_bundle
from lare2_rt.bundle.opening import Bundle, open_bundle
from lare2_rt.errors import Lare2Error, UsageError
from lare2_rt.host.atomic import atomic_text
from lare2_rt.host.machine import available_threads
from lare2_rt.pixels.decode import SUFFIXES


def main() -> int:
    """Run from the command line; exit code 0 within tolerance, 1 outside, 2 when nothing could be measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs, searched recursively")
    parser.add_argument("--bundle", type=Path, default=embedded_bundle(), help="bundle (default: the embedded one)")
    parser.add_argument("--model", type=Path, default=default_model_folder(), help="its model folder (default: mini)")
    parser.add_argument("--synthetic", choices=["sd15"], help="instead of --model: the weights are these seeded ones")
    parser.add_argument("--limit", type=int, default=64, help="number of images, evenly spread (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/parity.json"), help="default: %(default)s")
    options = parser.parse_args()
    quieten_libraries()
    try:
        sources = synthetic(options.synthetic) if options.synthetic else open_model_folder(options.model)
        report = run(open_bundle(options.bundle), sources, spread(options.images, options.limit))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_text(options.out) as stream:
            stream.write(json.dumps(report, indent=2, sort_keys=True) + "\n")
    except Lare2Error as error:
        print(f"parity: {error}", file=sys.stderr)
        return 2
    name, value = worst_component(report)
    gap = report["end_to_end"]["probability"]["max_difference"]
    verdict = "within" if report["passed"] else "OUTSIDE"
    print(
        f"{len(report['image_files'])} images, {verdict} tolerance: worst component {name} {value:.1e} relative L2, "
        f"probability difference {gap:.1e}; {options.out}"
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
    ours = {record.role: record.sha256 for record in sources.records()}
    for source in manifest.sources:
        if ours[source.role] != source.sha256:
            raise UsageError(
                f"{bundle.path} was not built from these weights ({source.role} differs)", remedy="check --model"
            )
    pictures = [pixels_of(path, manifest.policy, manifest.method) for path in files]
    reference = load_reference(
        sources,
        noise=bundle.noise,
        prompt=manifest.method.prompt,
        timestep=manifest.method.timestep,
        policy=manifest.policy,
        image_size=manifest.method.image_size,
    )
    expected = reference_arrays(reference, pictures)
    del reference  # 4 GB at full size, and the engine is still to come
    report = measure(
        expected,
        bundle,
        pictures,
        rule=manifest.rule,
        threads=available_threads(),
    )
    if has_half(manifest):
        half = measure_half(expected, bundle, rule=manifest.rule, threads=available_threads())
        report = with_half(report, half)
    return {
        **report,
        "bundle": {"name": manifest.model.name, "id": manifest.id},
        "image_files": [hashlib.sha256(path.read_bytes()).hexdigest() for path in files],
        "machine": {"cpu": cpu_name(), "threads": available_threads(), "python": platform.python_version()},
    }


def cpu_name() -> str:
    """Return the processor's model name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
