"""What the exporter needs to know about one component."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lare2_ref.egre import EgreConfig
from lare2_ref.sources import ModelSources


class ComponentGraph(nn.Module):
    """A component as it is exported. Inputs and outputs are uint8 or float32 in every precision.

    ``networks`` names the submodules whose weights and arithmetic may become half precision; what a component computes
    around them (pixels, sampling, the error) stays float32.
    """

    networks: ClassVar[tuple[str, ...]]

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the networks' weights."""
        return next(self.get_submodule(self.networks[0]).parameters()).dtype

    def to_half(self) -> None:
        """Make the networks half precision, in place."""
        for name in self.networks:
            self.get_submodule(name).half()


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
        half_tolerance: the same in half precision.
    """

    name: str
    roles: tuple[str, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    build: Callable[[ModelSources, Geometry], ComponentGraph]
    example_inputs: Callable[[Geometry, int], tuple[Tensor, ...]]
    tolerance: dict[str, float]
    reason: str
    half_tolerance: dict[str, float]
    probes: tuple[str, ...] = ()


def random_pixels(batch: int, size: int) -> Tensor:
    """Seeded uint8 [B,S,S,3]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=generator)


def random_floats(*shape: int) -> Tensor:
    """Seeded float32 standard normal."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
