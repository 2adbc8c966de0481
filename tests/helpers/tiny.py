"""The tiny pipeline of the golden files as a model folder, so that tests take the same road as Stable Diffusion."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from lare2_ref.sources import ModelSources, default_model_folder, open_model_folder
from tests.golden.seeded_weights import seeded_input, seeded_tensor

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = json.loads((GOLDEN / "tiny_pipeline.json").read_text())


def golden_state(module: nn.Module, rename=lambda key: key) -> dict[str, Tensor]:
    return {k: torch.from_numpy(seeded_tensor(rename(k), tuple(v.shape))) for k, v in module.state_dict().items()}


def seeded(module: nn.Module, rename=lambda key: key) -> nn.Module:
    module.load_state_dict(golden_state(module, rename))
    return module.eval()


def tiny_vae() -> AutoencoderKL:
    return seeded(AutoencoderKL(**CONFIG["vae"]))


def tiny_unet() -> UNet2DConditionModel:
    return seeded(UNet2DConditionModel(**CONFIG["unet"]))


def tiny_scheduler(prediction_type: str) -> DDPMScheduler:
    return DDPMScheduler(**CONFIG["scheduler"], prediction_type=prediction_type)


class GoldenSources(ModelSources):
    """Sources whose prompt embedding is the one that the golden run had."""

    def prompt_embeds(self, prompt: str) -> Tensor:
        return torch.from_numpy(np.load(GOLDEN / "official_lare_epsilon.npz")["prompt_embeds"])


def write_tiny(folder: Path, prediction_type: str) -> GoldenSources:
    """Write the tiny pipeline in diffusers layout beside mini's text encoder, CLIP and head; return its sources."""
    shutil.copytree(default_model_folder(), folder, ignore=shutil.ignore_patterns("unet", "vae", "scheduler"))
    tiny_vae().save_pretrained(folder / "vae")
    tiny_unet().save_pretrained(folder / "unet")
    tiny_scheduler(prediction_type).save_pretrained(folder / "scheduler")
    return open_tiny(folder)


def open_tiny(folder: Path) -> GoldenSources:
    """Return the sources of a folder that ``write_tiny`` made."""
    sources = open_model_folder(folder)
    return GoldenSources(**{name: getattr(sources, name) for name in ModelSources.__dataclass_fields__})


def golden_noise() -> tuple[np.ndarray, np.ndarray]:
    return seeded_input("posterior_noise", (1, 4, 32, 32)), seeded_input("ensemble_noise", (4, 4, 32, 32))
