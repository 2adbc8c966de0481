"""LaRE: one noise prediction of a latent diffusion model, and how wrong it is at every place of the latent.

Implements section 3.2 of the paper as the official ``extract_lare.py`` does it, over diffusers' own components, with
the noise passed in instead of drawn.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

PREDICTION_TYPES = ("epsilon", "v_prediction")


class LareOutput(NamedTuple):
    """Attributes: latent [B,4,h,w]; noise_prediction and target [B,E,4,h,w]; lare [B,4,h,w]."""

    latent: Tensor
    noise_prediction: Tensor
    target: Tensor
    lare: Tensor


class LareExtractor(nn.Module):
    """VAE encoder, UNet and noise schedule with a fixed timestep and prompt.

    Args:
        vae, unet, scheduler: diffusers components; the scheduler gives the noise schedule and the prediction type.
        prompt_embeds: [1,tokens,width], last hidden state of the text encoder.
        timestep: 0 <= timestep < number of training steps (the paper uses 200).
    """

    prompt_embeds: Tensor

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: DDPMScheduler,
        *,
        prompt_embeds: Tensor,
        timestep: int = 200,
    ) -> None:
        super().__init__()
        steps = int(scheduler.config.num_train_timesteps)
        if not 0 <= timestep < steps:
            raise ValueError(f"timestep must lie between 0 and {steps - 1}, not {timestep}")
        if scheduler.config.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction type {scheduler.config.prediction_type!r} has no LaRE; use a model that predicts one of "
                + ", ".join(PREDICTION_TYPES)
            )
        self.vae, self.unet, self.scheduler = vae, unet, scheduler
        self.timestep = timestep
        self.register_buffer("prompt_embeds", prompt_embeds, persistent=False)

    @property
    def prediction_type(self) -> str:
        """``epsilon`` or ``v_prediction``."""
        return str(self.scheduler.config.prediction_type)

    @property
    def alpha_bar(self) -> float:
        """Cumulative product of (1 − beta) at the timestep, as the scheduler's float32 table has it."""
        return float(self.scheduler.alphas_cumprod[self.timestep])

    def encode(self, image: Tensor, posterior_noise: Tensor) -> Tensor:
        """Return the scaled posterior sample [B,4,h,w] of uint8 [B,S,S,3] RGB, with one draw [1,4,h,w] for all."""
        pixels = (image.to(self.prompt_embeds.dtype).permute(0, 3, 1, 2) / 255 - 0.5) * 2
        posterior = self.vae.encode(pixels).latent_dist
        latent: Tensor = (posterior.mean + posterior.std * posterior_noise) * self.vae.config.scaling_factor
        return latent

    def error(self, latent: Tensor, noise: Tensor) -> LareOutput:
        """Return LaRE of latents [B,4,h,w] under noise draws [E,4,h,w]."""
        images, draws = latent.shape[0], noise.shape[0]
        latents = latent.repeat_interleave(draws, dim=0)  # [B·E,4,h,w], image-major
        noises = noise.repeat(images, 1, 1, 1)
        steps = torch.full((images * draws,), self.timestep, dtype=torch.long, device=latent.device)
        noisy = self.scheduler.add_noise(latents, noises, steps)
        prompt = self.prompt_embeds.expand(images * draws, -1, -1)
        prediction = self.unet(noisy, steps, encoder_hidden_states=prompt).sample
        if self.prediction_type == "v_prediction":
            target = self.scheduler.get_velocity(latents, noises, steps)
        else:
            target = noises
        squared = (prediction.float() - target.float()).square()
        shape = (images, draws, *latent.shape[1:])
        lare = squared.view(shape).mean(dim=1)
        return LareOutput(latent, prediction.view(shape), target.view(shape), lare)

    def forward(self, image: Tensor, posterior_noise: Tensor, noise: Tensor) -> LareOutput:
        """uint8 [B,S,S,3] RGB, [1,4,h,w] and [E,4,h,w] -> LaRE and what led to it."""
        return self.error(self.encode(image, posterior_noise), noise)


@torch.no_grad()
def encode_prompt(tokenizer: Any, text_encoder: nn.Module, prompt: str) -> Tensor:  # noqa: ANN401 - transformers' type
    """Return the last hidden state, float32 [1,tokens,width]: padded and cut to the model's length, no attention mask.

    The encoder, which is float64 afterwards, computes in float64: a prompt is a constant of a bundle, and in float32
    its last digits, and with them the bytes of the bundle, would depend on the processor.
    """
    length = tokenizer.model_max_length
    tokens = tokenizer(prompt, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    hidden: Tensor = text_encoder.double()(tokens.input_ids)[0]
    return hidden.float()


class AccurateGroupNorm(nn.GroupNorm):
    """GroupNorm whose mean and variance are summed in float64; parameters and output keep their type.

    torch's CPU kernel adds a quarter of a million float32 numbers in sequence. On pictures with large areas of one
    value (a white background) every addition rounds the same way, and the first layers of a VAE encoder come out up to
    5e-5 (relative L2) away from the float64 result. A reference must not be the inaccurate side of a comparison. GPU
    kernels add in a tree and do not need this.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,...] -> same shape."""
        groups = x.reshape(x.shape[0], self.num_groups, -1)
        variance, mean = torch.var_mean(groups.double(), dim=2, keepdim=True, correction=0)
        normal = ((groups - mean) * torch.rsqrt(variance + self.eps)).to(x.dtype).reshape(x.shape)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return normal * self.weight.view(shape) + self.bias.view(shape)


def use_accurate_group_norms(module: nn.Module) -> None:
    """Replace every affine GroupNorm below ``module``; the parameters are shared, not copied."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.GroupNorm and child.affine:
                accurate = AccurateGroupNorm(child.num_groups, child.num_channels, child.eps)
                accurate.weight, accurate.bias = child.weight, child.bias
                setattr(parent, name, accurate)
