"""What a build is going to make, known before any weight is loaded: sizes, checks, and component keys.

A component key hashes everything that decides an exported graph.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from lare2_ref.clip_backbone import ClipBackbone, build_visual
from lare2_ref.egre import Egre
from lare2_ref.lare import PREDICTION_TYPES
from lare2_ref.sources import ModelSources, SourceRecord
from lare2_rt.bundle.manifest import Precision
from lare2_rt.host.integrity import digest_of

from ..components import COMPONENTS, Component, Geometry
from ..graph.onnx_export import FLAVOURS
from ..graph.prepare import prepare
from .options import BuildOptions
from .staging import BuildError

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
            f"this model cannot take --image-size {options.image_size}", remedy=f"choose a multiple of {reduction * 8}"
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
    return digest_of(content)


_FLOAT = 4  # bytes
_BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2}
# Measured on synthetic SD 1.5 and on mini (tests/test_estimate.py holds both): an exported graph takes 450 to 650
# bytes for each of its weights, and the processes' peaks are these multiples of the networks' weights above what
# libraries and activations take.
_GRAPH_BYTES_PER_WEIGHT = 530
_EXPORT_BASE, _EXPORT_FACTOR = 0.9e9, 1.25
_PARITY_BASE, _PARITY_FACTOR = 2.2e9, 2.5
_MEASURED_SIZE, _MEASURED_IMAGES = 256, 4


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes that a build needs.

    Attributes:
        weights: component name -> its exported weights in all precisions; bundle: the finished folder.
        memory: largest resident size of any of the build's processes.
    """

    weights: dict[str, int]
    bundle: int
    memory: int


class _Weightless(ModelSources):
    """The same sources with networks on the meta device: shapes without memory."""

    def vae(self) -> AutoencoderKL:
        return AutoencoderKL.from_config(self.sd.vae_config())

    def unet(self) -> UNet2DConditionModel:
        return UNet2DConditionModel.from_config(self.sd.unet_config())

    def prompt_embeds(self, prompt: str) -> Tensor:
        return torch.empty(1, self.sd.prompt_tokens(), int(self.sd.unet_config()["cross_attention_dim"]))

    def clip_backbone(self) -> ClipBackbone:
        return ClipBackbone(build_visual(self.clip_config())).eval()

    def egre(self) -> Egre:
        return Egre(self.egre_config())


def estimate(plan: Plan) -> Estimate:
    """Return what building ``plan`` needs. Disk is exact but for the graphs; memory leaves some room.

    The disk peak is the new bundle beside whatever bundle it replaces.
    """
    sources = plan.sources
    weightless = _Weightless(**{name: getattr(sources, name) for name in ModelSources.__dataclass_fields__})
    weights, graphs, loaded = {}, 0, 0
    with torch.device("meta"):
        for component in COMPONENTS:
            module = component.build(weightless, plan.geometry)
            prepare(module)
            weights[component.name] = sum(_BYTES[precision] for precision in plan.precisions) * _elements(module)
            graphs += len(plan.keys[component.name]) * _GRAPH_BYTES_PER_WEIGHT * len(module.state_dict())
        networks = (weightless.vae(), weightless.unet(), weightless.clip_backbone(), weightless.egre())
        loaded = _FLOAT * sum(_elements(network) for network in networks)
        largest = _FLOAT * max(_elements(network) for network in networks)
    # Activations grow with the pixels and with the images that are run at once.
    size, images = plan.geometry.image_size / _MEASURED_SIZE, max(plan.options.batches) / _MEASURED_IMAGES
    activations = max(1.0, size**2 * images)
    memory = max(_EXPORT_BASE + _EXPORT_FACTOR * largest, _PARITY_BASE * activations + _PARITY_FACTOR * loaded)
    noise = _FLOAT * (1 + plan.options.ensemble) * plan.geometry.latent[0] * plan.geometry.latent[1] ** 2
    return Estimate(weights, sum(weights.values()) + graphs + noise, int(memory))


def _elements(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.state_dict().values())
