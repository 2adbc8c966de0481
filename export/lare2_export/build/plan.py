"""What a build is going to make, known before any weight is loaded: sizes, checks, and component keys.

A component key hashes everything that decides an exported graph.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from lare2_ref.lare import PREDICTION_TYPES
from lare2_ref.sources import ModelSources, SourceRecord
from lare2_rt.bundle.manifest import Precision
from lare2_rt.host.machine import available_threads
from lare2_rt.pixels.policy import Preprocessing

from ..components import COMPONENTS, Component, Geometry
from ..graph.onnx_export import FLAVOURS
from .staging import BuildError

if TYPE_CHECKING:
    import typer


# Raise whenever this package or the reference starts to export other graphs from the same inputs: a bundle's identity
# and the reuse of finished components depend on it, while comments and messages may change freely.
EXPORT_REVISION = 3
_PACKAGES = ("torch", "diffusers", "open_clip_torch", "transformers", "onnx", "onnx-ir", "onnxscript")


@dataclass(frozen=True, slots=True)
class Plan:
    """A build.

    Attributes:
        geometry: sizes and constants; records: sources with their hashes.
        precisions: what is exported.
        keys: component name -> (precision, batch size) -> component key.
    """

    sources: ModelSources
    options: BuildOptions
    geometry: Geometry
    records: tuple[SourceRecord, ...]
    precisions: tuple[Precision, ...]
    keys: dict[str, dict[tuple[Precision, int], str]]

    def joint_key(self, component: str) -> str:
        """Return one key for all graphs of a component."""
        return " ".join(self.keys[component].values())


def make_plan(sources: ModelSources, options: BuildOptions) -> Plan:
    """Read configurations, hash the sources and check the options; raises BuildError or SourceError."""
    if 1 not in options.batches:
        raise BuildError("--batch must include 1, on which parity is measured", remedy="add --batch 1")
    geometry = plan_geometry(sources, options)
    records = sources.records()
    hashes: dict[str, str] = {record.role: record.sha256 for record in records}

    # Models that only show that the chain works are exported for CPUs, trained weights for GPUs too.
    trained = not sources.synthetic and not sources.demonstration and sources.calibration != "untrained"
    half = trained if options.half is None else options.half
    precisions: tuple[Precision, ...] = ("fp32", "fp16") if half else ("fp32",)

    def keys(component: Component) -> dict[tuple[Precision, int], str]:
        return {
            (precision, batch): component_key(
                component, geometry, hashes, batch=batch, precision=precision, opset=FLAVOURS[precision].opset
            )
            for precision in precisions
            for batch in options.batches
        }

    return Plan(sources, options, geometry, records, precisions, {c.name: keys(c) for c in COMPONENTS})


def plan_geometry(sources: ModelSources, options: BuildOptions) -> Geometry:
    """Read the sizes out of the sources' configurations and check the options against them; raises BuildError."""
    scheduler = sources.scheduler()
    steps = int(scheduler.config.num_train_timesteps)
    if not 0 <= options.timestep < steps:
        raise BuildError(
            f"--timestep {options.timestep} is not in the noise schedule", remedy=f"choose one from 0 to {steps - 1}"
        )
    prediction_type = str(scheduler.config.prediction_type)
    if prediction_type not in PREDICTION_TYPES:
        raise BuildError(
            f"the scheduler of {sources.sd.name} has prediction_type {prediction_type!r}, for which LaRE has no target",
            remedy="use a Stable Diffusion that predicts " + " or ".join(PREDICTION_TYPES),
        )
    vae = sources.vae_config()
    reduction = 2 ** (len(vae["block_out_channels"]) - 1)
    if options.image_size < 1 or options.image_size % (reduction * 8):
        raise BuildError(
            f"this model cannot take --image-size {options.image_size}",
            remedy=f"choose a multiple of {reduction * 8}",
        )
    egre, clip = sources.egre_config(), sources.clip_config()
    if (egre.channels, egre.embedding, egre.grid) != (clip.channels, clip.embedding, clip.grid):
        raise BuildError(
            f"the head {sources.head.name} was made for CLIP features {egre.channels}×{egre.grid}² and an "
            f"embedding of {egre.embedding}, the CLIP {sources.clip.name} gives "
            f"{clip.channels}×{clip.grid}² and {clip.embedding}",
            remedy="use the CLIP that the head was trained on",
        )
    side = options.image_size // reduction
    return Geometry(
        image_size=options.image_size,
        crop_size=clip.image_size,
        latent=(int(vae["latent_channels"]), side, side),
        ensemble=options.ensemble,
        timestep=options.timestep,
        prompt=options.prompt,
        prediction_type=prediction_type,
        alpha_bar=float(scheduler.alphas_cumprod[options.timestep]),
        scaling_factor=float(vae["scaling_factor"]),
        egre=egre,
    )


def exporter_versions() -> dict[str, str]:
    """Return the versions of the packages whose code ends up in the graphs."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def component_key(
    component: Component, geometry: Geometry, sources: dict[str, str], *, batch: int, precision: str, opset: int
) -> str:
    """Return sha256 in hex over sources (role -> sha256), baked fields, shapes, precision, opset and exporter."""
    if component.name in ("vae_encoder", "unet_step"):
        baked: dict[str, object] = geometry.lare_fields()
    else:
        baked = {"crop_size": geometry.crop_size, "latent": geometry.latent, **dataclasses.asdict(geometry.egre)}
    content = {
        "component": component.name,
        "sources": {role: sources[role] for role in component.roles},
        "baked": baked,
        "batch": batch,
        "precision": precision,
        "opset": opset,
        "versions": exporter_versions(),
        "revision": EXPORT_REVISION,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
