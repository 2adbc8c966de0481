"""What a build bakes in, as options of its command. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from lare2_rt.host.machine import available_threads
from lare2_rt.pixels.policy import Preprocessing

if TYPE_CHECKING:
    import typer


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What to bake in; the defaults are those of the official shell script, with the paper's prompt.

    Attributes:
        batches: images per call, one graph each, sharing weights; policy: preprocessing policies.
        threads: CPU threads of the parity run.
        images: preprocessed with the policy and used for parity beside the procedural pictures, () for the two
            photographs that come with the package.
    """

    prompt: Annotated[str, typer.Option(help="Text that conditions the UNet, the same for every image.")] = "a photo"
    timestep: Annotated[int, typer.Option(help="Step of the noise schedule, 0 to 999 in SD 1.5.")] = 200
    ensemble: Annotated[int, typer.Option(min=1, max=1024, help="Noise draws per image; time grows with it.")] = 4
    image_size: Annotated[int, typer.Option(help="Side of the LaRE input in pixels.")] = 256
    batches: tuple[int, ...] = (1, 4)
    noise_seed: Annotated[int, typer.Option(min=0, help="Seed of the noise that every image shares.")] = 0
    policy: Preprocessing = field(default_factory=Preprocessing)
    threads: int = field(default_factory=available_threads)
    half: Annotated[
        bool | None,
        typer.Option(
            "--half/--no-half", help="Export fp16 graphs for GPUs too. Default: where the weights are trained."
        ),
    ] = None
    images: tuple[str, ...] = ()
