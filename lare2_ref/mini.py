"""The sizes of ``mini``, the small model that ships with the project, and a folder of them with seeded random weights.

``python -m lare2_ref.mini FOLDER`` writes the folder; its card says ``untrained``, so it never gives a verdict. What
ships has these sizes and trained weights (``benchmarks/miniature``). Weights are stored in half precision and used
in float32, which halves the repository's share and changes nothing else.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from .checkpoints import SourceError
from .clip_backbone import ClipConfig, build_visual
from .egre import Egre, EgreConfig, official_key
from .sources import CARD

VAE = {
    "block_out_channels": (16, 32, 32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,  # at least four channels a group, as in SD: small groups amplify rounding on flat pictures
    "sample_size": 256,
    "scaling_factor": 0.18215,
}
UNET = {
    "sample_size": 32,
    "block_out_channels": (32, 48, 64, 64),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
}
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 514,
    "bos_token_id": 512,
    "eos_token_id": 513,
    "pad_token_id": 513,
}
CLIP = ClipConfig(layers=(1, 1, 2, 1), width=12, embedding=192)
EGRE = EgreConfig(channels=CLIP.channels, embedding=CLIP.embedding, grid=CLIP.grid, head_width=16, gate_width=32)
CARD_TEXT = {
    "name": "mini",
    "description": "seeded random weights in miniature; shows that the chain works, cannot judge an image",
    "calibration": "untrained",
    "licence": "Apache-2.0",
    "synthetic": True,
}


def write_mini(folder: Path, *, seed: int = 0, prediction_type: str = "epsilon") -> None:
    """Write the model folder; raises SourceError when it exists already."""
    if folder.exists():
        raise SourceError(f"{folder} exists already", remedy="remove it or name another folder")
    networks: dict[str, nn.Module] = {
        "vae": AutoencoderKL(**VAE),
        "unet": UNet2DConditionModel(**UNET),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT)),
        "clip": build_visual(CLIP),
        "egre": Egre(EGRE),
    }
    for name, network in networks.items():
        seed_weights(network, name, seed)
    for name in ("vae", "unet", "text_encoder"):
        networks[name].half().save_pretrained(folder / name, variant="fp16")  # type: ignore[operator]
    DDPMScheduler(**SCHEDULE, prediction_type=prediction_type).save_pretrained(folder / "scheduler")
    write_byte_tokenizer(folder / "tokenizer")
    _write(folder / "clip", CLIP.as_dict(), networks["clip"].half().state_dict())
    head = {official_key(EGRE.head, key): value for key, value in networks["egre"].half().state_dict().items()}
    _write(folder / "egre", EGRE.as_dict(), head)
    (folder / CARD).write_text(json.dumps(CARD_TEXT, indent=2) + "\n")


@torch.no_grad()
def seed_weights(network: nn.Module, name: str, seed: int) -> None:
    """Fill every floating-point tensor from a generator seeded by its own name.

    Matrices are N(0, 1/fan_in), so signals keep their size; norms stay near 1 and biases near 0. The tensor's name
    seeds it, so one layer's weights do not move when another is added.
    """
    for key, tensor in network.state_dict().items():
        if not tensor.is_floating_point() or key.endswith("running_var"):
            continue
        draw = np.random.Generator(np.random.Philox(key=[zlib.crc32(f"{name}.{key}".encode()), seed]))
        values = torch.from_numpy(draw.standard_normal(tuple(tensor.shape)).astype(np.float32))
        if tensor.ndim > 1:
            values /= math.sqrt(tensor[0].numel())
        elif key.endswith("weight"):
            values = 1 + 0.1 * values
        else:
            values *= 0.1
        tensor.copy_(values)


def write_byte_tokenizer(folder: Path) -> None:
    """Write a CLIP tokenizer without merges: 256 bytes, 256 bytes at a word's end, start and end of text."""
    # CLIP writes bytes as printable characters: those that are printable stand for themselves, the others follow 256.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _write(folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m lare2_ref.mini FOLDER")
    try:
        write_mini(Path(sys.argv[1]))
    except SourceError as error:
        sys.exit(str(error))
