"""The eager half of ``--profile``: components by the clock, blocks by hooks."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.throughput.blocks import OTHER, block_of
from benchmarks.throughput.eager import EagerRunner, load_plain, to_batch
from benchmarks.throughput.setup import Setup
from lare2_rt.bundle.noise import draw_noise

Seconds = dict[str, list[float]]


def profile_eager(setup: Setup, layouts: str, repeats: int) -> dict[str, Any]:
    """Return seconds of every repetition, for components and for blocks of the UNet."""
    runner = EagerRunner(load_plain(setup), json.loads(layouts), setup.threads)
    reference, pictures = runner.reference, setup.pictures()
    posterior, ensemble = (torch.from_numpy(n) for n in (reference.noise.posterior, reference.noise.ensemble))
    components: Seconds = {name: [] for name in ("vae_encoder", "unet_step", "clip_backbone", "egre")}
    blocks: Seconds = {}
    runner.run(pictures[0])
    with torch.inference_mode():
        for turn in range(repeats):
            picture = pictures[turn % len(pictures)]
            image, crop = to_batch(picture.image), to_batch(picture.crop)
            with _clock(components["vae_encoder"]):
                latent = reference.extractor.encode(image, posterior)
            with _clock(components["unet_step"]):
                lare = reference.extractor.error(latent, ensemble)
            with _clock(components["clip_backbone"]):
                clip = reference.clip(crop)
            with _clock(components["egre"]):
                reference.egre(lare.lare, clip.embedding, clip.layer3)
            # Once more with hooks, so that they are not in the components' times.
            again = partial(reference.extractor.error, latent, ensemble)
            measured = block_seconds(reference.extractor.unet, again)
            for name, seconds in measured.items():
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
    runner = EagerRunner(load_plain(setup), json.loads(layouts), setup.threads)
    reference, method = runner.reference, setup.opened().manifest.method
    pictures = setup.pictures()
    row = [pictures[index % len(pictures)] for index in range(batch)]
    image, crop = (torch.cat([to_batch(getattr(p, name)) for p in row]) for name in ("image", "crop"))
    noise = draw_noise(method.noise_seed, ensemble, method.latent_shape)
    posterior, draws = torch.from_numpy(noise.posterior), torch.from_numpy(noise.ensemble)
    times: list[float] = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            with _clock(times):
                lare = reference.extractor(image, posterior, draws)
                clip = reference.clip(crop)
                reference.egre(lare.lare, clip.embedding, clip.layer3)
    return times[1:]


@contextlib.contextmanager
def _clock(times: list[float]) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    times.append(time.perf_counter() - begin)
