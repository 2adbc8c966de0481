"""What network a single-file Stable Diffusion checkpoint holds, read off the names and shapes of its tensors.

The names are those of the original code (CompVis latent-diffusion, Stability-AI stablediffusion). What no shape tells,
such as the number of attention heads, is the same in every Stable Diffusion of a family and stands in
``models/sd_configs``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .checkpoints import Shape, Sizes, SourceError, read_json

Family = Literal["sd1", "sd2"]
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT: dict[Family, str] = {"sd1": "cond_stage_model.transformer.", "sd2": "cond_stage_model.model."}
FAMILIES: dict[Family, str] = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x"}
_KIND = "a Stable Diffusion 1.x or 2.x checkpoint in the original layout"
_REMEDY = "give a text-to-image Stable Diffusion 1.x or 2.x"
_SCHEDULE = (
    r"betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod|sqrt_one_minus_alphas_cumprod"
    r"|log_one_minus_alphas_cumprod|sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod|posterior_variance"
    r"|posterior_log_variance_clipped|posterior_mean_coef1|posterior_mean_coef2|lvlb_weights|logvar|scale_factor"
)
# What a checkpoint may hold beside the three networks, and all that is ever ignored:
IGNORED = re.compile(
    rf"model_ema\..*|{_SCHEDULE}"  # a second, averaged copy of the UNet; the noise schedule, which is the family's
    r"|first_stage_model\.(loss|model_ema)\..*"  # what the autoencoder was trained with
    r"|cond_stage_model\.transformer\.(text_model\.)?embeddings\.position_ids|cond_stage_model\.model\.attn_mask"
    r"|cond_stage_model\.(transformer\.|model\.)?(text_projection(\.weight)?|logit_scale)"  # CLIP's contrastive ends
)


@dataclass(frozen=True, slots=True)
class SdGeometry:
    """Configurations in diffusers' and transformers' terms.

    Attributes:
        family: the generation; prediction_type: what a checkpoint of it predicts unless something else is known.
        unet, vae, text_encoder, scheduler, tokenizer: arguments of the respective class.
        unused: start of the names of the text encoder's last block, which Stable Diffusion 2.x does not run.
    """

    family: Family
    prediction_type: str
    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoder: dict[str, Any]
    scheduler: dict[str, Any]
    tokenizer: dict[str, Any]
    unused: str | None


def read_geometry(shapes: Mapping[str, Shape], path: Path) -> SdGeometry:
    """Return the geometry of a checkpoint; raises SourceError naming what it is instead, or the key that is wrong."""
    _refuse_others(shapes, path)
    sizes = Sizes(shapes, path, _KIND)
    family: Family = "sd2" if any(key.startswith(TEXT["sd2"]) for key in shapes) else "sd1"
    facts = read_json(Path(__file__).parent / "models" / "sd_configs" / f"{family}.json")
    unet, vae = _unet(sizes, facts["unet"]), _vae(sizes, facts["vae"])
    text_encoder, unused = _text_encoder(sizes, family, facts["text_encoder"])
    if unet["cross_attention_dim"] != text_encoder["hidden_size"]:
        raise SourceError(
            f"{path}: the UNet attends to {unet['cross_attention_dim']} numbers a token and the text "
            f"encoder gives {text_encoder['hidden_size']}",
            remedy=_REMEDY,
        )
    predicted = str(facts["prediction_type"])
    scheduler, tokenizer = facts["scheduler"], facts["tokenizer"]
    return SdGeometry(family, predicted, unet, vae, text_encoder, scheduler, tokenizer, unused)


def _refuse_others(shapes: Mapping[str, Shape], path: Path) -> None:
    """Name the relatives of a Stable Diffusion 1.x or 2.x that people have in files of the same suffix."""

    def holds(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in shapes)

    entry = f"{UNET}input_blocks.0.0.weight"
    if holds("conditioner."):
        raise SourceError(f"{path} is a Stable Diffusion XL checkpoint (it has conditioner.*)", remedy=_REMEDY)
    if holds("model_ema.") and not holds(UNET):
        raise SourceError(
            f"{path} holds the UNet only as the training's average (model_ema.*, no {UNET}*)",
            remedy="give the checkpoint that was released for inference, in which the average stands in the "
            "UNet's place",
        )
    channels = shapes.get(entry, (0, 4))[1:2]
    if channels == (9,):
        raise SourceError(f"{path} is an inpainting checkpoint ({entry} takes 9 channels, not 4)", remedy=_REMEDY)
    if channels not in ((), (4,)):
        raise SourceError(f"{path}: {entry} takes {channels[0]} channels, not 4", remedy=_REMEDY)


def _count(shapes: Mapping[str, Shape], prefix: str) -> int:
    """The number of different indices that follow a prefix; names with gaps between them are found out later."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,4})\.")
    return len({match[1] for key in shapes if (match := pattern.match(key))})


def _divisible(sizes: Sizes, name: str, value: int, *, by: int) -> int:
    if value % by:
        raise sizes.wrong(name, f"a multiple of {by} is needed for {value}")
    return value // by


def _unet(sizes: Sizes, facts: dict[str, Any]) -> dict[str, Any]:
    shapes, groups = sizes.shapes, facts["norm_num_groups"]
    entry = sizes.of(f"{UNET}input_blocks.0.0.weight", 4)
    names: list[str] = []  # of the first convolution on each level
    widths: list[int] = []
    attends: list[bool] = []
    level = layers = 0
    for index in range(1, max(2, _count(shapes, f"{UNET}input_blocks."))):
        block = f"{UNET}input_blocks.{index}."
        if f"{block}0.op.weight" in shapes:
            level += 1
            continue
        name = f"{block}0.in_layers.2.weight"
        width = sizes.of(name, 4)[0]
        _divisible(sizes, name, width, by=groups)
        if level >= len(widths):
            level = len(widths)
            names.append(name)
            widths.append(width)
            attends.append(f"{block}1.proj_in.weight" in shapes)
        layers += level == 0
    if not widths:
        sizes.of(f"{UNET}input_blocks.1.0.in_layers.2.weight", 4)
    inside = f"{UNET}middle_block.1."
    context = sizes.of(f"{inside}transformer_blocks.0.attn2.to_k.weight", 2)
    linear = len(shapes.get(f"{inside}proj_in.weight", ())) == 2
    heads: int | list[int] = facts.get("heads", 0)
    if "head_width" in facts:
        heads = [
            _divisible(sizes, name, width, by=facts["head_width"]) for name, width in zip(names, widths, strict=True)
        ]
    return {
        "in_channels": entry[1],
        "out_channels": sizes.of(f"{UNET}out.2.weight", 4)[0],
        "block_out_channels": tuple(widths),
        "down_block_types": tuple("CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attends)),
        "layers_per_block": layers,
        "cross_attention_dim": context[1],
        "attention_head_dim": heads,  # diffusers means their number
        "norm_num_groups": groups,
        "use_linear_projection": linear,
    }


def _vae(sizes: Sizes, facts: dict[str, Any]) -> dict[str, Any]:
    shapes, encoder = sizes.shapes, f"{VAE}encoder."
    names = [
        f"{encoder}down.{level}.block.0.conv1.weight" for level in range(max(1, _count(shapes, f"{encoder}down.")))
    ]
    widths = [sizes.of(name, 4)[0] for name in names]
    for name, width in zip(names, widths, strict=True):
        _divisible(sizes, name, width, by=facts["norm_num_groups"])
    moments = f"{VAE}quant_conv.weight"
    return {
        "in_channels": sizes.of(f"{encoder}conv_in.weight", 4)[1],
        "out_channels": sizes.of(f"{VAE}decoder.conv_out.weight", 4)[0],
        "block_out_channels": tuple(widths),
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": _count(shapes, f"{encoder}down.0.block."),
        "latent_channels": _divisible(sizes, moments, sizes.of(moments, 4)[0], by=2),
        **facts,
    }


def _text_encoder(sizes: Sizes, family: Family, facts: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    prefix = TEXT[family]
    if family == "sd1":
        tokens, positions = (f"{prefix}text_model.embeddings.{kind}_embedding.weight" for kind in ("token", "position"))
        blocks, inner = f"{prefix}text_model.encoder.layers.", "0.mlp.fc1.weight"
    else:
        tokens, positions = f"{prefix}token_embedding.weight", f"{prefix}positional_embedding"
        blocks, inner = f"{prefix}transformer.resblocks.", "0.mlp.c_fc.weight"
    words, width = sizes.of(tokens, 2)
    if words != facts["vocab_size"]:
        raise sizes.wrong(tokens, f"CLIP's {facts['vocab_size']} tokens are needed")
    layers = _count(sizes.shapes, blocks)
    unused = None
    if family == "sd2":
        # Its prompts are encoded by the last block but one (the original configuration's layer: "penultimate").
        layers -= 1
        unused = f"{blocks}{layers}."
        if layers < 1:
            raise SourceError(
                f"{sizes.path} has {layers + 1} {blocks}* where 2 or more are needed", remedy=f"give {_KIND}"
            )
    config = {key: value for key, value in facts.items() if key != "head_width"}
    return {
        **config,
        "hidden_size": width,
        "intermediate_size": sizes.of(f"{blocks}{inner}", 2)[0],
        "max_position_embeddings": sizes.of(positions, 2)[0],
        "num_attention_heads": _divisible(sizes, tokens, width, by=facts["head_width"]),
        "num_hidden_layers": layers,
    }, unused
