"""LaRE in the miniature: the runtime's arithmetic on the miniature's networks, for any timestep and noise."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.miniature.protocol import IMAGE_SIZE
from benchmarks.miniature.unet import alpha_bars, predict
from benchmarks.miniature.vae import encode_half
from lare2_rt.bundle.noise import Noise, draw_noise
from lare2_rt.pixels.preprocess import squash

_LATENT = (4, 32, 32)
_BATCH = 24


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
