"""MNN on the CPU: the portable float32 ONNX graphs of batch 1, converted once into the user's cache.

Its convolutions need fewer multiplications (Winograd), which pays where convolutions are most of the work. Rows of a
batch come out with other bits by position, so it runs at batch 1 only. What else is peculiar about the library stands
in ``mnn_library.py``.
"""

from __future__ import annotations

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
from .compiling import compile_chain, onnx_files
from .contract import (
    EngineInfo,
    EngineOptions,
    OpenEngine,
    describe_on_cpu,
    fp32_only,
    installed_version,
    portable_variants,
)
from .mnn_library import Model, WinogradLevel, convert, import_mnn, load_model, open_runtime, threads_for, too_new

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

    @property
    def version(self) -> str | None:
        """See ``Engine.version``."""
        return installed_version("mnn")

    def why_not(self, bundle: Bundle, options: EngineOptions) -> str | None:
        """Return why MNN cannot be used, with the remedy."""
        if self.version is None:
            return "mnn is not installed: pip install 'lare2-rt[mnn]'"
        reason = fp32_only(self.name, options)
        if reason is not None:
            return reason
        try:
            return too_new(portable_variants(bundle, options))
        except BundleError as error:
            return str(error)

    def describe(self, bundle: Bundle, options: EngineOptions) -> EngineInfo:
        """See ``Engine.describe``."""
        return describe_on_cpu(
            self.name, self.version, bundle, options, {"precision": "fp32", "winograd_level": self.winograd_level}
        )

    def open(self, bundle: Bundle, options: EngineOptions) -> OpenEngine:
        """Convert what the cache lacks and load it; raises EngineError when MNN refuses a component."""
        import_mnn()
        info, variants = self.describe(bundle, options), portable_variants(bundle, options)
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
    """Convert a variant into ``folder``; raises EngineError or, where the disk is full, OSError."""
    with onnx_files(bundle, variant, folder) as size:
        convert(folder, variant.graph, _MODEL, size=size, external_from=external_from)


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
