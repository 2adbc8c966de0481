"""Constants folded in torch before export: what one fixed timestep and one fixed prompt make constant is computed once.

The exporter's optimiser skips every operation with a large weight, and engines would fold these only at load, after
shipping 47 million useless weights of SD 1.5. Folding here is one definition that a test can hold against the original.

Matrix products are taken in float64 and rounded once: in float32 their last digit depends on the processor and on the
number of threads, and with it the bytes of the bundle.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lare2_ref.checkpoints import SourceError
from lare2_ref.egre import split_heads

_REMEDY = "use Stable Diffusion 1.x or 2.x"


@dataclass(frozen=True, slots=True)
class FoldReport:
    """Element counts of a folded UNet: ``after = before − removed + constants``.

    ``removed`` are the weights of the time path and of the cross-attention keys and values, ``constants`` the keys and
    values that replace them.
    """

    before: int
    removed: int
    constants: int
    after: int


class FoldedCrossAttention(nn.Module):
    """Cross-attention whose keys and values are constants of batch 1."""

    key: Tensor
    value: Tensor

    def __init__(self, attention: Attention, key: Tensor, value: Tensor) -> None:
        super().__init__()
        self.heads = attention.heads
        self.to_q = attention.to_q
        self.to_out = attention.to_out
        self.register_buffer("key", key.transpose(2, 3).contiguous())  # [1,H,d,tokens], as the product needs it
        self.register_buffer("value", value)  # [1,H,tokens,d]

    def forward(self, hidden_states: Tensor, **ignored: object) -> Tensor:
        """[B,N,C] -> [B,N,C]; diffusers' other arguments (context, masks) have become constants."""
        query = split_heads(self.to_q(hidden_states), self.heads)  # [B,H,N,d]
        # Scaling q before the product keeps the product in half precision's range.
        scores = (query * query.shape[-1] ** -0.5) @ self.key  # [B,H,N,tokens]
        attended = torch.softmax(scores, dim=-1) @ self.value  # [B,H,N,d]
        out: Tensor = self.to_out[0](attended.transpose(1, 2).flatten(2))
        return out


class _NoTimeEmbedding(nn.Module):
    """Stands in for the time embedding: every block that asked for it has its share in a bias already."""

    def forward(self, *ignored: object) -> None:
        """Return nothing, which diffusers' blocks take as 'no time'."""


@torch.no_grad()
def fold_unet(unet: UNet2DConditionModel, *, timestep: int, prompt_embeds: Tensor) -> FoldReport:
    """Fold a constant timestep and prompt ([1,tokens,width]) into a UNet, in place.

    Raises:
        SourceError: the UNet has a conditioning that this does not cover.
    """
    _refuse_unknown(unet)
    before = _elements(unet)
    time = _time_embedding(unet, timestep)  # float64 [1,T]
    removed = constants = 0
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            removed += _fold_time(module, time)
    for parent in list(unet.modules()):
        attention = getattr(parent, "attn2", None)
        if isinstance(attention, Attention):
            removed += _elements(attention.to_k) + _elements(attention.to_v)
            folded = _fold_context(attention, prompt_embeds)
            constants += folded.key.numel() + folded.value.numel()
            parent.attn2 = folded
    removed += _elements(unet.time_embedding) + _elements(unet.time_proj)
    unet.time_embedding = _NoTimeEmbedding()
    return FoldReport(before, removed, constants, _elements(unet) + constants)


def _refuse_unknown(unet: UNet2DConditionModel) -> None:
    """Say clearly which conditioning is not folded, instead of exporting something else than the reference."""
    config = unet.config
    expected = {
        "time_embedding_type": "positional",
        "resnet_time_scale_shift": "default",
        "class_embed_type": None,
        "addition_embed_type": None,
        "encoder_hid_dim_type": None,
        "num_class_embeds": None,
        "time_cond_proj_dim": None,
        "conv_in_kernel": 3,
        "only_cross_attention": False,
        "dual_cross_attention": False,
    }
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise SourceError(f"the UNet has {name}={config[name]!r}", remedy=_REMEDY)


def _time_embedding(unet: UNet2DConditionModel, timestep: int) -> Tensor:
    """The network's own embedding of a timestep: its sinusoids as they are, in float32, and two linear layers."""
    embedding = unet.time_embedding
    if embedding.cond_proj is not None or embedding.post_act is not None:
        raise SourceError("the UNet embeds its timestep in an unknown way", remedy=_REMEDY)
    sinusoids = unet.time_proj(torch.tensor([timestep], device=unet.device))
    return _exact(embedding.linear_2, embedding.act(_exact(embedding.linear_1, sinusoids.double())))


def _exact(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer in float64."""
    return F.linear(x, layer.weight.double(), None if layer.bias is None else layer.bias.double())


def _fold_time(block: ResnetBlock2D, time: Tensor) -> int:
    """Add the block's time projection to the bias of its first convolution; return the elements removed."""
    projection = block.time_emb_proj
    if projection is None:
        return 0
    shift = _exact(projection, time if block.skip_time_act else F.silu(time))[0]  # [C]
    if block.conv1.bias is None:
        raise SourceError("a ResNet block of the UNet has no bias to fold the timestep into", remedy=_REMEDY)
    block.conv1.bias.copy_(block.conv1.bias.double() + shift)
    block.time_emb_proj = None
    return _elements(projection)


def _fold_context(attention: Attention, prompt_embeds: Tensor) -> FoldedCrossAttention:
    if attention.norm_cross or attention.norm_q is not None or attention.norm_k is not None:
        raise SourceError("the UNet normalises its cross-attention", remedy=_REMEDY)
    if attention.rescale_output_factor != 1 or attention.residual_connection:
        raise SourceError("the UNet's cross-attention has an unknown output", remedy=_REMEDY)
    dtype = attention.to_k.weight.dtype
    key, value = (
        split_heads(_exact(project, prompt_embeds.double()).to(dtype), attention.heads)  # [1,H,tokens,d]
        for project in (attention.to_k, attention.to_v)
    )
    return FoldedCrossAttention(attention, key, value.contiguous())


@torch.no_grad()
def fold_batch_norms(module: nn.Module) -> int:
    """Fold every Conv2d–BatchNorm2d pair of open_clip's ResNet in place; return how many were folded.

    Pairs are siblings called ``conv<n>``/``bn<n>``, or the items ``0`` and ``1`` of a downsampling branch.
    """
    folded = 0
    for parent in list(module.modules()):
        children = dict(parent.named_children())
        for name, child in children.items():
            partner = {"0": "1"}.get(name) or name.replace("conv", "bn")
            norm = children.get(partner)
            if isinstance(child, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(child, norm))
                setattr(parent, partner, nn.Identity())
                folded += 1
    return folded


def _elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
