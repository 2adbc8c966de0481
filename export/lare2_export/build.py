"""From sources to a bundle: export each component, measure parity, write the manifest, swap the folder in."""

from __future__ import annotations

import gc
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from lare2_ref.sources import ModelSources, load_reference
from lare2_rt.atomic import write_bytes
from lare2_rt.bundle import Bundle, open_bundle
from lare2_rt.integrity import HashCache
from lare2_rt.manifest import MANIFEST, NOISE, PARITY, Manifest
from lare2_rt.noise import Noise, draw_noise
from lare2_rt.preprocess import Pixels, preprocess

from .components import COMPONENTS, Component, Geometry
from .describe import describe
from .keys import component_key
from .onnx_export import PORTABLE_OPSET, WeightFile, export_graph, strip, tensor_specs
from .options import BuildOptions
from .parity import measure, worst_component
from .pictures import procedural_pictures
from .prepare import prepare
from .staging import BuildError, Staging, check_target

Report = Callable[[str], None]


def build_bundle(sources: ModelSources, out: Path, options: BuildOptions, *, report: Report) -> Bundle:
    """Build a bundle at ``out``; an existing bundle there is replaced only when the new one has passed parity.

    ``report`` receives one line per phase.

    Raises:
        BuildError, SourceError, OutputError: with the remedy; ``out`` is untouched, finished components are kept
            beside it and reused by the next run.
    """
    check_target(out)
    staging = Staging(out)
    with staging.locked():
        geometry = plan_geometry(sources, options)
        records = sources.records(HashCache())
        hashes: dict[str, str] = {record.role: record.sha256 for record in records}
        components = {c.name: _export(c, sources, geometry, hashes, staging, options, report) for c in COMPONENTS}
        noise = draw_noise(options.noise_seed, options.ensemble, geometry.latent)
        write_bytes(staging.folder / NOISE, _npy(noise.pack()))
        write_bytes(staging.folder / PARITY, b"{}\n")
        draft = describe(sources, geometry, options, components, staging=staging, parity=None, records=records)
        staging.prune(keep={*draft.files, *(f"{c.name}.done.json" for c in COMPONENTS)})
        report("parity against the reference")
        parity = _measure(sources, draft, staging, noise, options)
        write_bytes(staging.folder / PARITY, (json.dumps(parity, indent=2, sort_keys=True) + "\n").encode())
        if not parity["passed"]:
            kept = out.resolve().with_name(f"{out.name}.failed-parity.json")
            write_bytes(kept, (staging.folder / PARITY).read_bytes())
            name, value = worst_component(parity)
            raise BuildError(
                f"the export is not faithful: {name} differs by {value:.1e} (relative L2); the report is in {kept}"
            )
        final = describe(sources, geometry, options, components, staging=staging, parity=parity, records=records)
        write_bytes(staging.folder / MANIFEST, final.to_json())
        staging.prune(keep={*final.files, MANIFEST})
        bundle = open_bundle(staging.folder)
        staging.publish()
    return Bundle(out, bundle.manifest, bundle.noise)


def plan_geometry(sources: ModelSources, options: BuildOptions) -> Geometry:
    """Read the sizes out of the sources' configurations and check the options against them; raises BuildError."""
    scheduler = sources.scheduler()
    steps = int(scheduler.config.num_train_timesteps)
    if not 0 <= options.timestep < steps:
        raise BuildError(f"--timestep must lie between 0 and {steps - 1}, not {options.timestep}")
    vae = sources.vae_config()
    reduction = 2 ** (len(vae["block_out_channels"]) - 1)
    if options.image_size % (reduction * 8):
        raise BuildError(f"--image-size must be a multiple of {reduction * 8} for this model, not {options.image_size}")
    egre, clip = sources.egre_config(), sources.clip_config()
    if (egre.channels, egre.embedding, egre.grid) != (clip.channels, clip.embedding, clip.grid):
        raise BuildError(
            f"the head was made for CLIP features {egre.channels}×{egre.grid}² and an embedding of {egre.embedding}, "
            f"this CLIP gives {clip.channels}×{clip.grid}² and {clip.embedding}; use the CLIP it was trained on"
        )
    side = options.image_size // reduction
    return Geometry(
        image_size=options.image_size,
        crop_size=clip.image_size,
        latent=(int(vae["latent_channels"]), side, side),
        ensemble=options.ensemble,
        timestep=options.timestep,
        prompt=options.prompt,
        prediction_type=str(scheduler.config.prediction_type),
        alpha_bar=float(scheduler.alphas_cumprod[options.timestep]),
        scaling_factor=float(vae["scaling_factor"]),
        egre=egre,
    )


def _export(
    component: Component,
    sources: ModelSources,
    geometry: Geometry,
    hashes: dict[str, str],
    staging: Staging,
    options: BuildOptions,
    report: Report,
) -> list[dict[str, Any]]:
    """Export one component for all batch sizes, or reuse what a killed build finished; returns manifest variants."""
    keys = {
        batch: component_key(component, geometry, hashes, batch=batch, precision="fp32", opset=PORTABLE_OPSET)
        for batch in options.batches
    }
    joint_key = " ".join(keys.values())
    kept = staging.finished(component.name, joint_key)
    if kept is not None:
        report(f"{component.name}: already exported by an earlier run")
        variants: list[dict[str, Any]] = kept["variants"]
        return variants
    staging.clear(component.name)
    report(f"{component.name}: loading and folding")
    module = component.build(sources, geometry)
    prepare(module)
    data = f"{component.name}.fp32.portable.data"
    weights = WeightFile(staging.folder / data)
    variants = []
    for batch in options.batches:
        report(f"{component.name}: exporting batch {batch}")
        model = export_graph(module, component, geometry, batch=batch)
        strip(model, key=keys[batch])
        weights.move_in(model)
        graph = f"{component.name}.b{batch}.fp32.portable.onnx"
        ir.save(model, staging.folder / graph)
        names = ("name", "dtype", "shape")
        variants.append(
            {
                "batch": batch,
                "precision": "fp32",
                "profile": "portable",
                "opset": PORTABLE_OPSET,
                "graph": graph,
                "files": [data],
                "component_key": keys[batch],
                "inputs": [dict(zip(names, spec, strict=True)) for spec in tensor_specs(list(model.graph.inputs))],
                "outputs": [dict(zip(names, spec, strict=True)) for spec in tensor_specs(list(model.graph.outputs))],
            }
        )
        del model
        gc.collect()
    weights.close()
    staging.finish(component.name, joint_key, {"variants": variants}, [data, *(v["graph"] for v in variants)])
    return variants


def _measure(
    sources: ModelSources, draft: Manifest, staging: Staging, noise: Noise, options: BuildOptions
) -> dict[str, Any]:
    method = draft.method
    reference = load_reference(
        sources,
        noise=noise,
        prompt=options.prompt,
        timestep=options.timestep,
        policy=options.policy,
        image_size=options.image_size,
    )
    pictures: list[Pixels] = [
        preprocess(picture, options.policy, image_size=method.image_size, crop_size=method.crop_size)
        for picture in (options.images or procedural_pictures())
    ]
    return measure(reference, Bundle(staging.folder, draft, noise), pictures, threads=options.threads)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
