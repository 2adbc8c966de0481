"""CLIP backbone: the native window to the attention-pooled embedding and the layer3 features."""

from __future__ import annotations

import torch
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor, nn

from lare2_ref.clip_backbone import ClipBackbone
from lare2_ref.egre import split_heads, to_tokens, with_mean_token
from lare2_ref.sources import ModelSources

from ..graph.fold import fold_batch_norms
from .spec import Component, ComponentGraph, Geometry, random_pixels


class SingleQueryPool(nn.Module):
    """open_clip's attention pool for the one query whose result is used; the original computes all tokens' queries."""

    def __init__(self, pool: AttentionPool2d) -> None:
        super().__init__()
        self.heads = pool.num_heads
        self.positional_embedding = pool.positional_embedding
        self.q_proj, self.k_proj, self.v_proj, self.c_proj = pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj

    def forward(self, features: Tensor) -> Tensor:
        """[B,C,h,w] -> [B,D]."""
        tokens = with_mean_token(to_tokens(features)) + self.positional_embedding  # [B,1+h·w,C]
        query = split_heads(self.q_proj(tokens[:, :1]), self.heads)  # [B,H,1,d]
        key, value = (split_heads(project(tokens), self.heads) for project in (self.k_proj, self.v_proj))
        weights = torch.softmax((query * query.shape[-1] ** -0.5) @ key.transpose(2, 3), dim=-1)  # [B,H,1,1+h·w]
        embedding: Tensor = self.c_proj((weights @ value).flatten(1))
        return embedding


class ClipGraph(ComponentGraph):
    """The backbone with plain tensors as outputs."""

    networks = ("backbone.visual",)

    def __init__(self, backbone: ClipBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, crop: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B,S,S,3] RGB -> embedding [B,D], layer3 [B,C,grid,grid]."""
        features = self.backbone.features(self.backbone.normalise(crop).to(self.dtype))
        return features.embedding.float(), features.layer3.float()


def build(sources: ModelSources, geometry: Geometry) -> ComponentGraph:
    """Return the module with BatchNorms folded and the pool reduced to its one query."""
    backbone = sources.clip_backbone()
    fold_batch_norms(backbone.visual)
    backbone.visual.attnpool = SingleQueryPool(backbone.visual.attnpool)
    return ClipGraph(backbone).eval()


def example_inputs(geometry: Geometry, batch: int) -> tuple[Tensor, ...]:
    """Return (crop,)."""
    return (random_pixels(batch, geometry.crop_size),)


CLIP_BACKBONE = Component(
    name="clip_backbone",
    roles=("clip",),
    input_names=("crop",),
    output_names=("embedding", "layer3"),
    build=build,
    example_inputs=example_inputs,
    tolerance={"embedding": 1e-5, "layer3": 1e-5},
    reason="float32 rounding through every convolution, with BatchNorms folded into them",
    half_tolerance={"embedding": 1e-2, "layer3": 1e-2},
)
