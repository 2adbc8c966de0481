"""What a build will need, counted without loading a weight: networks without memory are folded as usual."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from lare2_ref.clip_backbone import ClipBackbone, build_visual
from lare2_ref.egre import Egre
from lare2_ref.sources import ModelSources
from lare2_rt.bundle.manifest import Precision

from ..components import COMPONENTS
from ..graph.prepare import prepare
from .plan import Plan

_FLOAT = 4  # bytes
_BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2}
# Measured on synthetic SD 1.5 and on mini (tests/test_estimate.py holds both): an exported graph takes 450 to 650
# bytes for each of its weights, and the processes' peaks are these multiples of the networks' weights above what
# libraries and activations take.
_GRAPH_BYTES_PER_WEIGHT = 530
_EXPORT_BASE, _EXPORT_FACTOR = 0.9e9, 1.25
_PARITY_BASE, _PARITY_FACTOR = 2.2e9, 2.5
_MEASURED_SIZE, _MEASURED_IMAGES = 256, 4


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes that a build needs.

    Attributes:
        weights: component name -> its exported weights in all precisions; bundle: the finished folder.
        memory: largest resident size of any of the build's processes.
    """

    weights: dict[str, int]
    bundle: int
    memory: int


class _Weightless(ModelSources):
    """The same sources with networks on the meta device: shapes without memory."""

    def vae(self) -> AutoencoderKL:
        return AutoencoderKL.from_config(self.sd.vae_config())

    def unet(self) -> UNet2DConditionModel:
        return UNet2DConditionModel.from_config(self.sd.unet_config())

    def prompt_embeds(self, prompt: str) -> Tensor:
        return torch.empty(1, self.sd.prompt_tokens(), int(self.sd.unet_config()["cross_attention_dim"]))

    def clip_backbone(self) -> ClipBackbone:
        return ClipBackbone(build_visual(self.clip_config())).eval()

    def egre(self) -> Egre:
        return Egre(self.egre_config())


def estimate(plan: Plan) -> Estimate:
    """Return what building ``plan`` needs. Disk is exact but for the graphs; memory leaves some room.

    The disk peak is the new bundle beside whatever bundle it replaces.
    """
    sources = plan.sources
    weightless = _Weightless(**{name: getattr(sources, name) for name in ModelSources.__dataclass_fields__})
    weights, graphs, loaded = {}, 0, 0
    with torch.device("meta"):
        for component in COMPONENTS:
            module = component.build(weightless, plan.geometry)
            prepare(module)
            weights[component.name] = sum(_BYTES[precision] for precision in plan.precisions) * _elements(module)
            graphs += len(plan.keys[component.name]) * _GRAPH_BYTES_PER_WEIGHT * len(module.state_dict())
        networks = (weightless.vae(), weightless.unet(), weightless.clip_backbone(), weightless.egre())
        loaded = _FLOAT * sum(_elements(network) for network in networks)
        largest = _FLOAT * max(_elements(network) for network in networks)
    # Activations grow with the pixels and with the images that are run at once.
    size, images = plan.geometry.image_size / _MEASURED_SIZE, max(plan.options.batches) / _MEASURED_IMAGES
    activations = max(1.0, size**2 * images)
    memory = max(_EXPORT_BASE + _EXPORT_FACTOR * largest, _PARITY_BASE * activations + _PARITY_FACTOR * loaded)
    noise = _FLOAT * (1 + plan.options.ensemble) * plan.geometry.latent[0] * plan.geometry.latent[1] ** 2
    return Estimate(weights, sum(weights.values()) + graphs + noise, int(memory))


def _elements(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.state_dict().values())
