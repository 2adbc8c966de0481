"""OpenVINO with Winograd's convolutions: the portable float32 graphs with fewer multiplications.

Direct convolutions already run at the peak of the machine; fewer multiplications are what is left. 3×3 convolutions
become matrix products over tiles, and between them pictures stay in the layout of those (``rewrite.py``), where that is
faster and as far as the memory for transformed weights goes (``layers.py``). The cache keeps the rewritten graphs;
OpenVINO compiles them whenever they are loaded, which takes it seconds.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ...bundle.manifest import Variant
from ...bundle.opening import Bundle
from ..cache.build import onnx_files, run_script
from ..cache.entry import Entry
from ..contract import Foreign
from ..openvino.library import SETTINGS, OpenVinoBased, let_go, settings_for

MODEL, WEIGHTS = "model.onnx", "weights.data"
# Of what our own code writes for the same graph, settings and versions. Raise it with every change of that: what is in
# users' caches is rewritten then.
REVISION = 3


@dataclass(frozen=True, slots=True)
class WinogradEngine(OpenVinoBased):
    """Engine ``winograd``.

    Attributes:
        tiles: sizes of tiles that may be chosen; none leaves every convolution as it is.
        budget: bytes that the transformed weights of a component may take more than the stored ones. SD 1.5's would
            take 5 GB more with F(4×4) everywhere; what is slow without it fits into 2.
        channels: layers with fewer are left alone: there the transforms cost as much as a direct convolution.
    """

    tiles: tuple[int, ...] = (2, 4)
    budget: int = 2_500_000_000
    channels: int = 64

    name = "winograd"
    position_stable = False
    cached = ("vae_encoder", "unet_step")  # CLIP gains nothing: its pictures are small, its transforms cost the savings

    def facts(self) -> dict[str, str | int]:
        """Return what decides the rewritten graphs, and how they are compiled, beside the graphs and the versions."""
        return {
            "precision": "fp32",
            "settings": json.dumps(asdict(self)),
            "revision": REVISION,
            "openvino": json.dumps(SETTINGS, sort_keys=True),
        }

    def make(self, bundle: Bundle, variant: Variant, folder: Path) -> None:
        """Write the rewritten graph into ``folder``; raises EngineError or, where the disk is full, OSError."""
        with onnx_files(bundle, variant, folder):
            run_script(
                f"{__package__}.build",
                [variant.graph, MODEL, json.dumps(asdict(self))],
                cwd=folder,
                doing=f"rewrite {variant.graph} for winograd",
                remedy="update onnx, or choose another --engine",
            )

    def model(self, core: Foreign, bundle: Bundle, variant: Variant, entry: Entry | None, threads: int) -> Foreign:
        """See ``OpenVinoBased.model``."""
        graph, files = bundle.graph_path(variant), [bundle.path / name for name in variant.files]
        if entry is not None:
            graph, files = entry.folder / MODEL, [entry.folder / WEIGHTS]
        with let_go(*files):
            return core.compile_model(str(graph), "CPU", settings_for(threads))
