"""OpenVINO with Winograd's convolutions: the portable float32 graphs with fewer multiplications.

Direct convolutions already run at the peak of the machine; fewer multiplications are what is left. 3×3 convolutions
become matrix products over tiles, and between them pictures stay in the layout of those (``winograd_rewrite.py``),
where that is faster and as far as the memory for transformed weights goes (``winograd_choose.py``). The cache keeps the
rewritten graphs; OpenVINO compiles them whenever they are loaded, which takes it seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...bundle.manifest import Variant
from ...bundle.opening import Bundle
from ...errors import EngineError
from ..cache.build import compile_chain, onnx_files, run_script
from ..cache.entry import Entry
from ..contract import EngineOptions, OpenEngine
from ..cpu import CpuEngine, portable_variants
from ..openvino.drop_mapped_pages import let_go
from ..openvino.library import SETTINGS, check_model, open_models, openvino_core, settings_for, what_is_wrong

MODEL, WEIGHTS = "model.onnx", "weights.data"
# Of what our own code writes for the same graph, settings and versions. Raise it with every change of that: what is in
# users' caches is rewritten then.
REVISION = 3
# CLIP gains nothing: its pictures are small, and its transforms cost what the products save.
_REWRITTEN = ("vae_encoder", "unet_step")


@dataclass(frozen=True, slots=True)
class WinogradEngine(CpuEngine):
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
    compiled = True

    def facts(self) -> dict[str, str | int]:
        """Return what decides the rewritten graphs, and how they are compiled, beside the graphs and the versions."""
        return {"precision": "fp32", **self._facts()}

    def open(self, bundle: Bundle, options: EngineOptions) -> OpenEngine:
        """Rewrite what the cache lacks and load it; raises EngineError when OpenVINO refuses a graph."""
        core = openvino_core()
        info, variants = self.describe(bundle, options), portable_variants(bundle, options)
        settings = asdict(self)
        chain = compile_chain(
            bundle,
            {name: variants[name] for name in _REWRITTEN},
            options,
            info=info,
            facts=self._facts(),
            build=lambda variant, folder: make_graph(bundle, variant, folder, settings),
        )
        return open_models(
            bundle,
            variants,
            options,
            info=info,
            chain=chain,
            load=lambda name, variant: _load(core, bundle, variant, chain.entries.get(name), threads=options.threads),
        )

    def _facts(self) -> dict[str, str | int]:
        return {
            "settings": json.dumps(asdict(self)),
            "revision": REVISION,
            "openvino": json.dumps(SETTINGS, sort_keys=True),
        }


def make_graph(bundle: Bundle, variant: Variant, folder: Path, settings: Mapping[str, object]) -> None:
    """Write the rewritten graph into ``folder``; raises EngineError or, where the disk is full, OSError."""
    with onnx_files(bundle, variant, folder):
        run_script(
            "winograd_build",
            [variant.graph, MODEL, json.dumps(settings)],
            cwd=folder,
            doing=f"rewrite {variant.graph} for winograd",
            remedy="update onnx, or choose another --engine",
        )


def _load(core: Any, bundle: Bundle, variant: Variant, entry: Entry | None, *, threads: int) -> Any:  # noqa: ANN401
    """Return a compiled model, of a rewritten graph or of the bundle's.

    Raises:
        EngineError: OpenVINO refuses the graph. An entry is forgotten then.
    """
    if entry is None:
        graph, files = bundle.graph_path(variant), [bundle.path / name for name in variant.files]
    else:
        graph, files = entry.folder / MODEL, [entry.folder / WEIGHTS]
    try:
        with let_go(*files):
            model = core.compile_model(str(graph), "CPU", settings_for(threads))
    except Exception as error:
        if entry is None:
            raise EngineError(
                f"openvino cannot compile {variant.graph} ({what_is_wrong(error)})", remedy="choose another --engine"
            ) from error
        entry.discard()
        raise EngineError(
            f"winograd cannot load what it made of {variant.graph} ({what_is_wrong(error)})",
            remedy="it was removed from the cache: try again, else choose another --engine",
        ) from error
    check_model(bundle, variant, model)
    return model
