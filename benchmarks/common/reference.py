"""The PyTorch reference of a bundle's weights and method, and its two first steps written out for compilers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lare2_ref.lare import LareExtractor
from lare2_ref.reference import Lare2Reference
from lare2_ref.sources import ModelSources, load_reference
from lare2_rt.bundle.opening import Bundle
from lare2_rt.errors import UsageError


def accurate_reference(sources: ModelSources, bundle: Bundle) -> Lare2Reference:
    """Load the reference that parity is measured against."""
    method = bundle.manifest.method
    return load_reference(
        sources,
        noise=bundle.noise,
        prompt=method.prompt,
        timestep=method.timestep,
        policy=bundle.manifest.policy,
        image_size=method.image_size,
    )


def plain_reference(sources: ModelSources, bundle: Bundle) -> Lare2Reference:
    """Load the reference with torch's own GroupNorm.

    The definition takes GroupNorm's statistics in float64, which costs time that nobody's PyTorch spends.
    """
    method = bundle.manifest.method
    extractor = LareExtractor(
        sources.vae(),
        sources.unet(),
        sources.scheduler(),
        prompt_embeds=sources.prompt_embeds(method.prompt),
        timestep=method.timestep,
    )
    return Lare2Reference(
        extractor,
        sources.clip_backbone(),
        sources.egre(),
        noise=bundle.noise,
        policy=bundle.manifest.policy,
        image_size=method.image_size,
    )


def check_sources(sources: ModelSources, bundle: Bundle) -> None:
    """Raise UsageError unless the bundle was built from these weights."""
    ours = {record.role: record.sha256 for record in sources.records()}
    for source in bundle.manifest.sources:
        if ours[source.role] != source.sha256:
            raise UsageError(
                f"{bundle.path} was not built from these weights ({source.role} differs)",
                remedy="check --model and --bundle",
            )


class EncodeStep(nn.Module):
    """Pixels to latent. The network computes in ``dtype``; sampling, like noise mixing and the error, in float32.

    That is how the half-precision graphs are made, and how anybody would run Stable Diffusion in half.
    """

    def __init__(self, extractor: LareExtractor, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.vae, self.dtype = extractor.vae.to(dtype), dtype
        self.scaling = float(extractor.vae.config.scaling_factor)

    def forward(self, image: Tensor, posterior_noise: Tensor) -> Tensor:
        """uint8 [B,S,S,3] RGB, [1,4,h,w] -> latent [B,4,h,w]."""
        pixels = (image.to(torch.float32).permute(0, 3, 1, 2) / 255 - 0.5) * 2
        posterior = self.vae.encode(pixels.to(self.dtype)).latent_dist
        latent: Tensor = (posterior.mean.float() + posterior.std.float() * posterior_noise) * self.scaling
        return latent


class NoiseStep(nn.Module):
    """Latent to LaRE with timestep and prompt as buffers: freezing may fold whatever depends on them alone."""

    timestep: Tensor
    prompt_embeds: Tensor

    def __init__(self, extractor: LareExtractor, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.unet, self.dtype = extractor.unet.to(dtype), dtype
        self.signal, self.level = extractor.alpha_bar**0.5, (1 - extractor.alpha_bar) ** 0.5
        self.velocity = extractor.prediction_type == "v_prediction"
        self.register_buffer("timestep", torch.tensor([extractor.timestep]))
        self.register_buffer("prompt_embeds", extractor.prompt_embeds.clone().to(dtype))

    def forward(self, latent: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """[B,4,h,w] and [E,4,h,w] -> lare [B,4,h,w], noise prediction [B·E,4,h,w], image-major."""
        images, draws = latent.shape[0], noise.shape[0]
        latents, noises = latent.repeat_interleave(draws, dim=0), noise.repeat(images, 1, 1, 1)
        noisy = self.signal * latents + self.level * noises
        prompt = self.prompt_embeds.expand(images * draws, -1, -1)
        steps = self.timestep.expand(images * draws)
        prediction = self.unet(noisy.to(self.dtype), steps, encoder_hidden_states=prompt, return_dict=False)[0].float()
        target = self.signal * noises - self.level * latents if self.velocity else noises
        error = (prediction - target).square().view(images, draws, *latent.shape[1:])
        return error.mean(dim=1), prediction
