"""torch.compile: the whole chain through inductor, which is what PyTorch itself offers against eager execution."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.throughput.eager import TUNED, load_plain, networks, set_layout, to_batch
from benchmarks.throughput.laps import Laps
from benchmarks.throughput.setup import Arrays, Setup
from lare2_ref.lare import LareExtractor
from lare2_ref.reference import Lare2Reference
from lare2_rt.pixels.preprocess import Pixels


class EncodeStep(nn.Module):
    """Pixels to latent with the sampling written out, as one graph for the compiler."""

    def __init__(self, extractor: LareExtractor) -> None:
        super().__init__()
        self.vae = extractor.vae

    def forward(self, image: Tensor, posterior_noise: Tensor) -> Tensor:
        """uint8 [B,S,S,3] RGB, [1,4,h,w] -> latent [B,4,h,w]."""
        pixels = (image.to(torch.float32).permute(0, 3, 1, 2) / 255 - 0.5) * 2
        posterior = self.vae.encode(pixels).latent_dist
        latent: Tensor = (posterior.mean + posterior.std * posterior_noise) * self.vae.config.scaling_factor
        return latent


class NoiseStep(nn.Module):
    """Latent to LaRE with timestep and prompt as buffers: freezing may fold whatever depends on them alone."""

    timestep: Tensor
    prompt_embeds: Tensor

    def __init__(self, extractor: LareExtractor) -> None:
        super().__init__()
        self.unet = extractor.unet
        self.signal, self.level = extractor.alpha_bar**0.5, (1 - extractor.alpha_bar) ** 0.5
        self.velocity = extractor.prediction_type == "v_prediction"
        self.register_buffer("timestep", torch.tensor([extractor.timestep]))
        self.register_buffer("prompt_embeds", extractor.prompt_embeds.clone())

    def forward(self, latent: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """[1,4,h,w] and [E,4,h,w] -> lare [1,4,h,w], noise prediction [E,4,h,w]."""
        draws = noise.shape[0]
        noisy = self.signal * latent + self.level * noise
        prompt = self.prompt_embeds.expand(draws, -1, -1)
        prediction = self.unet(noisy, self.timestep.expand(draws), encoder_hidden_states=prompt, return_dict=False)[0]
        target = self.signal * noise - self.level * latent if self.velocity else noise
        return (prediction - target).square().mean(dim=0, keepdim=True), prediction


class CompiledRunner:
    """The whole chain through ``torch.compile`` with fixed shapes, channels-last and frozen weights."""

    def __init__(self, reference: Lare2Reference, threads: int) -> None:
        torch.set_num_threads(threads)
        self.facts: dict[str, Any] = {
            "threads": torch.get_num_threads(),
            "layout": dict.fromkeys(TUNED, "channels_last"),
            "compiler": "inductor, freezing, dynamic=False, fullgraph=True",
        }
        for network in networks(reference).values():
            set_layout(network, "channels_last")
        self.laps = Laps()
        self._posterior = torch.from_numpy(reference.noise.posterior)
        self._ensemble = torch.from_numpy(reference.noise.ensemble)
        steps = (EncodeStep(reference.extractor), NoiseStep(reference.extractor), reference.clip, reference.egre)
        self._encode, self._predict, self._clip, self._head = (
            torch.compile(step.eval(), dynamic=False, fullgraph=True, options={"freezing": True}) for step in steps
        )

    @torch.no_grad()  # freezing does nothing where a gradient might be asked for
    def run(self, picture: Pixels) -> Arrays:
        """See ``Runner.run``."""
        with self.laps("vae_encoder"):
            latent = self._encode(to_batch(picture.image), self._posterior)
        with self.laps("unet_step"):
            lare, prediction = self._predict(latent, self._ensemble)
        with self.laps("clip_backbone"):
            embedding, layer3 = self._clip(to_batch(picture.crop))
        with self.laps("egre"):
            logits = self._head(lare, embedding, layer3)[0]
        tensors = {"latent": latent, "noise_prediction": prediction, "lare": lare}
        tensors |= {"embedding": embedding, "logits": logits}
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    def check(self, picture: Pixels) -> Arrays:
        """See ``Runner.check``."""
        return self.run(picture)


def open_compiled(setup: Setup, argument: str | None) -> CompiledRunner:
    """Open torch.compile; the first run compiles, or takes what an earlier process has compiled."""
    return CompiledRunner(load_plain(setup), setup.threads)


def compile_chain(setup: Setup) -> dict[str, Any]:
    """Compile the chain in this process, so that its compiler's cache is filled; returns the seconds of each run."""
    runner = open_compiled(setup, None)
    picture = setup.pictures()[0]
    begin = time.perf_counter()
    runner.run(picture)
    return {"first_run_s": time.perf_counter() - begin}
