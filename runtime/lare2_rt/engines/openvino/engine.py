"""OpenVINO on the CPU: the portable float32 ONNX graphs, compiled once into the user's cache.

A compiled model is kept without its weights: these stay in the bundle's data file, whose hash was checked, and are
mapped from there. What is executed always comes out of the cache, the first time too, so that a file's bits do not
depend on whether this process compiled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...bundle.manifest import Variant
from ...bundle.opening import Bundle
from ...errors import EngineError
from ...host.machine import cpu_facts
from ..cache.build import compile_chain, run_script
from ..cache.entry import Entry
from ..contract import EngineOptions, OpenEngine
from ..cpu import CpuEngine, portable_variants
from .drop_mapped_pages import let_go
from .library import SETTINGS, check_model, open_models, openvino_core, settings_for, what_is_wrong

_MODEL = "model.blob"
# Leaves the weights out of the compiled model.
_WEIGHTLESS = {"CACHE_MODE": "OPTIMIZE_SIZE"}


class OpenVinoEngine(CpuEngine):
    """Engine ``openvino``. Rows of a batch are equal; graphs of two batch sizes differ by rounding (tests bound it)."""

    name = "openvino"
    position_stable = True
    compiled = True

    def facts(self) -> dict[str, str | int]:
        """Return what decides the compiled model beside the graph; the number of threads does not."""
        return {"settings": json.dumps({**SETTINGS, **_WEIGHTLESS}, sort_keys=True)}

    def open(self, bundle: Bundle, options: EngineOptions) -> OpenEngine:
        """Compile what the cache lacks and load it; raises EngineError when OpenVINO refuses a component."""
        core = openvino_core()
        info, variants = self.describe(bundle, options), portable_variants(bundle, options)
        chain = compile_chain(
            bundle,
            variants,
            options,
            info=info,
            facts={"device": "cpu", **self.facts(), **cpu_facts()},
            build=lambda variant, folder: _compile(bundle, variant, folder),
        )
        return open_models(
            bundle,
            variants,
            options,
            info=info,
            chain=chain,
            load=lambda name, variant: _load(core, bundle, variant, chain.entries[name], threads=options.threads),
        )


def _weights(bundle: Bundle, variant: Variant) -> Path | None:
    """Return the file that holds all weights of a graph; None where they are in the graph or in several files."""
    return bundle.path / variant.files[0] if len(variant.files) == 1 else None


def _compile(bundle: Bundle, variant: Variant, folder: Path) -> None:
    settings = SETTINGS if _weights(bundle, variant) is None else {**SETTINGS, **_WEIGHTLESS}
    run_script(
        "openvino_compile",
        [variant.graph, folder / _MODEL, json.dumps(settings)],
        cwd=bundle.path,
        doing=f"compile {variant.graph} with openvino",
        remedy="update openvino, or choose another --engine",
    )


def _load(core: Any, bundle: Bundle, variant: Variant, entry: Entry, *, threads: int) -> Any:  # noqa: ANN401
    """Return the compiled model of a component; raises EngineError, and forgets an entry that cannot be loaded."""
    weights = _weights(bundle, variant)
    settings = settings_for(threads)
    if weights is not None:
        settings |= {**_WEIGHTLESS, "WEIGHTS_PATH": str(weights)}
    try:
        with let_go(*[weights] if weights else []):
            model = core.import_model((entry.folder / _MODEL).read_bytes(), "CPU", settings)
    except Exception as error:
        entry.discard()
        raise EngineError(
            f"openvino cannot load what it compiled from {variant.graph} ({what_is_wrong(error)})",
            remedy="it was removed from the cache: try again, else choose another --engine",
        ) from error
    check_model(bundle, variant, model)
    return model
