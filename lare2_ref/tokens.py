"""Shapes of attention, in one place. B images, N or T tokens, H heads, d head width."""

from __future__ import annotations

import torch
from torch import Tensor


def to_tokens(features: Tensor) -> Tensor:
    """[B,C,h,w] -> [B,h·w,C], row-major."""
    return features.flatten(2).transpose(1, 2)


def with_mean_token(tokens: Tensor) -> Tensor:
    """Prepend the mean over tokens: [B,T,C] -> [B,1+T,C]."""
    return torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """[B,N,H·d] -> [B,H,N,d]."""
    split: Tensor = tokens.unflatten(2, (heads, -1))
    return split.transpose(1, 2)
