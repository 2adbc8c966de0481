"""What the miniature measures, fixed before it was measured: splits, sets, seeds, variants, statistics.

Changed values make other cache keys, so a stage is never reused for another protocol.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from lare2_rt.host.integrity import digest_of

SPLITS = ("diffusion", "train", "validation", "test")
GENERATORS = ("sdedit30", "sdedit50", "sdedit70", "noise")
SEEN = "sdedit50"  # heads train on this generator alone, as the paper's on SD 1.5
TIMESTEP = 200
ENSEMBLE = 4
PICTURE = 128  # pixels along an edge; the runtime doubles it, and the encoder's first stage halves it again
IMAGE_SIZE = 256
VARIANTS = ("image", "lare", "concat", "esr", "ecr", "egre", "egre-v7")
TRUNKS = ("scratch", "pretrained")
TIMESTEPS = (50, 100, 200, 300, 400, 600, 800)
ENSEMBLES = (1, 2, 4, 8)
# DDIM steps from where each generator begins.
STEPS = {"sdedit30": 8, "sdedit50": 10, "sdedit70": 14, "noise": 25}
JPEG_QUALITY = 75  # of the re-encoding control


@dataclass(frozen=True, slots=True)
class Protocol:
    """Sizes of a run; the defaults are the full run, ``QUICK`` is the same in two minutes and proves nothing.

    Attributes:
        name: goes into cache keys and the report.
        seed: of splits, crops, networks and noise.
        shares: parts of the groups of photographs for ``SPLITS``.
        crops: pictures a photograph for ``SPLITS``.
        vae_steps, vae_batch: optimiser steps and 64-pixel pictures a step.
        unet_steps, unet_batch: the same for the UNet on 16×16 latents; unet_large_steps, unet_large_batch: then on
            32×32 latents, the size at which LaRE is computed.
        pretrain_steps, pretrain_batch: of the trunk, on telling photographs apart.
        epochs, batch: of a head; seeds: one training each.
        sweep: pictures a set on which timesteps, draws and kinds of noise are compared.
        bootstrap: resamples of photographs.
        every: of the table's photographs only every so many-th; None for all of them.
    """

    name: str = "full"
    seed: int = 0
    shares: tuple[float, float, float, float] = (0.44, 0.24, 0.12, 0.20)
    crops: tuple[int, int, int, int] = (96, 12, 8, 6)
    vae_steps: int = 450
    vae_batch: int = 32
    unet_steps: int = 2600
    unet_batch: int = 32
    unet_large_steps: int = 700
    unet_large_batch: int = 12
    pretrain_steps: int = 500
    pretrain_batch: int = 48
    epochs: int = 8
    batch: int = 48
    seeds: tuple[int, ...] = (0, 1, 2)
    sweep: int = 100
    bootstrap: int = 1000
    every: int | None = None

    def facts(self) -> dict[str, Any]:
        """Return what the protocol says, for keys and reports; what it leaves out is not there."""
        return {name: value for name, value in asdict(self).items() if value is not None}


FULL = Protocol()
QUICK = replace(
    FULL,
    name="quick",
    crops=(2, 1, 1, 1),
    vae_steps=12,
    vae_batch=8,
    unet_steps=8,
    unet_batch=8,
    unet_large_steps=2,
    unet_large_batch=2,
    pretrain_steps=4,
    pretrain_batch=8,
    epochs=1,
    seeds=(0,),
    sweep=6,
    bootstrap=50,
    every=3,
)


def key_of(protocol: Protocol, splits: dict[str, str]) -> str:
    """Return what results belong to: everything on this page, and which photographs stand where (content -> split)."""
    constants: dict[str, Any] = {
        name: value for name, value in globals().items() if name.isupper() and name not in ("FULL", "QUICK")
    }
    facts = {"protocol": protocol.facts(), "constants": constants, "splits": sorted(splits.items())}
    return digest_of(facts)[:12]
