"""PyTorch rows of the GPU report: the reference's own networks, eager or compiled, in float32 or half."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.gpu_report.cases import Case
from benchmarks.gpu_report.model import sources_of
from lare2_ref.lare import LareExtractor
from lare2_ref.quiet import quieten_libraries
from lare2_ref.reference import Lare2Reference
from lare2_rt.bundle.opening import Bundle
from lare2_rt.engines.contract import ChainOutput

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


class Chain(nn.Module):
    """Pixels to logits. Networks compute in one type; sampling, noise mixing and the error are always float32.

    That is how the half-precision graphs are made, and how anybody would run Stable Diffusion in half.
    """

    timestep: Tensor
    prompt_embeds: Tensor
    posterior: Tensor
    ensemble: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, reference: Lare2Reference, dtype: torch.dtype) -> None:
        super().__init__()
        extractor = reference.extractor
        self.dtype = dtype
        self.vae, self.unet = extractor.vae.to(dtype), extractor.unet.to(dtype)
        self.visual, self.egre = reference.clip.to(dtype), reference.egre.to(dtype)
        self.scaling = float(extractor.vae.config.scaling_factor)
        self.signal, self.level = extractor.alpha_bar**0.5, (1 - extractor.alpha_bar) ** 0.5
        self.velocity = extractor.prediction_type == "v_prediction"
        self.register_buffer("timestep", torch.tensor([extractor.timestep]))
        self.register_buffer("prompt_embeds", extractor.prompt_embeds.to(dtype))
        self.register_buffer("posterior", torch.from_numpy(reference.noise.posterior))
        self.register_buffer("ensemble", torch.from_numpy(reference.noise.ensemble))
        mean, std = reference.clip.mean.float(), reference.clip.std.float()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, image: Tensor, crop: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """uint8 [B,S,S,3] and [B,C,C,3] RGB -> float32 lare, embedding, logits and attention."""
        lare = self._lare(self._encode(image))
        pixels = (crop.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        clip = self.visual.features(pixels.to(self.dtype))
        head = self.egre(lare.to(self.dtype), clip.embedding, clip.layer3)
        return lare, clip.embedding.float(), head.logits.float(), head.attention.float()

    def _encode(self, image: Tensor) -> Tensor:
        pixels = (image.permute(0, 3, 1, 2).float() / 255 - 0.5) * 2
        posterior = self.vae.encode(pixels.to(self.dtype)).latent_dist
        latent: Tensor = (posterior.mean.float() + posterior.std.float() * self.posterior) * self.scaling
        return latent

    def _lare(self, latent: Tensor) -> Tensor:
        images, draws = latent.shape[0], self.ensemble.shape[0]
        latents = latent.repeat_interleave(draws, dim=0)  # [B·E,4,h,w], image-major
        noises = self.ensemble.repeat(images, 1, 1, 1)
        noisy = self.signal * latents + self.level * noises
        prompt = self.prompt_embeds.expand(images * draws, -1, -1)
        steps = self.timestep.expand(images * draws)
        prediction = self.unet(noisy.to(self.dtype), steps, encoder_hidden_states=prompt, return_dict=False)[0]
        target = self.signal * noises - self.level * latents if self.velocity else noises
        error: Tensor = (prediction.float() - target).square().view(images, draws, *latent.shape[1:]).mean(dim=1)
        return error


class TorchRunner:
    """A chain on a device. Implements ``Runner`` of ``gpu_report_measure``."""

    def __init__(self, chain: Chain, device: str, *, compiled: bool, facts: dict[str, Any]) -> None:
        self.device, self.facts = torch.device(device), facts
        chain = chain.eval().to(self.device)
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"  # with CUDA graphs of its own
        self.call = torch.compile(chain, dynamic=False, mode=mode) if compiled else chain

    @torch.inference_mode()
    def run(self, image: NDArray[np.uint8], crop: NDArray[np.uint8]) -> ChainOutput:
        """Score one batch, host copies included."""
        given = (torch.from_numpy(part).to(self.device) for part in (image, crop))
        # Copied before the next call: a compiled chain gives the same memory every time.
        lare, embedding, logits, attention = (part.cpu().numpy().copy() for part in self.call(*given))
        return ChainOutput(lare, embedding, logits, attention)

    def peak_memory(self) -> int | None:
        """Return the most bytes that were allocated on the GPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None

    def close(self) -> None:
        """Nothing to release: the process ends."""


def open_torch(bundle: Bundle, case: Case) -> TorchRunner:
    """Open a row; TF32 is off, as it is in every engine here, so that float32 means float32."""
    quieten_libraries()
    torch.set_num_threads(case.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    sources, method = sources_of(case), bundle.manifest.method
    extractor = LareExtractor(
        sources.vae(),
        sources.unet(),
        sources.scheduler(),
        prompt_embeds=sources.prompt_embeds(method.prompt),
        timestep=method.timestep,
    )
    reference = Lare2Reference(extractor, sources.clip_backbone(), sources.egre(), noise=bundle.noise)
    compiled = case.option == "compile"
    facts = {"torch": torch.__version__, "compiled": compiled, "tf32": False}
    return TorchRunner(Chain(reference, DTYPES[case.precision]), case.device, compiled=compiled, facts=facts)
