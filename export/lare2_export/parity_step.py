"""Measuring a staged bundle. Runs in a process of its own, and never holds the reference and the engine at once."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch

from lare2_ref.sources import load_reference
from lare2_rt.bundle import Bundle
from lare2_rt.manifest import Manifest
from lare2_rt.noise import Noise
from lare2_rt.preprocess import preprocess

from .isolate import Report
from .parity import measure, reference_arrays
from .pictures import procedural_pictures
from .plan import Plan


def measure_parity(plan: Plan, draft: Manifest, folder: Path, noise: Noise, *, report: Report) -> dict[str, Any]:
    """Return the content of ``parity.json`` for the bundle in ``folder``, whose manifest is ``draft``."""
    options, method = plan.options, draft.method
    torch.set_num_threads(options.threads)
    pictures = [
        preprocess(picture, options.policy, image_size=method.image_size, crop_size=method.crop_size)
        for picture in (options.images or procedural_pictures())
    ]
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
    return measure(expected, Bundle(folder, draft, noise), pictures, rule=rule, threads=options.threads)
