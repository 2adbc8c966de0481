"""Measuring a staged bundle. Runs in a process of its own, and never holds the reference and the engine at once."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lare2_ref import quieten_libraries
from lare2_ref.sources import load_reference
from lare2_rt.bundle.manifest import Manifest, Method
from lare2_rt.bundle.noise import Noise
from lare2_rt.bundle.opening import Bundle
from lare2_rt.detection import DecisionRule
from lare2_rt.errors import ImageError
from lare2_rt.pixels.decode import ImageSource, source_name
from lare2_rt.pixels.policy import Preprocessing
from lare2_rt.pixels.preprocess import Pixels, preprocess
from lare2_rt.pixels.procedural import procedural_pictures

from ..build.isolate import Report
from ..build.plan import Plan
from ..graph.half import Arrays
from .measure import measure, measure_half, reference_arrays, with_half


@dataclass(frozen=True, slots=True)
class Measured:
    """Results of a parity run.

    Attributes:
        report: content of ``parity.json``, float32.
        selfcheck: the reference's logits and LaRE on the procedural pictures, float32 [n,2+C·h·w].
        expected: every input and output of every component, by name, for each picture; rule: for verdict flips.
    """

    report: dict[str, Any]
    selfcheck: NDArray[np.float32]
    expected: list[Arrays]
    rule: DecisionRule


def measure_parity(plan: Plan, draft: Manifest, folder: Path, noise: Noise, *, report: Report) -> Measured:
    """Measure the float32 graphs of the bundle in ``folder``, whose manifest is ``draft``."""
    options, method = plan.options, draft.method
    quieten_libraries()
    torch.set_num_threads(options.threads)
    procedural = procedural_pictures()
    sources: list[ImageSource] = [*procedural, *(options.images or photographs())]
    pictures = [pixels_of(source, options.policy, method) for source in sources]
    report(f"  reference on {len(pictures)} images")
    reference = load_reference(
        plan.sources,
        noise=noise,
        prompt=options.prompt,
        timestep=options.timestep,
        policy=options.policy,
        image_size=options.image_size,
    )
    expected = reference_arrays(reference, pictures)
    rule = reference.identity.rule
    del reference
    gc.collect()
    report("  exported components and chain")
    selfcheck = np.stack([np.concatenate([a["logits"][0], a["lare"][0].ravel()]) for a in expected[: len(procedural)]])
    figures = measure(expected, Bundle(folder, draft, noise), pictures, rule=rule, threads=options.threads)
    return Measured(figures, selfcheck, expected, rule)


def measure_half_parity(
    plan: Plan, draft: Manifest, folder: Path, noise: Noise, measured: Measured, *, report: Report
) -> dict[str, Any]:
    """Add the half-precision part to a parity report; in its own process, because it takes as much memory again."""
    report(f"  every value rounded to half, on {len(measured.expected)} images")
    bundle = Bundle(folder, draft, noise)
    half = measure_half(measured.expected, bundle, rule=measured.rule, threads=plan.options.threads)
    return with_half(measured.report, half)


def pixels_of(source: ImageSource, policy: Preprocessing, method: Method) -> Pixels:
    """Preprocess a picture; raises ImageError with its name."""
    try:
        return preprocess(source, policy, image_size=method.image_size, crop_size=method.crop_size)
    except ImageError as error:
        raise ImageError(f"{source_name(source)}: {error.problem}", remedy=error.remedy) from error


def photographs() -> tuple[str, ...]:
    """Return the paths of the photographs that come with the package (``photos/ATTRIBUTION.md``)."""
    folder = Path(__file__).parent / "photos"
    return tuple(str(path) for path in sorted(folder.iterdir()) if path.suffix in (".jpg", ".png"))
