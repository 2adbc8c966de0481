"""The miniature's noise-prediction network: the UNet of ``mini`` on latents of photographs, and sampling with it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from benchmarks.miniature.training import Say, average, cosine
from lare2_ref.mini import SCHEDULE, UNET, seed_weights

_RATE = 1e-3
_CHECKPOINT_STEPS = 100
_LONGEST = 4.0  # predicted latents are cut at this many deviations while sampling


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
        optimiser.zero_grad()
        loss.mean().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        average(averaged, unet, min(0.9985, (1 + step) / (10 + step)))
        running += (loss.mean().item() - running) * max(0.02, 1 / (step + 1))
        if step % 100 == 0 or step == steps - 1:
            curve.append({"step": step, "train": running, "held_out": held_out_loss(averaged, held, prompt)})
            say(f"UNet {shape[1]}×{shape[2]}: step {step} of {steps}, loss {running:.4f}, {curve[-1]['held_out']:.4f}")
        if (step + 1) % _CHECKPOINT_STEPS == 0 or step + 1 == steps:
            networks = {"live": unet, "averaged": averaged, "optimiser": optimiser}
            facts = {"generator": generator.get_state(), "curve": curve, "running": running, "step": step + 1}
            _save(checkpoint, {**{name: n.state_dict() for name, n in networks.items()}, **facts})
    return averaged, curve


def _save(path: Path, content: dict[str, Any]) -> None:
    """A kill while writing leaves the checkpoint before."""
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(path)


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
