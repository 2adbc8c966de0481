"""UNet step: noise is mixed in, predicted once, and the squared error is averaged over the draws."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from lare2_ref.sources import ModelSources

from ..graph.fold import fold_unet
from .spec import Component, ComponentGraph, Geometry, random_floats


class UnetStep(ComponentGraph):
    """A folded UNet between the noise mixing and the error."""

    networks = ("unet",)

    def __init__(self, unet: UNet2DConditionModel, *, alpha_bar: float, prediction_type: str) -> None:
        super().__init__()
        self.unet = unet
        # The scheduler takes roots of its float32 table in float32; so do we, to start from the same numbers.
        table = torch.tensor(alpha_bar, dtype=torch.float32, device="cpu")
        self.signal, self.noise_level = float(table.sqrt()), float((1 - table).sqrt())
        self.predicts_velocity = prediction_type == "v_prediction"

    def forward(self, latent: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Latent [B,4,h,w] and noise [E,4,h,w] -> lare [B,4,h,w] and noise prediction [B·E,4,h,w], image-major."""
        clean, draws = latent[:, None], noise[None]  # [B,1,4,h,w], [1,E,4,h,w]
        noisy = (self.signal * clean + self.noise_level * draws).flatten(0, 1)  # [B·E,4,h,w]
        prediction = self.unet(noisy.to(self.dtype), 0, encoder_hidden_states=None, return_dict=False)[0].float()
        error = prediction.unflatten(0, (latent.shape[0], noise.shape[0])) - self.target(clean, draws)
        return error.square().mean(dim=1), prediction

    def target(self, clean: Tensor, draws: Tensor) -> Tensor:
        """What the UNet should have predicted: the noise, or DDPM's velocity."""
        return self.signal * draws - self.noise_level * clean if self.predicts_velocity else draws


def build(sources: ModelSources, geometry: Geometry) -> ComponentGraph:
    """Return the module with timestep and prompt folded."""
    prompt_embeds = sources.prompt_embeds(geometry.prompt)
    unet = sources.unet()
    fold_unet(unet, timestep=geometry.timestep, prompt_embeds=prompt_embeds)
    return UnetStep(unet, alpha_bar=geometry.alpha_bar, prediction_type=geometry.prediction_type).eval()


def example_inputs(geometry: Geometry, batch: int) -> tuple[Tensor, ...]:
    """Return (latent, noise)."""
    return random_floats(batch, *geometry.latent), random_floats(geometry.ensemble, *geometry.latent)


UNET_STEP = Component(
    name="unet_step",
    roles=("unet", "scheduler", "text_encoder"),
    input_names=("latent", "noise"),
    output_names=("lare",),
    build=build,
    example_inputs=example_inputs,
    tolerance={"lare": 3e-5, "noise_prediction": 1e-5},
    reason="float32 rounding through every block (onnxruntime measured 3e-6 at SD 1.5's size); squaring doubles it",
    half_tolerance={"lare": 1e-2, "noise_prediction": 1e-2},
    probes=("noise_prediction",),
)
