"""GroupNorm as it is meant: torch's CPU kernel adds a quarter of a million float32 numbers in sequence.

On pictures with large areas of one value (a white background) every addition rounds the same way, and the first layers
of a VAE encoder come out up to 5e-5 (relative L2) away from the float64 result. A reference must not be the inaccurate
side of a comparison, so its statistics are taken in float64. GPU kernels add in a tree and do not need this.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AccurateGroupNorm(nn.GroupNorm):
    """GroupNorm whose mean and variance are summed in float64; parameters and output keep their type."""

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
