"""EGRE: the latent reconstruction error guides CLIP features in space (ESR) and channel (ECR); then a linear layer.

Heads V6 (the paper's) and V7 of the official ``model.py``, written from the method and right for a batch of one, where
the official code drops the batch axis. Shapes in comments use B images, C layer3 channels, D embedding width, H heads,
d head width, T = grid² patch tokens; for RN50 at 224 pixels C = D = 1024, H = 8, d = 64, T = 196.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lare2_rt.bundle.manifest import HeadName


@dataclass(frozen=True, slots=True)
class EgreConfig:
    """Sizes of a head; the defaults are those of the official V6 on RN50 at 224 pixels."""

    head: HeadName = "v6"
    channels: int = 1024
    embedding: int = 1024
    lare_channels: int = 4
    grid: int = 14
    heads: int = 8
    head_width: int = 64
    gate_width: int = 128
    dropout: float = 0.1

    def as_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return asdict(self)


class EgreOutput(NamedTuple):
    """Results of a head.

    Attributes:
        logits: [B,2], index 1 = generated.
        attention: [B,H,T], ESR weights of the patch tokens (of the image query in V7); each row sums to less than 1,
            the rest being the weight of the mean token.
        spatial: ESR feature, [B,C] (V6) or image and LaRE features side by side [B,2C] (V7).
        channel: ECR feature [B,C].
    """

    logits: Tensor
    attention: Tensor
    spatial: Tensor
    channel: Tensor


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


class Attention(nn.Module):
    """Single-query attention of head V6: the query is token 0; a bias per head and token enters before the softmax."""

    def __init__(self, config: EgreConfig) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, config.head_width
        inner = config.heads * config.head_width
        self.query = nn.Linear(config.channels, inner)
        self.key = nn.Linear(config.channels, inner)
        self.value = nn.Linear(config.channels, inner)
        self.out = nn.Linear(inner, config.channels)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the attended feature [B,C] and the weights [B,H,1+T] from tokens [B,1+T,C] and bias [B,1+T,H]."""
        query = split_heads(self.query(tokens[:, :1]), self.heads)  # [B,H,1,d]
        key = split_heads(self.key(tokens), self.heads)  # [B,H,1+T,d]
        value = split_heads(self.value(tokens), self.heads)
        # Scaling the query, not the product, keeps the product in range in half precision.
        scores = (query * self.head_width**-0.5) @ key.transpose(2, 3)  # [B,H,1,1+T]
        weights = torch.softmax(scores + bias.transpose(1, 2).unsqueeze(2), dim=-1)
        attended = self.dropout(weights) @ value  # [B,H,1,d]
        return self.out(attended.flatten(1)), weights.squeeze(2)


class Esr(nn.Module):
    """Error-guided spatial refinement (paper 3.3): LaRE biases where the mean feature attends."""

    def __init__(self, config: EgreConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.bias = nn.Conv2d(config.lare_channels, config.heads, 1)
        self.positional_embedding = nn.Parameter(torch.zeros(1 + config.grid**2, config.channels))
        self.attention = Attention(config)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.channels)

    def forward(self, lare: Tensor, layer3: Tensor) -> tuple[Tensor, Tensor]:
        """Return the feature [B,C] and patch weights [B,H,T] from LaRE [B,4,h,w] and layer3 [B,C,grid,grid]."""
        return self.attend(F.adaptive_avg_pool2d(lare, self.grid), layer3)

    def attend(self, pooled: Tensor, layer3: Tensor) -> tuple[Tensor, Tensor]:
        """The same from LaRE that is pooled to [B,4,grid,grid] already."""
        bias = with_mean_token(to_tokens(self.bias(pooled)))  # [B,1+T,H]
        tokens = with_mean_token(to_tokens(layer3)) + self.positional_embedding  # [B,1+T,C]
        attended, weights = self.attention(tokens, bias)
        return self.norm(self.dropout(attended) + tokens[:, 0]), weights[:, :, 1:]


class PairAttention(nn.Module):
    """Single-query attention of head V7: one query scored against the keys of both token streams."""

    def __init__(self, config: EgreConfig) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, config.head_width
        inner = config.heads * config.head_width
        self.query = nn.Linear(config.channels, inner)
        self.image_key = nn.Linear(config.channels, inner)
        self.lare_key = nn.Linear(config.channels, inner)
        self.value = nn.Linear(config.channels, inner)
        self.out = nn.Linear(inner, config.channels)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, own: Tensor, image: Tensor, lare: Tensor) -> tuple[Tensor, Tensor]:
        """Return the feature [B,C] and weights [B,H,1+T]; ``own`` gives query and values, all are [B,1+T,C]."""
        query = split_heads(self.query(own[:, :1]), self.heads) * (2 * self.head_width) ** -0.5  # [B,H,1,d]
        keys = split_heads(self.image_key(image) + self.lare_key(lare), self.heads)  # q·k1 + q·k2 = q·(k1 + k2)
        weights = torch.softmax(query @ keys.transpose(2, 3), dim=-1)  # [B,H,1,1+T]
        attended = self.dropout(weights) @ split_heads(self.value(own), self.heads)
        return self.out(attended.flatten(1)), weights.squeeze(2)


class PairEsr(nn.Module):
    """ESR of head V7: LaRE becomes a second stream of tokens, and both streams attend over each other."""

    def __init__(self, config: EgreConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.lare_tokens = nn.Conv2d(config.lare_channels, config.channels, 1)
        self.positional_embedding = nn.Parameter(torch.zeros(1 + config.grid**2, config.channels))
        self.image_attention = PairAttention(config)
        self.lare_attention = PairAttention(config)
        self.dropout = nn.Dropout(config.dropout)
        self.image_norm = nn.LayerNorm(config.channels)
        self.lare_norm = nn.LayerNorm(config.channels)

    def forward(self, lare: Tensor, layer3: Tensor) -> tuple[Tensor, Tensor]:
        """Return both features side by side [B,2C] and the image query's patch weights [B,H,T]."""
        return self.attend(F.adaptive_avg_pool2d(lare, self.grid), layer3)

    def attend(self, pooled: Tensor, layer3: Tensor) -> tuple[Tensor, Tensor]:
        """The same from LaRE that is pooled to [B,4,grid,grid] already."""
        image = with_mean_token(to_tokens(layer3)) + self.positional_embedding  # [B,1+T,C]
        error = with_mean_token(to_tokens(self.lare_tokens(pooled))) + self.positional_embedding
        image_feature, weights = self.image_attention(image, image, error)
        lare_feature, _ = self.lare_attention(error, image, error)
        image_feature = self.image_norm(self.dropout(image_feature) + image[:, 0])
        lare_feature = self.lare_norm(self.dropout(lare_feature) + error[:, 0])
        return torch.cat([image_feature, lare_feature], dim=1), weights[:, :, 1:]


class Ecr(nn.Module):
    """Error-guided channel refinement (paper 3.3): the mean error opens or closes each channel of the mean feature."""

    def __init__(self, config: EgreConfig) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(config.lare_channels, config.gate_width, bias=False),
            nn.ReLU(),
            nn.Linear(config.gate_width, config.channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, lare: Tensor, layer3: Tensor) -> Tensor:
        """Return [B,C] from LaRE [B,4,h,w] and layer3 [B,C,grid,grid]."""
        gate: Tensor = self.gate(lare.mean(dim=(2, 3)))
        return gate * layer3.mean(dim=(2, 3))


class Egre(nn.Module):
    """The head: attention-pooled embedding, ESR and ECR side by side, then Linear to (real, generated)."""

    def __init__(self, config: EgreConfig) -> None:
        super().__init__()
        self.config = config
        self.esr: Esr | PairEsr = Esr(config) if config.head == "v6" else PairEsr(config)
        self.ecr = Ecr(config)
        spatial = config.channels * (1 if config.head == "v6" else 2)
        self.classifier = nn.Linear(config.embedding + spatial + config.channels, 2)

    def forward(self, lare: Tensor, embedding: Tensor, layer3: Tensor) -> EgreOutput:
        """Score B images from LaRE [B,4,h,w], embedding [B,D] (not normalised) and layer3 [B,C,grid,grid]."""
        spatial, attention = self.esr(lare, layer3)
        channel = self.ecr(lare, layer3)
        logits = self.classifier(torch.cat([embedding, spatial, channel], dim=1))
        return EgreOutput(logits, attention, spatial, channel)


# Our module names against the official state dicts' (method.md 3.4 and 3.5): (ours, theirs), longest prefix first.
_SHARED_KEYS = (
    ("classifier.", "fc."),
    ("ecr.gate.", "channel_align.fc."),
    ("esr.positional_embedding", "attn_pool.positional_embedding"),
)
_ATTENTION_KEYS = {
    "query": "fc_q",
    "key": "fc_k",
    "image_key": "fc_k1",
    "lare_key": "fc_k2",
    "value": "fc_v",
    "out": "fc_o",
}
_HEAD_KEYS: dict[HeadName, tuple[tuple[str, str], ...]] = {
    "v6": (
        ("esr.bias.", "conv."),
        *((f"esr.attention.{ours}.", f"attn_pool.attention.{theirs}.") for ours, theirs in _ATTENTION_KEYS.items()),
        ("esr.norm.", "attn_pool.layer_norm."),
    ),
    "v7": (
        ("esr.lare_tokens.", "conv."),
        *(
            (f"esr.{stream}.{ours}.", f"attn_pool.{official}.{theirs}.")
            for stream, official in (("image_attention", "attention1"), ("lare_attention", "attention2"))
            for ours, theirs in _ATTENTION_KEYS.items()
        ),
        ("esr.image_norm.", "attn_pool.layer_norm1."),
        ("esr.lare_norm.", "attn_pool.layer_norm2."),
    ),
}


def official_key(head: HeadName, key: str) -> str:
    """Return the official name of one of our state-dict keys; raises KeyError for a key that is not a head's."""
    for ours, theirs in (*_SHARED_KEYS, *_HEAD_KEYS[head]):
        if key.startswith(ours):
            return theirs + key[len(ours) :]
    raise KeyError(key)
