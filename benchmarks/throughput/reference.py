"""What every row needs from the reference, computed once: the true arrays, the best layouts, the amount of work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.common.kept import keep_images
from benchmarks.common.reference import check_sources
from benchmarks.throughput.eager import (
    LAYOUTS,
    TUNED,
    Layout,
    converter,
    first_layer,
    load_accurate,
    load_plain,
    networks,
    outputs,
    set_layout,
    to_batch,
)
from benchmarks.throughput.probe import chain_flop
from benchmarks.throughput.setup import TRUTH, Setup
from lare2_ref.reference import Lare2Reference
from lare2_rt.pixels.preprocess import Pixels

_TUNING_RUNS = 3


def prepare_reference(setup: Setup) -> dict[str, Any]:
    """Write the true arrays of every image and return layouts, work and the spread of the logit.

    Raises:
        UsageError: the bundle was not built from these weights.
    """
    spread = true_arrays(setup, "reference")
    return {"flop": chain_flop(setup), **spread, **tune_layouts(setup)}


def true_arrays(setup: Setup, target: str) -> dict[str, float]:
    """Write the arrays of the definition for every image into the folder ``target``; returns the spread of the logit.

    Raises:
        UsageError: the bundle was not built from these weights.
    """
    torch.set_num_threads(setup.threads)
    check_sources(setup.sources(), setup.opened())
    reference = load_accurate(setup)
    truth = []
    for picture in setup.pictures():
        output = reference(to_batch(picture.image), to_batch(picture.crop))
        truth.append(dict(outputs(output.lare, output.clip, output.egre)))
    keep_images(setup.folder(target) / TRUTH, truth)
    margins = [float(arrays["logits"][0, 1] - arrays["logits"][0, 0]) for arrays in truth]
    return {"logit_standard_deviation": float(np.std(margins))}


def tune_layouts(setup: Setup) -> dict[str, Any]:
    """Measure every network in both layouts, interleaved, and return the times and the faster one of each."""
    torch.set_num_threads(setup.threads)
    reference = load_plain(setup)
    picture = setup.pictures()[0]
    current: dict[str, Layout] = dict.fromkeys(TUNED, LAYOUTS[0])
    for name in TUNED:
        first_layer(reference, name).register_forward_pre_hook(
            lambda module, arguments, name=name: converter(current[name])(module, arguments)
        )
    times: dict[str, dict[str, list[float]]] = {name: {layout: [] for layout in LAYOUTS} for name in TUNED}
    calls = _network_calls(reference, picture)
    for turn in range(_TUNING_RUNS + 1):
        for layout in LAYOUTS:
            for name, network in networks(reference).items():
                set_layout(network, layout)
                current[name] = layout
                begin = time.perf_counter()
                with torch.inference_mode():
                    calls[name]()
                if turn:  # the first of each also allocates
                    times[name][layout].append(time.perf_counter() - begin)
    best = {name: min(LAYOUTS, key=lambda layout: min(times[name][layout])) for name in TUNED}
    return {"layout": best, "layout_s": times}


def _network_calls(reference: Lare2Reference, picture: Pixels) -> dict[str, Callable[[], object]]:
    extractor = reference.extractor
    posterior, ensemble = (torch.from_numpy(n) for n in (reference.noise.posterior, reference.noise.ensemble))
    image, crop = to_batch(picture.image), to_batch(picture.crop)
    with torch.inference_mode():
        latent = extractor.encode(image, posterior)
    return {
        "vae": lambda: extractor.encode(image, posterior),
        "unet": lambda: extractor.error(latent, ensemble),
        "clip": lambda: reference.clip(crop),
    }
