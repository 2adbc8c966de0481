"""The PyTorch reference as a row: its own modules, called eagerly, with the memory layout of each network chosen."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.common.kept import Arrays
from benchmarks.common.reference import accurate_reference, plain_reference
from benchmarks.throughput.runner import Laps, Runner
from benchmarks.throughput.setup import Setup
from lare2_ref.clip_backbone import ClipFeatures
from lare2_ref.egre import EgreOutput
from lare2_ref.lare import LareOutput
from lare2_ref.reference import Lare2Reference
from lare2_rt.pixels.preprocess import Pixels

Layout = Literal["contiguous", "channels_last"]
LAYOUTS: tuple[Layout, ...] = ("contiguous", "channels_last")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Measured per network: convolutions of few channels at many pixels like channels-last, small wide ones may not.
TUNED = ("vae", "unet", "clip")


class EagerRunner(Runner):
    """The reference's own modules, called as they are, with the layout of each network chosen."""

    def __init__(self, reference: Lare2Reference, layouts: Mapping[str, Layout], threads: int) -> None:
        torch.set_num_threads(threads)
        self.reference = reference
        layout = {"layout": dict(layouts), "mode": "inference_mode", "text_encoder": "once, before the run"}
        super().__init__({"threads": torch.get_num_threads(), **layout})
        self._posterior = torch.from_numpy(reference.noise.posterior)
        self._ensemble = torch.from_numpy(reference.noise.ensemble)
        for name, network in networks(reference).items():
            set_layout(network, layouts[name])
            first_layer(reference, name).register_forward_pre_hook(converter(layouts[name]))

    @torch.inference_mode()
    def run(self, picture: Pixels) -> Arrays:
        """See ``Runner.run``."""
        return run_reference(self.reference, picture, self._posterior, self._ensemble, self.laps)


def run_reference(
    reference: Lare2Reference, picture: Pixels, posterior: Tensor, ensemble: Tensor, laps: Laps
) -> Arrays:
    """Run the chain for one image with this noise, and time its components."""
    with laps("vae_encoder"):
        latent = reference.extractor.encode(to_batch(picture.image), posterior)
    with laps("unet_step"):
        lare = reference.extractor.error(latent, ensemble)
    with laps("clip_backbone"):
        clip = reference.clip(to_batch(picture.crop))
    with laps("egre"):
        head = reference.egre(lare.lare, clip.embedding, clip.layer3)
    return outputs(lare, clip, head)


def open_eager(setup: Setup, layouts: str | None) -> EagerRunner:
    """Open the reference with the layouts (JSON) that ``tune_layouts`` found best."""
    assert layouts is not None
    return EagerRunner(load_plain(setup), json.loads(layouts), setup.threads)


def open_accurate(setup: Setup, layouts: str | None) -> EagerRunner:
    """Open the definition of truth: the same with GroupNorm statistics in float64."""
    assert layouts is not None
    return EagerRunner(load_accurate(setup), json.loads(layouts), setup.threads)


def load_accurate(setup: Setup) -> Lare2Reference:
    """Load the reference that parity is measured against."""
    return accurate_reference(setup.sources(), setup.opened())


def load_plain(setup: Setup) -> Lare2Reference:
    """Load the reference with torch's own GroupNorm: a speed reference must not be slowed down by exactness."""
    return plain_reference(setup.sources(), setup.opened())


def networks(reference: Lare2Reference) -> dict[str, nn.Module]:
    """Return the networks whose layout is chosen, by their names in ``TUNED``."""
    extractor = reference.extractor
    return {"vae": extractor.vae, "unet": extractor.unet, "clip": reference.clip.visual}


def first_layer(reference: Lare2Reference, name: str) -> nn.Module:
    """Return the layer through which a network's input enters, where a hook can convert it."""
    extractor = reference.extractor
    layers: dict[str, nn.Module] = {
        "vae": extractor.vae.encoder,
        "unet": extractor.unet.conv_in,
        "clip": reference.clip.visual.conv1,
    }
    return layers[name]


def set_layout(network: nn.Module, layout: Layout) -> None:
    """Store the weights of convolutions in this order; everything else has only one."""
    network.to(memory_format=FORMATS[layout])


def converter(layout: Layout) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Return a hook that brings a layer's input into this layout: pixels arrive as transposed [H,W,3]."""

    def convert(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return arguments[0].contiguous(memory_format=FORMATS[layout]), *arguments[1:]

    return convert


def to_batch(pixels: Any) -> Tensor:  # noqa: ANN401 - numpy's own type says no more
    """uint8 [S,S,3] -> uint8 [1,S,S,3] without a copy if it can be."""
    return torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())[None]


def outputs(lare: LareOutput, clip: ClipFeatures, head: EgreOutput) -> Arrays:
    """Return what is compared, for a batch of one."""
    return {
        "latent": lare.latent.numpy(),
        "noise_prediction": lare.noise_prediction[0].numpy(),
        "lare": lare.lare.numpy(),
        "embedding": clip.embedding.numpy(),
        "logits": head.logits.numpy(),
    }
