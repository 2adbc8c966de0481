"""Weights in miniature, written in every form in which people have the real ones."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from lare2_ref.clip_backbone import ClipConfig, build_visual
from lare2_ref.egre import Egre, EgreConfig, official_key
from lare2_ref.lare import LareExtractor
from lare2_ref.mini import seed_weights
from tests.helpers.tiny import CONFIG

Family = Literal["sd1", "sd2"]
WIDTH = 64  # of a text token: one head
UNET = {
    "sd1": {**CONFIG["unet"], "cross_attention_dim": WIDTH},
    "sd2": {
        **CONFIG["unet"],
        "cross_attention_dim": WIDTH,
        "block_out_channels": [64, 64, 64, 128],
        "attention_head_dim": [1, 1, 1, 2],
        "layers_per_block": 1,
        "use_linear_projection": True,
    },
}
TEXT = {"hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1}
ACTIVATION = {"sd1": "quick_gelu", "sd2": "gelu"}
PAD = {"sd1": "<|endoftext|>", "sd2": "!"}


@dataclass
class Pipeline:
    """Attributes: networks: diffusers' unet and vae, transformers' text_encoder."""

    family: Family
    prediction_type: str
    networks: dict[str, nn.Module]

    def state(self, name: str) -> dict[str, Tensor]:
        return dict(self.networks[name].state_dict())


@cache
def tiny_pipeline(family: Family) -> Pipeline:
    """Seeded weights that are exact in half precision, so that every precision of a file gives the same.

    Tests share it and leave it as it is.
    """
    networks = {
        "unet": UNet2DConditionModel(**UNET[family]),
        "vae": AutoencoderKL(**CONFIG["vae"]),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT, hidden_act=ACTIVATION[family])),
    }
    for name, network in networks.items():
        seed_weights(network, name, 5)
        network.half().float().eval()
    return Pipeline(family, "epsilon" if family == "sd1" else "v_prediction", networks)


def write_folder(pipeline: Pipeline, folder: Path, form: str = "safetensors") -> Path:
    """Write diffusers' layout: ``safetensors``, ``fp16`` (variant in half precision), ``sharded`` or ``bin``."""
    for name, network in pipeline.networks.items():
        if form == "fp16":
            network.half().save_pretrained(folder / name, variant="fp16")
            network.float()
            continue
        network.save_pretrained(folder / name, **({"max_shard_size": "2MB"} if form == "sharded" else {}))
        if form == "bin":
            (written,) = (folder / name).glob("*.safetensors")
            written.unlink()
            stem = written.stem if name != "text_encoder" else "pytorch_model"
            torch.save(network.state_dict(), folder / name / f"{stem}.bin")
    DDPMScheduler(**CONFIG["scheduler"], prediction_type=pipeline.prediction_type).save_pretrained(folder / "scheduler")
    write_tokenizer(folder / "tokenizer", PAD[pipeline.family])
    return folder


def write_tokenizer(folder: Path, pad: str) -> None:
    """Write CLIP's own vocabulary as a folder of transformers."""
    clip = SimpleTokenizer()
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    folder.mkdir(parents=True)
    vocabulary = {renamed.get(word, word): number for word, number in clip.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = "".join(f"{first} {second}\n" for first, second in clip.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_single(state: dict[str, Tensor], path: Path, **beside: object) -> Path:
    """Write one file, by its suffix; ``beside`` stands beside the state dict of a .ckpt, as Lightning writes it."""
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save({"state_dict": state, **beside}, path)
    return path


def original(pipeline: Pipeline) -> dict[str, Tensor]:
    """Return the state dict that the original training code would have written, with what stands beside the weights."""
    state = {
        "betas": torch.zeros(1000),
        "alphas_cumprod": torch.zeros(1000),
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.diffusion_modelout2bias": torch.zeros(4),
    }
    naming = unet_key(int(pipeline.networks["unet"].config.layers_per_block))
    state |= {f"model.diffusion_model.{naming(key)}": value for key, value in pipeline.state("unet").items()}
    levels = len(pipeline.networks["vae"].config.block_out_channels)
    for key, value in pipeline.state("vae").items():
        convolution = ".attentions." in key and value.ndim == 2
        state[f"first_stage_model.{vae_key(key, levels)}"] = value[:, :, None, None] if convolution else value
    text = {key.removeprefix("text_model."): value for key, value in pipeline.state("text_encoder").items()}
    return state | (text_sd1(text) if pipeline.family == "sd1" else text_sd2(text))


def unet_key(layers: int):
    """Return the renaming of diffusers' UNet keys to those of latent-diffusion's openaimodel.py."""
    per_level = layers + 1
    fixed = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    fixed |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    inside = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3"}
    inside |= {"time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}

    def rename(key: str) -> str:
        module, _, kind = key.rpartition(".")
        if module in fixed:
            return f"{fixed[module]}.{kind}"
        if match := re.fullmatch(r"mid_block\.(\w+)\.(\d)\.(.+)", key):
            part, number, rest = match.groups()
            block = "middle_block.1" if part == "attentions" else f"middle_block.{2 * int(number)}"
        else:
            way, level, part, layer, rest = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", key).groups()
            first = int(level) * per_level
            if part == "downsamplers":
                return f"input_blocks.{first + per_level}.0.op.{kind}"
            if part == "upsamplers":
                slot = 1 if level == "0" else 2  # after the attention, which the lowest level lacks
                return f"output_blocks.{first + layers}.{slot}.conv.{kind}"
            number = first + int(layer)
            block = f"input_blocks.{number + 1}" if way == "down" else f"output_blocks.{number}"
            block += ".1" if part == "attentions" else ".0"
        return f"{block}.{rest}" if part == "attentions" else f"{block}.{inside[rest.rpartition('.')[0]]}.{kind}"

    return rename


def vae_key(key: str, levels: int) -> str:
    """Rename diffusers' autoencoder keys to those of latent-diffusion's autoencoder."""
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", key)
    if "mid_block.attentions.0" in key:
        key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
        key = re.sub(r"to_([qkv])", r"\1", key).replace("to_out.0", "proj_out")
    return key


def text_sd1(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stable Diffusion 1.x: transformers' own names, with the positions that it used to store."""
    prefix = "cond_stage_model.transformer.text_model."
    renamed = {f"{prefix}{key}": value for key, value in state.items()}
    return renamed | {f"{prefix}embeddings.position_ids": torch.arange(77)[None]}


def text_sd2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stable Diffusion 2.x: OpenCLIP's names, one matrix for query, key and value, and a last block never run."""
    prefix, blocks = "cond_stage_model.model.", "transformer.resblocks."
    plain = {
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    inside = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    inside |= {"self_attn.out_proj": "attn.out_proj"}
    width = state["embeddings.position_embedding.weight"].shape[1]
    renamed = {"logit_scale": torch.tensor(4.6), "text_projection": torch.eye(width)}
    layers = 0
    for key, value in state.items():
        if key in plain:
            renamed[plain[key]] = value
            continue
        number, part, kind = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key).groups()
        layers = max(layers, int(number) + 1)
        if part == "self_attn.q_proj":
            joint = torch.cat([state[key.replace("q_proj", f"{each}_proj")] for each in "qkv"])
            renamed[f"{blocks}{number}.attn.in_proj_{kind}"] = joint
        elif part in inside:
            renamed[f"{blocks}{number}.{inside[part]}.{kind}"] = value
    first = {key.removeprefix(f"{blocks}0."): value for key, value in renamed.items() if key.startswith(f"{blocks}0.")}
    renamed |= {f"{blocks}{layers}.{key}": value + 1 for key, value in first.items()}
    return {f"{prefix}{key}": value for key, value in renamed.items()}


@torch.no_grad()
def lare_of(source) -> Tensor:
    """LaRE [1,4,8,8] of a fixed picture under fixed noise and a prompt that needs every rule of the tokenizer."""
    draw = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (1, 64, 64, 3), generator=draw, dtype=torch.uint8)
    posterior, noise = torch.randn(1, 4, 8, 8, generator=draw), torch.randn(2, 4, 8, 8, generator=draw)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers this small lose by sharing
    try:
        embeds = source.prompt_embeds("A photo of a Saint Bernard, on “grass”!")
        extractor = LareExtractor(source.vae(), source.unet(), source.scheduler(), prompt_embeds=embeds)
        return extractor(image, posterior, noise).lare
    finally:
        torch.set_num_threads(threads)


SMALL_CLIP = ClipConfig(layers=(1, 1, 2, 1), width=8, embedding=48, image_size=64)


def small_head(name):
    return EgreConfig(
        head=name, channels=SMALL_CLIP.channels, embedding=48, grid=SMALL_CLIP.grid, head_width=8, gate_width=16
    )


def official(name, visual):
    """A state dict as the official training writes it: CLIP with its text tower, the head, and unused layers."""
    head = Egre(small_head(name))
    seed_weights(head, name, 3)
    state = {f"clip_model.visual.{key}": value for key, value in visual.items()}
    state |= {"clip_model.token_embedding.weight": torch.zeros(10, 4), "clip_model.logit_scale": torch.tensor(1.0)}
    state |= {official_key(name, key): value for key, value in head.state_dict().items()}
    state |= {"conv_align.weight": torch.zeros(SMALL_CLIP.channels, 4, 1, 1), "conv_align.bias": torch.zeros(4)}
    if name == "v7":
        for part in ("attention1", "attention2"):
            state[f"attn_pool.{part}.relative_importance_mapping.weight"] = torch.zeros(8, SMALL_CLIP.channels)
            state[f"attn_pool.{part}.relative_importance_mapping.bias"] = torch.zeros(8)
    return head.state_dict(), state


def small_visual() -> dict[str, Tensor]:
    """A CLIP tower's state dict."""
    network = build_visual(SMALL_CLIP)
    seed_weights(network, "clip", 3)
    return dict(network.state_dict())


class Archive(torch.nn.Module):
    def __init__(self, state):
        super().__init__()
        self.visual = build_visual(SMALL_CLIP)
        self.visual.load_state_dict(state)

    def forward(self, x):
        return x


class Code:
    def __reduce__(self):
        return print, ("executed",)
