"""MNN on the CPU: the portable float32 ONNX graphs of batch 1, converted once into the user's cache.

Its convolutions need fewer multiplications (Winograd), which pays where convolutions are most of the work. Rows of a
batch come out with other bits by position, so it runs at batch 1 only. What else is peculiar about the library stands
in ``mnn_library.py``.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..compiled_entry import Entry
from ..errors import BundleError, EngineError, first_line
from ..manifest import Variant
from .chain import Arrays, Component, ComponentChain, check_inputs, check_outputs
from .compiling import compile_chain
from .contract import EngineInfo, EngineOptions, OpenEngine, build_key, choose_variants, installed_version
from .mnn_library import NEWEST_OPSET, Model, WinogradLevel, convert, import_mnn, load_model, open_runtime, threads_for

_MODEL = "model.mnn"


@dataclass(frozen=True, slots=True)
class MnnEngine:
    """Engine ``mnn``.

    Attributes:
        winograd_level: how much memory Winograd convolutions may take (MNN's hint 3), which decides their tile and so
            their error: the VAE encoder of SD 1.5 is 5e-4 (relative L2) from the reference at 3, MNN's own default, and
            4e-6 at 1 and 2, for 15 to 40 % more time. A latent may be wrong by 3e-4, hence 1.
        external_from: size of the ONNX files in bytes from which weights are kept in a file of their own: MNN's format
            ends at 2 GB.
    """

    winograd_level: WinogradLevel = 1
    external_from: int = 1_800_000_000

    name = "mnn"
    position_stable = False
    compiled = True

    def why_not(self, bundle: Bundle, options: EngineOptions) -> str | None:
        """Return why MNN cannot be used, with the remedy."""
        if installed_version("mnn") is None:
            return "mnn is not installed: pip install 'lare2-rt[mnn]'"
        if options.precision not in (None, "fp32"):
            return f"mnn computes in fp32 here, not in {options.precision}; leave --precision out"
        try:
            variants = _variants(bundle, options)
        except BundleError as error:
            return str(error)
        newest = max(variant.opset for variant in variants.values())
        if newest > NEWEST_OPSET:
            return f"mnn reads ONNX up to opset {NEWEST_OPSET} and the bundle has {newest}; choose another --engine"
        return None

    def describe(self, bundle: Bundle, options: EngineOptions) -> EngineInfo:
        """See ``Engine.describe``."""
        variants = _variants(bundle, options)
        version = installed_version("mnn") or ""
        facts: dict[str, str | int] = {
            "engine": self.name,
            "version": version,
            "device": "cpu",
            "precision": "fp32",
            "threads": options.threads,
            "winograd_level": self.winograd_level,
        }
        key = build_key(bundle, variants, facts)
        return EngineInfo(self.name, version, "cpu", "fp32", variants["egre"].batch, options.threads, key)

    def open(self, bundle: Bundle, options: EngineOptions) -> OpenEngine:
        """Convert what the cache lacks and load it; raises EngineError when MNN refuses a component."""
        import_mnn()
        info, variants = self.describe(bundle, options), _variants(bundle, options)
        threads = threads_for(options)
        chain = compile_chain(
            bundle,
            variants,
            options,
            info=info,
            facts={"external_from": self.external_from},
            build=lambda variant, folder: _convert(bundle, variant, folder, external_from=self.external_from),
        )
        try:
            runtime = open_runtime(threads)
            models = {name: self._load(variants[name], entry, runtime=runtime) for name, entry in chain.entries.items()}
        except BaseException:
            chain.close()
            raise
        components = {name: _component(variants[name], model) for name, model in models.items()}
        opened = EngineInfo(
            info.name, info.version, info.device, info.precision, 1, threads, info.build_key, chain.digest
        )

        def close() -> None:
            models.clear()
            chain.close()

        return ComponentChain(opened, components, noise=bundle.noise, close=close)

    def _load(self, variant: Variant, entry: Entry, *, runtime: Any) -> Model:  # noqa: ANN401
        """Return the model of a component; raises EngineError, and forgets an entry that cannot be loaded."""
        path = entry.folder / _MODEL
        try:
            return load_model(path, variant.inputs, variant.outputs, runtime=runtime, winograd=self.winograd_level)
        except Exception as error:
            entry.discard()
            raise EngineError(
                f"mnn cannot load what it converted from {variant.graph}; it was removed from the cache: try again, "
                "else choose another --engine"
            ) from error


def _convert(bundle: Bundle, variant: Variant, folder: Path, *, external_from: int) -> None:
    """Convert a variant into ``folder``; raises EngineError or, where the disk is full, OSError.

    The converter finds the ONNX files under plain names, whatever the path of the bundle looks like.
    """
    names = (variant.graph, *variant.files)
    size = sum(bundle.manifest.files[name].size for name in names)
    for name in names:
        try:
            (folder / name).symlink_to((bundle.path / name).resolve())
        except (OSError, NotImplementedError):  # file systems and users without links
            shutil.copyfile(bundle.path / name, folder / name)
    convert(folder, variant.graph, _MODEL, size=size, external_from=external_from)
    for name in names:
        (folder / name).unlink()


def _component(variant: Variant, model: Model) -> Component:
    def call(inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        check_inputs(variant, inputs)
        try:
            outputs = model(inputs)
        except Exception as error:
            raise EngineError(
                f"mnn failed in {variant.graph}: {first_line(error)}; close other programs if memory is short, else "
                "report it"
            ) from error
        check_outputs(variant, outputs)
        return outputs

    return call


def _variants(bundle: Bundle, options: EngineOptions) -> dict[str, Variant]:
    return choose_variants(bundle, options, profile="portable", default_precision="fp32", default_batch=1)
