"""Layers rewritten, exactly, into the form that exports without weight-sized leftovers.

A plain Linear exports as Transpose(weight) → MatMul and a GroupNorm reshapes its scale: small ones are folded by the
exporter under new names, large ones are left for every engine to fold again at load. Here the stored weight already has
the layout that the graph uses, so each initialiser is one parameter under its own name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from lare2_ref.egre import split_heads
from lare2_rt.bundle.manifest import Profile

# From this many elements a group's sums are taken row by row. Engines add in float32 and in sequence: over a quarter of
# a million equal pixels (a white background) every addition rounds the same way, and the variance is off by up to 1e-4.
_LONG_SUM = 1 << 15


class MatMulLinear(nn.Module):
    """Linear with its weight stored as [in,out]."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().T.contiguous(), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        product = x @ self.weight
        return product if self.bias is None else product + self.bias


class ChannelGroupNorm(nn.Module):
    """GroupNorm over [B,C,h,w] or [B,C,N] with its scale and shift stored to broadcast over space."""

    def __init__(self, norm: nn.GroupNorm, spatial_axes: int) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        shape = (-1,) + (1,) * spatial_axes
        self.weight = nn.Parameter(norm.weight.detach().reshape(shape), requires_grad=False)
        self.bias = nn.Parameter(norm.bias.detach().reshape(shape), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out as in."""
        groups = x.reshape(x.shape[0], self.groups, -1)  # [B,G,N]
        if groups.shape[2] < _LONG_SUM or groups.shape[2] % x.shape[-1]:
            # One InstanceNormalization: every engine has a kernel for it.
            normal = F.instance_norm(groups, eps=self.eps)
        else:
            normal = self._in_two_stages(groups.unflatten(2, (-1, x.shape[-1])))  # [B,G,N/w,w]
        return normal.reshape(x.shape) * self.weight + self.bias

    def _in_two_stages(self, rows: Tensor) -> Tensor:
        centred = rows - rows.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
        variance = (centred * centred).mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
        return centred / torch.sqrt(variance + self.eps)


class SelfAttentionProcessor:
    """diffusers attention without a mask: q is scaled before the product, which keeps half precision in range."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: None = None,
    ) -> Tensor:
        """[B,N,C] or [B,C,h,w] in and out; diffusers passes the other arguments by name and they are always None."""
        assert encoder_hidden_states is None
        assert attention_mask is None
        assert temb is None
        residual, spatial = hidden_states, hidden_states.shape[2:]
        if len(spatial) == 2:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        query, key, value = (
            split_heads(project(hidden_states), attn.heads)  # [B,H,N,d]
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        weights = torch.softmax((query * query.shape[-1] ** -0.5) @ key.transpose(2, 3), dim=-1)  # [B,H,N,N]
        out: Tensor = attn.to_out[0]((weights @ value).transpose(1, 2).flatten(2))  # [B,N,C]
        if len(spatial) == 2:
            out = out.transpose(1, 2).unflatten(2, spatial)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor if attn.rescale_output_factor != 1 else out


@torch.no_grad()
def prepare(module: nn.Module, *, profile: Profile = "portable") -> None:
    """Rewrite every Linear, GroupNorm and self-attention below ``module`` in place; the function stays the same.

    Profile ``native`` leaves GroupNorms as they are: GPU engines have a kernel for the ONNX operator.
    """
    for parent in list(module.modules()):
        if isinstance(parent, Attention):
            parent.set_processor(SelfAttentionProcessor())
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, MatMulLinear(child))
            elif profile == "portable" and type(child) is nn.GroupNorm and child.affine:
                # diffusers' VAE attention normalises [B,C,N]; everything else normalises pictures.
                axes = 1 if name == "group_norm" else 2
                setattr(parent, name, ChannelGroupNorm(child, axes))
