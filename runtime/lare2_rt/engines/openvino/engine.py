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
from ...host.child import written_or_said
from ...host.machine import cpu_facts
from ..cache.build import run_script
from ..cache.entry import Entry
from ..contract import Foreign
from .library import SETTINGS, OpenVinoBased, import_openvino, let_go, settings_for, what_is_wrong

_MODEL = "model.blob"
# Leaves the weights out of the compiled model.
_WEIGHTLESS = {"CACHE_MODE": "OPTIMIZE_SIZE"}


class OpenVinoEngine(OpenVinoBased):
    """Engine ``openvino``. Rows of a batch are equal; graphs of two batch sizes differ by rounding (tests bound it)."""

    name = "openvino"
    position_stable = True

    def facts(self) -> dict[str, str | int]:
        """See ``CpuEngine.facts``."""
        return {"settings": json.dumps({**SETTINGS, **_WEIGHTLESS}, sort_keys=True)}

    def cache_facts(self) -> dict[str, str | int]:
        """See ``OpenVinoBased.cache_facts``: compiled models are of one kind of processor."""
        return {"device": "cpu", **self.facts(), **cpu_facts()}

    def make(self, bundle: Bundle, variant: Variant, folder: Path) -> None:
        """See ``OpenVinoBased.make``."""
        settings = SETTINGS if _weights(bundle, variant) is None else {**SETTINGS, **_WEIGHTLESS}
        run_script(
            __name__,
            [variant.graph, folder / _MODEL, json.dumps(settings)],
            cwd=bundle.path,
            doing=f"compile {variant.graph} with openvino",
            remedy="update openvino, or choose another --engine",
        )

    def model(self, core: Foreign, bundle: Bundle, variant: Variant, entry: Entry | None, threads: int) -> Foreign:
        """See ``OpenVinoBased.model``."""
        assert entry is not None
        weights, settings = _weights(bundle, variant), settings_for(threads)
        if weights is not None:
            settings |= {**_WEIGHTLESS, "WEIGHTS_PATH": str(weights)}
        with let_go(*[weights] if weights else []):
            return core.import_model((entry.folder / _MODEL).read_bytes(), "CPU", settings)


def _weights(bundle: Bundle, variant: Variant) -> Path | None:
    """Return the file that holds all weights of a graph; None where they are in the graph or in several files."""
    return bundle.path / variant.files[0] if len(variant.files) == 1 else None


def main(graph: str, target: str, settings: str) -> None:
    """Compile an ONNX file of the working folder with settings as JSON, as a child of the engine."""
    written_or_said(lambda: Path(target).write_bytes(_compiled(graph, json.loads(settings))))


def _compiled(graph: str, settings: dict[str, Any]) -> bytes:
    try:
        content: bytes = import_openvino().Core().compile_model(graph, "CPU", settings).export_model().getvalue()
    except Exception as error:
        raise RuntimeError(what_is_wrong(error)) from error
    return content
