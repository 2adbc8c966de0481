"""What the exporter needs to know about one component."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lare2_ref.egre import EgreConfig
from lare2_ref.sources import ModelSources

Precision = Literal["fp32", "fp16"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Shapes and constants of one bundle; E = ensemble.

    ``latent`` is (channels, height, width); ``egre`` holds the CLIP feature sizes.
    """

    image_size: int
    crop_size: int
    latent: tuple[int, int, int]
    ensemble: int
    timestep: int
    prompt: str
    prediction_type: str
    alpha_bar: float
    scaling_factor: float
    egre: EgreConfig

    def lare_fields(self) -> dict[str, object]:
        """The fields that are baked into the LaRE components, for their keys."""
        names = ("image_size", "latent", "ensemble", "timestep", "prompt", "prediction_type", "alpha_bar")
        return {name: getattr(self, name) for name in (*names, "scaling_factor")}


@dataclass(frozen=True, slots=True)
class Component:
    """One exported graph.

    Attributes:
        name: as in the manifest.
        roles: sources that decide it.
        build: loads the weights and returns the module to export, folded, in evaluation mode.
        example_inputs: random inputs of a batch size, in the order of ``input_names``.
        probes: extra outputs after ``output_names`` that parity looks at and the shipped graph does not have.
        tolerance: allowed relative L2 of each output and probe in float32, and ``reason`` for it.
    """

    name: str
    roles: tuple[str, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    build: Callable[[ModelSources, Geometry], nn.Module]
    example_inputs: Callable[[Geometry, int], tuple[Tensor, ...]]
    tolerance: dict[str, float]
    reason: str
    probes: tuple[str, ...] = ()


def random_pixels(batch: int, size: int) -> Tensor:
    """Seeded uint8 [B,S,S,3]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=generator)


def random_floats(*shape: int) -> Tensor:
    """Seeded float32 standard normal."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
