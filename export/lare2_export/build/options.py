"""What a build bakes in."""

from __future__ import annotations

from dataclasses import dataclass, field

from lare2_rt.host.machine import available_threads
from lare2_rt.pixels.policy import Preprocessing


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What to bake in; the defaults are those of the official shell script, with the paper's prompt.

    Attributes:
        prompt: text that conditions the UNet; timestep: of the noise schedule; ensemble: noise draws per image.
        image_size: side of the LaRE input in pixels; batches: images per call, one graph each, sharing weights.
        noise_seed: of Philox; policy: preprocessing policies; threads: CPU threads of the parity run.
        half: whether half precision is exported beside float32; None means where the weights are trained.
        images: preprocessed with the policy and used for parity instead of the procedural pictures.
    """

    prompt: str = "a photo"
    timestep: int = 200
    ensemble: int = 4
    image_size: int = 256
    batches: tuple[int, ...] = (1, 4)
    noise_seed: int = 0
    policy: Preprocessing = field(default_factory=Preprocessing)
    threads: int = field(default_factory=available_threads)
    half: bool | None = None
    images: tuple[str, ...] = ()
