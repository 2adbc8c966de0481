"""What LaRE costs beside DIRE on this machine: networks of the real sizes, seeded weights, the same threads.

DIRE (Wang et al., ICCV 2023) inverts a picture with 20 DDIM steps of a pixel-space ADM at 256² and reconstructs it with
20 more. One step is measured and multiplied by 40: the steps are the same computation. LaRE is measured whole: VAE
encoder and one UNet call with four draws, in the geometry of SD 1.5.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lare2_ref.lare import LareExtractor
from lare2_ref.mini import seed_weights
from lare2_ref.synthetic import SyntheticSd15
from lare2_rt.bundle.noise import draw_noise

DIRE_STEPS = 20 + 20
# ADM's unconditional 256² model (guided-diffusion: 256 channels, 2 blocks a level, attention at 32, 16 and 8).
ADM = {
    "sample_size": 256,
    "in_channels": 3,
    "out_channels": 6,
    "block_out_channels": (256, 256, 512, 512, 1024, 1024),
    "down_block_types": ("DownBlock2D",) * 3 + ("AttnDownBlock2D",) * 3,
    "up_block_types": ("AttnUpBlock2D",) * 3 + ("UpBlock2D",) * 3,
    "layers_per_block": 2,
    "attention_head_dim": 64,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
}


def measure(*, rounds: int, threads: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return seconds and TFLOP of both extractions of one picture; each network is released before the next."""
    torch.set_num_threads(threads)
    step = _dire_step(rounds, say)
    gc.collect()
    lare = _lare(rounds, say)
    return {
        "threads": threads,
        "rounds": rounds,
        "dire": {
            "parameters": step["parameters"],
            "steps": DIRE_STEPS,
            "seconds_a_step": step["seconds"],
            "seconds": DIRE_STEPS * step["seconds"],
            "tflop": DIRE_STEPS * step["tflop"],
            "all_seconds_a_step": step["all"],
        },
        "lare": {"seconds": lare["seconds"], "tflop": lare["tflop"], "draws": 4, "all_seconds": lare["all"]},
        "ratio_of_seconds": DIRE_STEPS * step["seconds"] / lare["seconds"],
        "ratio_of_tflop": DIRE_STEPS * step["tflop"] / lare["tflop"],
        "paper_ratio": 8.0,
    }


def _dire_step(rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    with torch.device("meta"):
        adm = UNet2DModel(**ADM).eval()
    adm.to_empty(device="cpu")
    seed_weights(adm, "adm", 0)
    picture, when = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    timed = _timed(lambda: adm(picture, when), rounds, say, "one step of DIRE")
    return {**timed, "parameters": sum(p.numel() for p in adm.parameters())}


def _lare(rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    source = SyntheticSd15()
    prompt = source.prompt_embeds("a photo")
    extractor = LareExtractor(source.vae(), source.unet(), source.scheduler(), prompt_embeds=prompt).eval()
    noise = draw_noise(0, 4, (4, 32, 32))
    image = torch.randint(0, 256, (1, 256, 256, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    posterior, ensemble = torch.from_numpy(noise.posterior), torch.from_numpy(noise.ensemble)
    return _timed(lambda: extractor(image, posterior, ensemble), rounds, say, "LaRE, four draws")


@torch.no_grad()
def _timed(run: Callable[[], Any], rounds: int, say: Callable[[str], None], name: str) -> dict[str, Any]:
    # torch counts no work of its fused attention; written out, as it is here once, it does.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    run()  # warm-up
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
        say(f"{name}: {seconds[-1]:.2f} s")
    return {"seconds": statistics.median(seconds), "all": seconds, "tflop": counter.get_total_flops() / 1e12}
