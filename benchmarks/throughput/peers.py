"""The other ways to run PyTorch: as the official scripts work, and through torch.compile."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.kept import Arrays
from benchmarks.common.reference import EncodeStep, NoiseStep
from benchmarks.throughput.eager import (
    TUNED,
    converter,
    first_layer,
    load_plain,
    networks,
    run_reference,
    set_layout,
    to_batch,
)
from benchmarks.throughput.runner import Runner
from benchmarks.throughput.setup import Setup
from lare2_ref.mini import seed_weights
from lare2_ref.reference import Lare2Reference
from lare2_ref.sd_source import SdFolder
from lare2_ref.sources import ModelSources
from lare2_rt.pixels.preprocess import Pixels

# CLIP ViT-L/14's text tower, which Stable Diffusion 1.5 uses.
_CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 49408,
}


class OfficialRunner(Runner):
    """As ``extract_lare.py`` and ``test.py`` of the official code work, image by image.

    The prompt is encoded again for every image, posterior and noise are drawn afresh, tensors are NCHW, and gradients
    are off by ``no_grad``. Source: method description, sections 3.1 to 3.4.
    """

    def __init__(self, reference: Lare2Reference, encode: Callable[[], Tensor], threads: int) -> None:
        torch.set_num_threads(threads)
        self.reference, self._encode = reference, encode
        super().__init__(
            {
                "threads": torch.get_num_threads(),
                "layout": dict.fromkeys(TUNED, "contiguous"),
                "mode": "no_grad",
                "text_encoder": "for every image",
                "noise": "drawn for every image; the bundle's for the fidelity columns",
            }
        )
        for name in TUNED:
            first_layer(reference, name).register_forward_pre_hook(converter("contiguous"))

    def run(self, picture: Pixels) -> Arrays:
        """See ``Runner.run``."""
        posterior, ensemble = self.reference.noise.posterior.shape, self.reference.noise.ensemble.shape
        return self._run(picture, torch.randn(posterior), torch.randn(ensemble))

    def check(self, picture: Pixels) -> Arrays:
        """See ``Runner.check``."""
        noise = self.reference.noise
        return self._run(picture, torch.from_numpy(noise.posterior), torch.from_numpy(noise.ensemble))

    @torch.no_grad()
    def _run(self, picture: Pixels, posterior: Tensor, ensemble: Tensor) -> Arrays:
        self.reference.extractor.prompt_embeds = self._encode()
        return run_reference(self.reference, picture, posterior, ensemble, self.laps)


def open_official(setup: Setup, argument: str | None) -> OfficialRunner:
    """Open the reference in the official script's way."""
    sources = setup.sources()
    prompt = setup.opened().manifest.method.prompt
    return OfficialRunner(load_plain(setup), prompt_encoder(sources, prompt), setup.threads)


def prompt_encoder(sources: ModelSources, prompt: str) -> Callable[[], Tensor]:
    """Return a function that encodes the prompt anew, [1,tokens,width].

    Synthetic weights have no text encoder, only embeddings: there a random one of the right size does the work, and
    the sources' embedding is what comes out, so that the row computes the same as every other.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    if isinstance(sources.sd, SdFolder):
        folder = sources.sd.folder
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        variant = "fp16" if list((folder / "text_encoder").glob("*.fp16.safetensors")) else None
        encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32, variant=variant).eval()

        def encode() -> Tensor:
            length = tokenizer.model_max_length
            tokens = tokenizer(prompt, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
            hidden: Tensor = encoder(tokens.input_ids)[0]
            return hidden

        return encode

    with torch.device("meta"):
        stand_in: nn.Module = CLIPTextModel(CLIPTextConfig(**_CLIP_L)).eval()
    stand_in.to_empty(device="cpu")
    seed_weights(stand_in, "text_encoder", 0)
    for name, buffer in stand_in.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]))
    tokens = torch.zeros(1, sources.sd.prompt_tokens(), dtype=torch.long)
    embeds = sources.prompt_embeds(prompt)

    def encode_and_replace() -> Tensor:
        stand_in(tokens)
        return embeds

    return encode_and_replace


class CompiledRunner(Runner):
    """The whole chain through ``torch.compile`` with fixed shapes, channels-last and frozen weights."""

    def __init__(self, reference: Lare2Reference, threads: int) -> None:
        torch.set_num_threads(threads)
        layout, compiler = dict.fromkeys(TUNED, "channels_last"), "inductor, freezing, dynamic=False, fullgraph=True"
        super().__init__({"threads": torch.get_num_threads(), "layout": layout, "compiler": compiler})
        for network in networks(reference).values():
            set_layout(network, "channels_last")
        self._posterior = torch.from_numpy(reference.noise.posterior)
        self._ensemble = torch.from_numpy(reference.noise.ensemble)
        steps = (EncodeStep(reference.extractor), NoiseStep(reference.extractor), reference.clip, reference.egre)
        self._encode, self._predict, self._clip, self._head = (
            torch.compile(step.eval(), dynamic=False, fullgraph=True, options={"freezing": True}) for step in steps
        )

    @torch.no_grad()  # freezing does nothing where a gradient might be asked for
    def run(self, picture: Pixels) -> Arrays:
        """See ``Runner.run``."""
        with self.laps("vae_encoder"):
            latent = self._encode(to_batch(picture.image), self._posterior)
        with self.laps("unet_step"):
            lare, prediction = self._predict(latent, self._ensemble)
        with self.laps("clip_backbone"):
            embedding, layer3 = self._clip(to_batch(picture.crop))
        with self.laps("egre"):
            logits = self._head(lare, embedding, layer3)[0]
        tensors = {"latent": latent, "noise_prediction": prediction, "lare": lare}
        tensors |= {"embedding": embedding, "logits": logits}
        return {name: tensor.numpy() for name, tensor in tensors.items()}


def open_compiled(setup: Setup, argument: str | None) -> CompiledRunner:
    """Open torch.compile; the first run compiles, or takes what an earlier process has compiled."""
    return CompiledRunner(load_plain(setup), setup.threads)


def compile_chain(setup: Setup) -> dict[str, Any]:
    """Compile the chain in this process, so that its compiler's cache is filled; returns the seconds of each run."""
    runner = open_compiled(setup, None)
    picture = setup.pictures()[0]
    begin = time.perf_counter()
    runner.run(picture)
    return {"first_run_s": time.perf_counter() - begin}
