"""EGRE head: error map and CLIP features to logits and the ESR attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lare2_ref.egre import Egre
from lare2_ref.sources import ModelSources

from .spec import Component, ComponentGraph, Geometry, random_floats


class ConstantPool(nn.Module):
    """Adaptive average pooling between fixed sizes as two constant matrix products, P·E·Qᵀ."""

    rows: Tensor
    columns: Tensor

    def __init__(self, height: int, width: int, grid: int) -> None:
        super().__init__()
        self.register_buffer("rows", pooling_matrix(height, grid))
        self.register_buffer("columns", pooling_matrix(width, grid).T.contiguous())

    def forward(self, lare: Tensor) -> Tensor:
        """[B,4,h,w] -> [B,4,grid,grid]."""
        return self.rows @ lare @ self.columns


def pooling_matrix(size: int, grid: int) -> Tensor:
    """Return float32 [grid,size]: row i averages positions floor(i·size/grid) to ceil((i+1)·size/grid)."""
    matrix = torch.zeros(grid, size)
    for row in range(grid):
        start, end = row * size // grid, -((-(row + 1) * size) // grid)
        matrix[row, start:end] = 1 / (end - start)
    return matrix


class EgreGraph(ComponentGraph):
    """A head whose adaptive pooling has become two constant matrix products."""

    networks = ("esr", "ecr", "classifier")

    def __init__(self, head: Egre, geometry: Geometry) -> None:
        super().__init__()
        self.esr, self.ecr, self.classifier = head.esr, head.ecr, head.classifier
        self.pool = ConstantPool(*geometry.latent[1:], head.config.grid)

    def forward(self, lare: Tensor, embedding: Tensor, layer3: Tensor) -> tuple[Tensor, Tensor]:
        """LaRE [B,4,h,w], embedding [B,D], layer3 [B,C,grid,grid] -> logits [B,2], attention [B,H,T]."""
        pooled, lare, embedding, layer3 = (
            tensor.to(self.dtype) for tensor in (self.pool(lare), lare, embedding, layer3)
        )
        spatial, attention = self.esr.attend(pooled, layer3)
        channel = self.ecr(lare, layer3)
        logits = self.classifier(torch.cat([embedding, spatial, channel], dim=1))
        return logits.float(), attention.float()


def build(sources: ModelSources, geometry: Geometry) -> ComponentGraph:
    """Return the module with the sources' head."""
    return EgreGraph(sources.egre(), geometry).eval()


def example_inputs(geometry: Geometry, batch: int) -> tuple[Tensor, ...]:
    """Return (lare, embedding, layer3)."""
    sizes = geometry.egre
    return (
        random_floats(batch, *geometry.latent).square(),
        random_floats(batch, sizes.embedding),
        random_floats(batch, sizes.channels, sizes.grid, sizes.grid),
    )


EGRE = Component(
    name="egre",
    roles=("head",),
    input_names=("lare", "embedding", "layer3"),
    output_names=("logits", "attention"),
    build=build,
    example_inputs=example_inputs,
    tolerance={"logits": 1e-5, "attention": 1e-5},
    reason="float32 rounding of one attention and one linear layer",
    half_tolerance={"logits": 2e-2, "attention": 1e-2},
)
