"""PyTorch rows of the GPU report: the reference's own networks, eager or compiled, in float32 or half."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.common.reference import EncodeStep, NoiseStep, plain_reference
from benchmarks.gpu_report.cases import Case, sources_of
from lare2_ref import quieten_libraries
from lare2_ref.reference import Lare2Reference
from lare2_rt.bundle.opening import Bundle
from lare2_rt.engines.contract import ChainOutput

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


class Chain(nn.Module):
    """Pixels to logits, with the networks in one type."""

    posterior: Tensor
    ensemble: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, reference: Lare2Reference, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.encode, self.noise = EncodeStep(reference.extractor, dtype), NoiseStep(reference.extractor, dtype)
        self.visual, self.egre = reference.clip.to(dtype), reference.egre.to(dtype)
        self.register_buffer("posterior", torch.from_numpy(reference.noise.posterior))
        self.register_buffer("ensemble", torch.from_numpy(reference.noise.ensemble))
        self.register_buffer("mean", reference.clip.mean.float())
        self.register_buffer("std", reference.clip.std.float())

    def forward(self, image: Tensor, crop: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """uint8 [B,S,S,3] and [B,C,C,3] RGB -> float32 lare, embedding, logits and attention."""
        lare, _ = self.noise(self.encode(image, self.posterior), self.ensemble)
        pixels = (crop.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        clip = self.visual.features(pixels.to(self.dtype))
        head = self.egre(lare.to(self.dtype), clip.embedding, clip.layer3)
        return lare, clip.embedding.float(), head.logits.float(), head.attention.float()


class TorchRunner:
    """A chain on a device as ``Runner``."""

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
    reference = plain_reference(sources_of(case), bundle)
    compiled = case.option == "compile"
    facts = {"torch": torch.__version__, "compiled": compiled, "tf32": False}
    return TorchRunner(Chain(reference, DTYPES[case.precision]), case.device, compiled=compiled, facts=facts)
