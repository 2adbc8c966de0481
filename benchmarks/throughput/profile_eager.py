"""The eager half of ``--profile``: components by the clock, blocks by hooks."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.throughput.eager import open_eager, to_batch
from benchmarks.throughput.layers import OTHER, block_of
from benchmarks.throughput.runner import component_seconds
from benchmarks.throughput.setup import Setup
from lare2_rt.bundle.noise import draw_noise


def profile_eager(setup: Setup, layouts: str, repeats: int) -> dict[str, Any]:
    """Return seconds of every repetition, for components and for blocks of the UNet."""
    runner, pictures = open_eager(setup, layouts), setup.pictures()
    components = component_seconds(runner, pictures, repeats)
    extractor, noise = runner.reference.extractor, runner.reference.noise
    posterior, ensemble = torch.from_numpy(noise.posterior), torch.from_numpy(noise.ensemble)
    blocks: dict[str, list[float]] = {}
    # Once more with hooks, so that they are not in the components' times.
    with torch.inference_mode():
        for turn in range(repeats):
            latent = extractor.encode(to_batch(pictures[turn % len(pictures)].image), posterior)
            for name, seconds in block_seconds(extractor.unet, partial(extractor.error, latent, ensemble)).items():
                blocks.setdefault(name, []).append(seconds)
    return {"components": components, "blocks": blocks}


def block_seconds(network: nn.Module, run: Callable[[], object]) -> dict[str, float]:
    """Run once and return seconds by block; ``other`` is the rest of the run."""
    spent: dict[str, float] = {}
    begun: dict[str, float] = {}
    handles = []
    for path, module in network.named_modules():
        block = block_of(path)
        if block is None or path != block:  # only the block itself, not its layers
            continue
        handles.append(module.register_forward_pre_hook(lambda *_, b=block: begun.update({b: time.perf_counter()})))
        handles.append(
            module.register_forward_hook(lambda *_, b=block: spent.update({b: time.perf_counter() - begun[b]}))
        )
    begin = time.perf_counter()
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    spent[OTHER] = time.perf_counter() - begin - sum(spent.values())
    return spent


def time_size(setup: Setup, layouts: str, ensemble: int, batch: int, repeats: int) -> list[float]:
    """Return seconds of the whole chain for another number of draws or images."""
    reference, method = open_eager(setup, layouts).reference, setup.opened().manifest.method
    pictures = setup.pictures()
    row = [pictures[index % len(pictures)] for index in range(batch)]
    image, crop = (torch.cat([to_batch(getattr(p, name)) for p in row]) for name in ("image", "crop"))
    noise = draw_noise(method.noise_seed, ensemble, method.latent_shape)
    posterior, draws = torch.from_numpy(noise.posterior), torch.from_numpy(noise.ensemble)
    times: list[float] = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            begin = time.perf_counter()
            lare = reference.extractor(image, posterior, draws)
            clip = reference.clip(crop)
            reference.egre(lare.lare, clip.embedding, clip.layer3)
            times.append(time.perf_counter() - begin)
    return times[1:]
