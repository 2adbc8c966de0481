"""Measuring a staged bundle. Runs in a process of its own, and never holds the reference and the engine at once."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lare2_ref.quiet import quieten_libraries
from lare2_ref.sources import load_reference
from lare2_rt.bundle import Bundle
from lare2_rt.decode import ImageSource
from lare2_rt.manifest import Manifest
from lare2_rt.noise import Noise
from lare2_rt.pictures import procedural_pictures
from lare2_rt.preprocess import preprocess

from .isolate import Report
from .parity import measure, reference_arrays
from .photographs import photographs
from .plan import Plan


def measure_parity(
    plan: Plan, draft: Manifest, folder: Path, noise: Noise, *, report: Report
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Measure the bundle in ``folder``, whose manifest is ``draft``.

    Returns the content of ``parity.json``, and for the self-check of engines the reference's logits and LaRE on the
    procedural pictures: float32 [n,2+C·h·w].
    """
    options, method = plan.options, draft.method
    quieten_libraries()
    torch.set_num_threads(options.threads)
    procedural = procedural_pictures()
    sources: list[ImageSource] = [*procedural, *(options.images or photographs())]
    pictures = [
        preprocess(picture, options.policy, image_size=method.image_size, crop_size=method.crop_size)
        for picture in sources
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
    selfcheck = np.stack([np.concatenate([a["logits"][0], a["lare"][0].ravel()]) for a in expected[: len(procedural)]])
    return measure(expected, Bundle(folder, draft, noise), pictures, rule=rule, threads=options.threads), selfcheck
