"""The first half of the miniature by stages: photographs, autoencoder, UNet, pictures, LaRE. Each is kept on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.common.kept import keep_arrays, keep_file, kept_arrays
from benchmarks.miniature import unet as unet_training, vae as vae_training
from benchmarks.miniature.photos import Pictures, cut, quarters, read_table, split_groups
from benchmarks.miniature.protocol import ENSEMBLE, GENERATORS, SEEN, SPLITS, STEPS, TIMESTEP, Protocol, key_of
from benchmarks.miniature.unet import Extraction, as_the_runtime_sees, noises
from benchmarks.miniature.vae import Say, as_pictures, as_tensor
from lare2_ref.mini import UNET, VAE
from lare2_ref.sources import default_model_folder, open_model_folder

if TYPE_CHECKING:
    from benchmarks.miniature.heads import Features

PROMPT = "a photo"
_WHOLE = slice(1, None, 4)  # of the diffusion model's pictures, those that it sees whole
_BATCH = 48


@dataclass(frozen=True, slots=True, eq=False)
class Sets:
    """Pictures of one split as real, as their round trip through the autoencoder, and as generated.

    Attributes:
        pictures: name -> uint8 [N,128,128,3]; ``real``, ``roundtrip`` and generators. Picture n of every set but
            ``noise`` comes from picture n of ``real``.
        lare: name -> float32 [N,4,32,32]; energy: name -> float32 [N], mean absolute step between latent neighbours.
        photo, group: int64 [N] of the photographs.
    """

    pictures: dict[str, NDArray[np.uint8]]
    lare: dict[str, NDArray[np.float32]]
    energy: dict[str, NDArray[np.float32]]
    photo: NDArray[np.int64]
    group: NDArray[np.int64]


class Work:
    """The kept results of one protocol on one set of photographs; whatever is missing is computed when asked for."""

    def __init__(self, folder: Path, protocol: Protocol, say: Say) -> None:
        self.protocol, self.say = protocol, say
        self.rows = read_table()[:: protocol.every]
        of_group = split_groups(self.rows, protocol)
        self.key = key_of(protocol, {row.sha256: of_group[row.group] for row in self.rows})
        self.folder = folder / f"{protocol.name}-{self.key}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.features: dict[tuple[str, str], Features] = {}
        self._sets: dict[str, Sets] = {}
        self._cut: dict[str, Pictures] = {}

    def path(self, name: str) -> Path:
        """Return where a result is kept."""
        return self.folder / name

    def note(self, name: str, facts: object) -> None:
        """Keep facts as JSON."""
        keep_file(self.path(name), lambda path: path.write_text(json.dumps(facts, indent=2) + "\n"))

    def facts(self, name: str) -> Any:  # noqa: ANN401 - what ``note`` was given
        """Return kept facts."""
        return json.loads(self.path(name).read_text())

    def once(self, name: str, make: Callable[[], object]) -> Any:  # noqa: ANN401
        """Return facts that are made where they are not kept."""
        if not self.path(name).exists():
            self.note(name, make())
        return self.facts(name)

    def arrays(self, name: str, make: Callable[[], Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        """Return arrays that are made where they are not kept."""
        if not self.path(name).exists():
            keep_arrays(self.path(name), make())
        return kept_arrays(self.path(name))

    def cut(self, split: str) -> Pictures:
        """Return the pictures of a split; cut once a run, since that takes up to a minute."""
        if split not in self._cut:
            self._cut[split] = cut(self.rows, split, self.protocol)
        return self._cut[split]

    @cached_property
    def prompt(self) -> Tensor:
        """Float32 [1,tokens,width]: the constant prompt's embedding."""
        return open_model_folder(default_model_folder()).prompt_embeds(PROMPT)

    @cached_property
    def autoencoder(self) -> tuple[AutoencoderKL, vae_training.Decoder]:
        """Encoder (within an ``AutoencoderKL``) and decoder."""
        file = self.path("autoencoder.safetensors")
        if not file.exists():
            whole = self.cut("diffusion").pixels
            held = quarters(self.cut("validation").pixels, self.protocol.seed)[:200]
            small = quarters(whole, self.protocol.seed)
            steps, batch = self.protocol.vae_steps, self.protocol.vae_batch
            vae, decoder, facts = vae_training.train(
                small, held, steps=steps, batch=batch, seed=self.protocol.seed, say=self.say
            )
            del vae.decoder, vae.post_quant_conv
            state = nn.ModuleDict({"vae": vae, "decoder": decoder}).half().state_dict()
            self.note("autoencoder.json", facts)
            keep_file(file, partial(save_file, state))
        vae = AutoencoderKL(**{**VAE, "scaling_factor": 1.0})
        del vae.decoder, vae.post_quant_conv
        decoder = vae_training.Decoder()
        nn.ModuleDict({"vae": vae, "decoder": decoder}).load_state_dict(load_file(file))
        return vae.float().eval(), decoder.float().eval()

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        """The noise-prediction network."""
        file = self.path("unet.safetensors")
        if not file.exists():
            unet = unet_training.new_unet(self.protocol.seed)
            whole, held = self.cut("diffusion").pixels, self.cut("validation").pixels
            curves = {}
            # At 32×32 fewer pictures are needed than there are, and encoding them all takes minutes.
            for size, cutter in ((16, quarters), (32, lambda pixels, seed: pixels[_WHOLE])):
                steps, batch = (
                    (self.protocol.unet_steps, self.protocol.unet_batch)
                    if size == 16
                    else (self.protocol.unet_large_steps, self.protocol.unet_large_batch)
                )
                checkpoint = self.path(f"unet-{size}.checkpoint")
                done = unet_training.finished(checkpoint, steps)
                if done is not None:
                    unet.load_state_dict(done[0])
                    curves[size] = done[1]
                    continue
                unet, curves[size] = unet_training.train(
                    unet,
                    self.latents(cutter(whole, self.protocol.seed + 1)),
                    self.latents(quarters(held, self.protocol.seed + 1) if size == 16 else held[:96]),
                    self.prompt,
                    steps=steps,
                    batch=batch,
                    seed=self.protocol.seed + size,
                    checkpoint=checkpoint,
                    say=self.say,
                )
                unet.train()
            self.note("unet.json", curves)
            state = unet.half().state_dict()
            keep_file(file, partial(save_file, state))
            for size in (16, 32):
                self.path(f"unet-{size}.checkpoint").unlink(missing_ok=True)
        unet = UNet2DConditionModel(**UNET)
        unet.load_state_dict(load_file(file))
        return unet.float().eval()

    @torch.no_grad()
    def latents(self, pixels: NDArray[np.uint8]) -> unet_training.Latents:
        """Posterior of pictures of any size."""
        vae, _ = self.autoencoder
        parts = [vae_training.encode_half(vae, as_tensor(pixels[k : k + 128])) for k in range(0, len(pixels), 128)]
        mean, log_variance = (torch.cat(part) for part in zip(*parts, strict=True))
        return unet_training.Latents(mean, torch.exp(0.5 * log_variance))

    @cached_property
    def extraction(self) -> Extraction:
        """LaRE as the runtime computes it, on this autoencoder and UNet."""
        return Extraction(self.autoencoder[0], self.unet, self.prompt)

    def sets(self, split: str) -> Sets:
        """Return all pictures of a split with LaRE at t = 200 and four draws."""
        if split not in self._sets:
            self._sets[split] = self._read_sets(split)
        return self._sets[split]

    def _read_sets(self, split: str) -> Sets:
        pictures = self.arrays(f"pictures-{split}.npz", partial(self._generate, split))
        photo, group = pictures.pop("photo"), pictures.pop("group")
        kept = self.arrays(f"lare-{split}.npz", partial(self._extract, split, pictures))
        lare, energy = ({name: kept[f"{kind}-{name}"] for name in pictures} for kind in ("lare", "energy"))
        return Sets(pictures, lare, energy, photo, group)

    def _extract(self, split: str, pictures: Mapping[str, NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        noise = noises(ENSEMBLE)
        found: dict[str, NDArray[np.float32]] = {}
        for name, pixels in pictures.items():
            latent = self.extraction.encode(as_the_runtime_sees(pixels), noise)
            found[f"energy-{name}"] = self.extraction.energy(latent)
            found[f"lare-{name}"] = self.extraction.maps(latent, noise.ensemble, TIMESTEP)
            self.say(f"LaRE of {split}, {name}")
        return found

    @torch.no_grad()
    def _generate(self, split: str) -> dict[str, NDArray[Any]]:
        """Real pictures, their round trip, and what the diffusion model makes of or beside them."""
        real = self.cut(split)
        clean = self.latents(real.pixels).mean
        table = unet_training.alpha_bars()
        found: dict[str, NDArray[Any]] = {"real": real.pixels, "photo": real.photo, "group": real.group}
        found["roundtrip"] = self._decode(clean)
        for name in GENERATORS if split == "test" else (SEEN,):
            # One stream a set: a generator that is added or left out does not move the others.
            seed = 1000 * (1 + GENERATORS.index(name)) + SPLITS.index(split) + 10 * self.protocol.seed
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
            if name == "noise":
                start, first = noise, len(table) - 1
            else:
                first = 10 * int(name.removeprefix("sdedit")) - 1
                start = table[first].sqrt() * clean + (1 - table[first]).sqrt() * noise
            steps = unet_training.spaced(STEPS[name], first)
            found[name] = self._decode(unet_training.sample(self.unet, start, steps, self.prompt, batch=_BATCH))
            self.say(f"{len(found[name])} pictures of {split}, {name}")
        return found

    def seen_whole(self) -> Pictures:
        """Return the pictures that the UNet was trained on at the size at which LaRE is computed."""
        whole = self.cut("diffusion")
        return Pictures(whole.pixels[_WHOLE], whole.photo[_WHOLE], whole.group[_WHOLE])

    def round_trip(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return pictures as the autoencoder gives them back."""
        return self._decode(self.latents(pixels).mean)

    @torch.no_grad()
    def _decode(self, latent: Tensor) -> NDArray[np.uint8]:
        _, decoder = self.autoencoder
        return np.concatenate([as_pictures(decoder(latent[k : k + 128])) for k in range(0, len(latent), 128)])
