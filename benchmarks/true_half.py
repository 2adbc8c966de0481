"""A true half-precision run of the modules behind the fp16 graphs, by torch's own kernels, on one photograph.

    python -m benchmarks.true_half --image FILE [--model DIR | --synthetic sd15] [--ensemble 1] [--out FILE]

Builds measure half precision by rounding every value (``lare2_export/graph/half.py``). This is the check of that check:
the same modules in torch.float16. A CPU runs half-precision convolutions hundreds of times slower than float32 ones, so
at Stable Diffusion's size one image with one noise draw takes about a quarter of an hour.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.command import add_model_options, model_of, run_command, write_report
from lare2_export.build.options import BuildOptions
from lare2_export.build.plan import plan_geometry
from lare2_export.components import COMPONENTS, Component
from lare2_export.graph.prepare import prepare
from lare2_ref import quieten_libraries
from lare2_ref.sources import ModelSources
from lare2_rt.bundle.noise import draw_noise
from lare2_rt.engines.difference import difference
from lare2_rt.host.machine import available_threads, cpu_facts
from lare2_rt.pixels.preprocess import preprocess

# What of the chain is compared; the noise prediction is shown because LaRE squares it.
SHOWN = ("latent", "noise_prediction", "lare", "embedding", "layer3", "logits", "attention")
Tensors = dict[str, Tensor]


def main() -> int:
    """Run from the command line; exit code 0 within the fp16 tolerances, 1 outside, 2 when nothing was measured."""
    given = parser().parse_args()
    quieten_libraries()
    torch.set_num_threads(available_threads())
    return run_command("true_half", lambda: _measure(given))


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.true_half", description=__doc__.splitlines()[0])
    result.add_argument("--image", type=Path, required=True, help="a photograph")
    add_model_options(result)
    result.add_argument("--ensemble", type=int, default=1, help="noise draws (default: %(default)s)")
    result.add_argument("--out", type=Path, default=Path("benchmarks/results/true-half.json"))
    return result


def _measure(given: argparse.Namespace) -> int:
    report = run(model_of(given), given.image, ensemble=given.ensemble)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_report(given.out, report, indent=2)
    print(", ".join(f"{name} {entry['relative_l2']:.1e}" for name, entry in report["outputs"].items()), given.out)
    return 0 if report["passed"] else 1


@torch.no_grad()
def run(sources: ModelSources, image: Path, *, ensemble: int) -> dict[str, Any]:
    """Run the chain in float32 and in half on one image; one network is in memory at a time."""
    options = BuildOptions(ensemble=ensemble)
    geometry = plan_geometry(sources, options)
    pixels = preprocess(image, options.policy, image_size=geometry.image_size, crop_size=geometry.crop_size)
    noise = draw_noise(options.noise_seed, ensemble, geometry.latent)
    given = {
        "image": torch.from_numpy(pixels.image.copy())[None],
        "crop": torch.from_numpy(pixels.crop.copy())[None],
        "posterior_noise": torch.from_numpy(noise.posterior),
        "noise": torch.from_numpy(noise.ensemble),
    }
    single, half = dict(given), dict(given)
    seconds: dict[str, dict[str, float]] = {}
    tolerance: dict[str, float] = {}
    for component in COMPONENTS:
        module = component.build(sources, geometry)
        prepare(module, profile="native")
        seconds[component.name] = {"float32": _step(component, module, single)}
        module.to_half()
        seconds[component.name]["half"] = _step(component, module, half)
        tolerance |= component.half_tolerance
        del module
        gc.collect()
        print(f"{component.name}: {seconds[component.name]}", file=sys.stderr, flush=True)
    outputs = {}
    for name in SHOWN:
        entry = difference(half[name].numpy(), single[name].numpy()).as_dict()
        outputs[name] = {**entry, "tolerance": tolerance[name], "passed": entry["relative_l2"] <= tolerance[name]}
    return {
        "schema": "lare2-rt/true-half/1",
        "passed": all(entry["passed"] for entry in outputs.values()),
        "model": sources.name,
        "ensemble": ensemble,
        "image": hashlib.sha256(image.read_bytes()).hexdigest(),
        "outputs": outputs,
        "seconds": seconds,
        "machine": {"cpu": cpu_facts()["cpu"], "threads": available_threads(), "torch": torch.__version__},
    }


def _step(component: Component, module: torch.nn.Module, tensors: Tensors) -> float:
    """Run one component of a chain on what the components before it gave; returns the seconds."""
    begin = time.perf_counter()
    outputs = module(*(tensors[name] for name in component.input_names))
    elapsed = time.perf_counter() - begin
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    tensors.update(zip((*component.output_names, *component.probes), outputs, strict=True))
    return round(elapsed, 3)


if __name__ == "__main__":
    sys.exit(main())
