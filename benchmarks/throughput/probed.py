"""The noise prediction of an engine, which shipped graphs keep to themselves.

A bundle is made whose UNet step has the prediction as one more output, the engine compiles that as it compiles any, and
what it computes for every image is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from benchmarks.common.kept import Arrays, keep_images
from benchmarks.throughput.runner import Call, Laps, run_graphs
from benchmarks.throughput.setup import PREDICTIONS, Setup
from lare2_export.components import COMPONENTS
from lare2_export.graph.onnx_export import add_output
from lare2_rt.bundle.manifest import MANIFEST, NOISE, NOTICE, PARITY, FileEntry, Manifest, TensorSpec, Variant
from lare2_rt.bundle.opening import Bundle, open_bundle
from lare2_rt.engines.chain import Component, ComponentChain
from lare2_rt.engines.contract import EngineOptions
from lare2_rt.engines.registry import engine_named
from lare2_rt.engines.selection import load_engine, why_not
from lare2_rt.host.integrity import sha256_of
from lare2_rt.pixels.preprocess import Pixels

PROBED = "probed"
_STEP: Final = "unet_step"


def make_bundle(setup: Setup) -> dict[str, Any]:
    """Write the bundle of all engines' predictions; what they compile of it stays beside it."""
    return {"id": write_probed(setup.opened(), setup.folder(PROBED) / "bundle").manifest.id}


def predict(setup: Setup, name: str, target: str) -> dict[str, Any]:
    """Write what an engine computes for every image into the folder ``target``; returns what was opened.

    ``latent`` [1,4,h,w], ``noise_prediction`` [E,4,h,w], ``lare`` [1,4,h,w], ``embedding`` [1,D] and ``logits`` [1,2].
    The LaRE tells whether one more output changes what the engine computes.

    Raises:
        EngineError: the engine cannot be used here.
    """
    folder = setup.folder(PROBED)
    bundle = open_bundle(folder / "bundle")
    options = EngineOptions(threads=setup.threads, batch=1, cache=folder / "cache")
    engine = engine_named(name)
    if (reason := why_not(engine, bundle, options)) is not None:
        raise reason
    running = load_engine(engine, bundle, options)
    try:
        assert isinstance(running, ComponentChain)
        arrays = [_computed(running, bundle, picture) for picture in setup.pictures()]
        facts = {"engine": f"{running.info.name} {running.info.version}", "build_key": running.info.build_key}
    finally:
        running.close()
    keep_images(setup.folder(target) / PREDICTIONS, arrays)
    return facts


def _computed(chain: ComponentChain, bundle: Bundle, picture: Pixels) -> dict[str, NDArray[np.float32]]:
    def call(component: Component, inputs: Arrays) -> list[NDArray[Any]]:
        return [np.array(array) for array in component(inputs).values()]  # copied: the next call may overwrite it

    calls: dict[str, Call] = {name: partial(call, component) for name, component in chain.components.items()}
    return dict(run_graphs(calls, picture.image[None], picture.crop[None], bundle.noise, Laps()))


def write_probed(bundle: Bundle, folder: Path) -> Bundle:
    """Write the float32 part of a bundle at batch 1, with the UNet step's probes as outputs, and open it."""
    folder.mkdir(parents=True)
    old = bundle.manifest
    components = {
        name: (bundle.variant(name, batch=1, precision="fp32", profile="portable"),) for name in old.components
    }
    kept = {name for (variant,) in components.values() for name in (variant.graph, *variant.files)}
    kept |= {NOISE, PARITY} | ({NOTICE} & set(old.files))
    for name in kept:
        shutil.copyfile(bundle.path / name, folder / name)
    components[_STEP] = (_probed(components[_STEP][0], old, folder),)
    probed = folder / components[_STEP][0].graph
    files = {name: old.files[name] for name in kept}
    files[probed.name] = FileEntry(size=probed.stat().st_size, sha256=sha256_of(probed))
    return _write_manifest(old.model_copy(update={"components": components, "files": files}), folder)


def _probed(variant: Variant, manifest: Manifest, folder: Path) -> Variant:
    """Add the probes to a graph in its place; returns the variant that describes it."""
    probes = next(component.probes for component in COMPONENTS if component.name == _STEP)
    model = ir.load(folder / variant.graph)
    for probe in probes:
        add_output(model, probe)
    (folder / variant.graph).write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    shape = (manifest.method.ensemble, *manifest.method.latent_shape)
    specs = tuple(TensorSpec(name=probe, dtype="float32", shape=shape) for probe in probes)
    return variant.model_copy(update={"outputs": (*variant.outputs, *specs)})


def _write_manifest(manifest: Manifest, folder: Path) -> Bundle:
    ids: Mapping[str, str] = {"id": manifest.compute_id(), "lare_id": manifest.compute_lare_id()}
    (folder / MANIFEST).write_bytes(manifest.model_copy(update=dict(ids)).to_json())
    return open_bundle(folder)
