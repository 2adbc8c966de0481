"""What the machine could do at best, and what the chain asks of it."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from benchmarks.throughput.setup import Setup

SIDE = 2048
BEST_OF = 8


def matrix_products(threads: int) -> dict[str, float]:
    """Return GFLOP/s of the best of several 2048³ products in float32, in numpy and in torch.

    The product of two large matrices is the most that this machine's arithmetic units are ever kept busy with; two
    libraries are asked so that one bad kernel does not lower the bar. The best counts and not the mean, because this
    is a bound. numpy's threads come from the environment, where the parent has set them.
    """
    import torch

    torch.set_num_threads(threads)
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((SIDE, SIDE), dtype=np.float32) for _ in range(2))
    out = np.empty_like(a)
    left, right = torch.from_numpy(a), torch.from_numpy(b)
    result = torch.empty_like(left)
    # The inputs come from outside and are never written, so no library can reuse the last product.
    return {"numpy": _best(lambda: np.matmul(a, b, out=out)), "torch": _best(lambda: torch.mm(left, right, out=result))}


def best_product(setup: Setup) -> float:
    """Return the most GFLOP/s of any of the ``matrix_products``."""
    return max(matrix_products(setup.threads).values())


def _best(product: Callable[[], object]) -> float:
    product()  # the first starts the threads
    times = []
    for _ in range(BEST_OF):
        begin = time.perf_counter()
        product()
        times.append(time.perf_counter() - begin)
    return 2 * SIDE**3 / min(times) / 1e9


def chain_flop(setup: Setup) -> dict[str, int]:
    """Return floating-point operations of one image by component, as torch counts them: 2 for a multiply-add.

    Counted on networks without memory, with attention written out, because torch has no formula for its fused CPU
    attention. This is the work of the definition by direct convolution: an engine that folds constants or convolves
    by Winograd's method does less, and may pass 100 % of the machine's peak in these terms.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from lare2_ref.clip_backbone import ClipBackbone, build_visual
    from lare2_ref.egre import Egre

    sources, method = setup.sources(), setup.opened().manifest.method
    channels, height, width = method.latent_shape
    context = int(sources.sd.unet_config()["cross_attention_dim"])
    counted = {}
    with torch.device("meta"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        vae = AutoencoderKL.from_config(sources.vae_config())
        unet = UNet2DConditionModel.from_config(sources.sd.unet_config())
        clip = ClipBackbone(build_visual(sources.clip_config())).eval()
        head = Egre(sources.egre_config()).eval()
        noisy = torch.empty(method.ensemble, channels, height, width)
        prompt = torch.empty(method.ensemble, sources.sd.prompt_tokens(), context)
        crop = torch.empty(1, method.crop_size, method.crop_size, 3, dtype=torch.uint8)
        features = clip(crop)
        calls: dict[str, Callable[[], object]] = {
            "vae_encoder": lambda: vae.encode(torch.empty(1, 3, method.image_size, method.image_size)),
            "unet_step": lambda: unet(noisy, method.timestep, encoder_hidden_states=prompt),
            "clip_backbone": lambda: clip(crop),
            "egre": lambda: head(torch.empty(1, channels, height, width), features.embedding, features.layer3),
        }
        for name, call in calls.items():
            with FlopCounterMode(display=False) as counter:
                call()
            counted[name] = int(counter.get_total_flops())
    return counted
