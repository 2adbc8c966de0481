"""The miniature's UNet, that of ``mini`` on latents of photographs: training, sampling, LaRE."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from benchmarks.common.kept import keep_file
from benchmarks.miniature.protocol import IMAGE_SIZE
from benchmarks.miniature.vae import Say, average, cosine, descend, encode_half
from lare2_ref.mini import SCHEDULE, UNET, seed_weights
from lare2_rt.bundle.noise import Noise, draw_noise
from lare2_rt.pixels.preprocess import squash

_RATE = 1e-3
_CHECKPOINT_STEPS = 100
_LONGEST = 4.0  # predicted latents are cut at this many deviations while sampling
_LATENT = (4, 32, 32)
_BATCH = 24  # pictures whose LaRE is computed at once


@dataclass(frozen=True, slots=True)
class Latents:
    """Posterior mean and deviation [N,4,h,w] of pictures."""

    mean: Tensor
    deviation: Tensor


def alpha_bars() -> Tensor:
    """Float32 [1000]: the cumulative products of SD 1.5's schedule."""
    table: Tensor = DDPMScheduler(**SCHEDULE, prediction_type="epsilon").alphas_cumprod
    return table


def new_unet(seed: int) -> UNet2DConditionModel:
    """Return the seeded network; its last convolution is zero, so that it begins with predicting nothing."""
    unet = UNet2DConditionModel(**UNET)
    seed_weights(unet, "unet", seed)
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        # Residual branches begin at zero.
        if name.endswith(("conv2", "to_out.0", "ff.net.2", "proj_out", "conv_out")):
            nn.init.zeros_(module.weight)
    return unet


def predict(unet: UNet2DConditionModel, noisy: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
    """Return the predicted noise [N,4,h,w]; ``prompt`` is [1,tokens,width], ``timestep`` int64 [N]."""
    out: Tensor = unet(noisy, timestep, encoder_hidden_states=prompt.expand(len(noisy), -1, -1)).sample
    return out


def finished(checkpoint: Path, steps: int) -> tuple[dict[str, Tensor], list[dict[str, float]]] | None:
    """Return averaged weights and curve of a training that has come to its end, else None."""
    if not checkpoint.exists():
        return None
    kept = torch.load(checkpoint, weights_only=True)
    return (kept["averaged"], kept["curve"]) if kept["step"] == steps else None


@torch.enable_grad()
def train(
    unet: UNet2DConditionModel,
    latents: Latents,
    held: Latents,
    prompt: Tensor,
    *,
    steps: int,
    batch: int,
    seed: int,
    checkpoint: Path,
    say: Say,
) -> tuple[UNet2DConditionModel, list[dict[str, float]]]:
    """Train in place on the usual noise loss; returns averaged weights and the held-out loss on the way.

    Timesteps are stratified over each batch; AdamW, cosine. A killed run goes on from
    ``checkpoint`` to the same end.
    """
    table = alpha_bars()
    generator = torch.Generator().manual_seed(seed)
    averaged = copy.deepcopy(unet).eval()
    optimiser = torch.optim.AdamW(unet.parameters(), lr=_RATE, weight_decay=1e-2, betas=(0.9, 0.99))
    shape = latents.mean.shape[1:]
    curve: list[dict[str, float]] = []
    running, begin = 0.0, 0
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        unet.load_state_dict(kept["live"])
        averaged.load_state_dict(kept["averaged"])
        optimiser.load_state_dict(kept["optimiser"])
        generator.set_state(kept["generator"])
        curve, running, begin = kept["curve"], kept["running"], kept["step"]
        say(f"UNet: goes on from step {begin}")
    for step in range(begin, steps):
        cosine(optimiser, _RATE, step, steps, warm=min(100, steps))
        chosen = torch.randint(0, len(latents.mean), (batch,), generator=generator)
        draw = torch.randn(batch, *shape, generator=generator)
        clean = latents.mean[chosen] + latents.deviation[chosen] * draw
        timestep = ((torch.arange(batch) + torch.rand(batch, generator=generator)) * len(table) / batch).long()
        noise = torch.randn(batch, *shape, generator=generator)
        level = table[timestep].view(-1, 1, 1, 1)
        loss = (predict(unet, level.sqrt() * clean + (1 - level).sqrt() * noise, timestep, prompt) - noise).square()
        descend(optimiser, unet, loss.mean(), bound=1.0)
        average(averaged, unet, min(0.9985, (1 + step) / (10 + step)))
        running += (loss.mean().item() - running) * max(0.02, 1 / (step + 1))
        if step % 100 == 0 or step == steps - 1:
            curve.append({"step": step, "train": running, "held_out": held_out_loss(averaged, held, prompt)})
            say(f"UNet {shape[1]}×{shape[2]}: step {step} of {steps}, loss {running:.4f}, {curve[-1]['held_out']:.4f}")
        if (step + 1) % _CHECKPOINT_STEPS == 0 or step + 1 == steps:
            networks = {"live": unet, "averaged": averaged, "optimiser": optimiser}
            facts = {"generator": generator.get_state(), "curve": curve, "running": running, "step": step + 1}
            content = {**{name: n.state_dict() for name, n in networks.items()}, **facts}
            keep_file(checkpoint, partial(torch.save, content))
    return averaged, curve


@torch.no_grad()
def held_out_loss(unet: UNet2DConditionModel, held: Latents, prompt: Tensor) -> float:
    """Mean noise loss over all timesteps on held-out latents, with one noise for every call."""
    table, count = alpha_bars(), min(len(held.mean), 96)
    timestep = torch.arange(count) * len(table) // count
    noise = torch.randn(held.mean[:count].shape, generator=torch.Generator().manual_seed(1))
    level = table[timestep].view(-1, 1, 1, 1)
    noisy = level.sqrt() * held.mean[:count] + (1 - level).sqrt() * noise
    return float((predict(unet, noisy, timestep, prompt) - noise).square().mean())


@torch.no_grad()
def sample(unet: UNet2DConditionModel, start: Tensor, timesteps: list[int], prompt: Tensor, *, batch: int) -> Tensor:
    """DDIM without noise from latents at ``timesteps[0]`` down to clean ones."""
    table, out = alpha_bars(), []
    for first in range(0, len(start), batch):
        z = start[first : first + batch]
        for index, t in enumerate(timesteps):
            now = table[t]
            then = table[timesteps[index + 1]] if index + 1 < len(timesteps) else torch.tensor(1.0)
            noise = predict(unet, z, torch.full((len(z),), t), prompt)
            clean = ((z - (1 - now).sqrt() * noise) / now.sqrt()).clamp(-_LONGEST, _LONGEST)
            noise = (z - now.sqrt() * clean) / (1 - now).sqrt()
            z = then.sqrt() * clean + (1 - then).sqrt() * noise
        out.append(z)
    return torch.cat(out)


def spaced(steps: int, first: int) -> list[int]:
    """Evenly spaced timesteps from ``first`` down, ending half a step above zero."""
    return [int(t) for t in np.linspace(first, first / steps * 0.5, steps).round()]


def noises(ensemble: int, seed: int = 0) -> Noise:
    """Return the noise that a bundle of this seed holds."""
    return draw_noise(seed, ensemble, _LATENT)


def as_the_runtime_sees(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 [N,h,w,3] -> float32 [N,3,128,128] in [-1,1]: squashed to 256 as any file, then the mean of 2×2 pixels,
    which is what the encoder's first stage is.
    """
    whole = torch.from_numpy(np.stack([squash(Image.fromarray(picture), IMAGE_SIZE) for picture in pixels]))
    scaled = (whole.permute(0, 3, 1, 2).float() / 255 - 0.5) * 2
    return torch.nn.functional.avg_pool2d(scaled, 2)


class Extraction:
    """The two networks and the prompt's embedding [1,tokens,width]."""

    def __init__(self, vae: AutoencoderKL, unet: UNet2DConditionModel, prompt: Tensor) -> None:
        self.vae, self.unet, self.prompt = vae, unet, prompt

    @torch.no_grad()
    def encode(self, halves: Tensor, noise: Noise) -> Tensor:
        """Return latents [N,4,32,32], the posterior sampled with the bundle's draw."""
        draw = torch.from_numpy(noise.posterior)
        parts = []
        for k in range(0, len(halves), 64):
            mean, log_variance = encode_half(self.vae, halves[k : k + 64])
            parts.append(mean + torch.exp(0.5 * log_variance) * draw)
        return torch.cat(parts)

    @torch.no_grad()
    def maps(self, latent: Tensor, ensemble: NDArray[np.float32], timestep: int) -> NDArray[np.float32]:
        """Return LaRE [N,4,32,32]: the squared error of the predicted noise, averaged over the draws [E,4,32,32]."""
        errors = self.errors(latent, ensemble[None].repeat(len(latent), 0), timestep)
        return np.asarray(errors.mean(axis=1))

    @torch.no_grad()
    def errors(self, latent: Tensor, noise: NDArray[np.float32], timestep: int) -> NDArray[np.float32]:
        """Return squared errors [N,E,4,32,32] under draws [N,E,4,32,32] of each picture's own."""
        level = alpha_bars()[timestep]
        out = np.empty(noise.shape, np.float32)
        for k in range(0, len(latent), _BATCH):
            z = latent[k : k + _BATCH]
            for e in range(noise.shape[1]):
                draw = torch.from_numpy(noise[k : k + _BATCH, e])
                noisy = level.sqrt() * z + (1 - level).sqrt() * draw
                steps = torch.full((len(z),), timestep)
                out[k : k + _BATCH, e] = (predict(self.unet, noisy, steps, self.prompt) - draw).square().numpy()
        return out

    @staticmethod
    def energy(latent: Tensor) -> NDArray[np.float32]:
        """Return float32 [N]: the mean absolute difference of latent neighbours, a measure of how busy a picture is."""
        rows = (latent[..., 1:, :] - latent[..., :-1, :]).abs().mean((1, 2, 3))
        columns = (latent[..., 1:] - latent[..., :-1]).abs().mean((1, 2, 3))
        array: NDArray[np.float32] = (rows + columns).numpy()
        return array
