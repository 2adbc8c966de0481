"""Graphs that rows run and no bundle holds: the networks exported as they are, and the steps towards the bundle's own.

Every function runs in a process of its own, writes into one folder below ``Setup.work`` and returns what the report
says about it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from benchmarks.throughput.setup import Setup, build_options, graph_name
from lare2_export.build.plan import plan_geometry
from lare2_export.components import COMPONENTS, Component, Geometry
from lare2_export.components.clip_backbone import ClipGraph
from lare2_export.graph.onnx_export import FLAVOURS, WeightFile, export_graph, strip
from lare2_export.graph.prepare import prepare
from lare2_ref.clip_backbone import ClipBackbone

# The opset of the bundles' portable graphs, so that rows differ by what was rewritten and not by the exporter's target.
_OPSET = FLAVOURS["fp32"].opset
_NO_KEY = "0" * 64


class PlainVae(nn.Module):
    """The encoder as optimum exports it: normalised pixels to the posterior's parameters, sampling left outside."""

    def __init__(self, vae: Any) -> None:  # noqa: ANN401 - diffusers is untyped
        super().__init__()
        self.vae = vae

    def forward(self, sample: Tensor) -> Tensor:
        """[1,3,S,S] in [-1,1] -> [1,8,h,w]."""
        parameters: Tensor = self.vae.encode(sample).latent_dist.parameters
        return parameters


class PlainUnet(nn.Module):
    """The noise prediction with timestep and prompt as inputs, as optimum exports it."""

    def __init__(self, unet: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """[E,4,h,w], int64 [1], [E,tokens,width] -> [E,4,h,w]."""
        prediction: Tensor = self.unet(
            sample, timestep, encoder_hidden_states=encoder_hidden_states, return_dict=False
        )[0]
        return prediction


class PlainClip(nn.Module):
    """The visual tower from normalised pixels; both outputs, because the head needs both."""

    def __init__(self, backbone: ClipBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """[1,3,C,C] -> embedding [1,D], layer3 [1,C,grid,grid]."""
        features = self.backbone.features(pixel_values)
        return features.embedding, features.layer3


class PlainHead(nn.Module):
    """The head with its own adaptive pooling."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, lare: Tensor, embedding: Tensor, layer3: Tensor) -> Tensor:
        """[1,4,h,w], [1,D], [1,C,grid,grid] -> logits [1,2]."""
        logits: Tensor = self.head(lare, embedding, layer3).logits
        return logits


def export_plain(setup: Setup) -> dict[str, Any]:
    """Export all four networks as they are, with fixed shapes, by torch's exporter and its own optimiser."""
    torch.set_num_threads(setup.threads)
    sources, bundle, folder = setup.sources(), setup.opened(), setup.folder("plain")
    method = bundle.manifest.method
    channels, height, width = method.latent_shape
    egre = sources.egre_config()
    prompt = sources.prompt_embeds(method.prompt).expand(method.ensemble, -1, -1).contiguous()
    np.save(folder / "prompt.npy", prompt.numpy())
    image = torch.zeros(1, 3, method.image_size, method.image_size)
    noisy = torch.zeros(method.ensemble, channels, height, width)
    crop = torch.zeros(1, 3, method.crop_size, method.crop_size)
    lare = torch.zeros(1, channels, height, width)
    features = (torch.zeros(1, egre.embedding), torch.zeros(1, egre.channels, egre.grid, egre.grid))
    steps: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], list[str]]] = {
        "vae": (lambda: PlainVae(sources.vae()), (image,), ["latent_parameters"]),
        "unet": (
            lambda: PlainUnet(sources.unet()),
            (noisy, torch.tensor([method.timestep]), prompt),
            ["out_sample"],
        ),
        "clip": (lambda: PlainClip(sources.clip_backbone()), (crop,), ["embedding", "layer3"]),
        "head": (lambda: PlainHead(sources.egre()), (lare, *features), ["logits"]),
    }
    report = {}
    for name, (load, inputs, results) in steps.items():
        report[name] = _export_plain(load().eval(), inputs, results, folder / f"{name}.onnx")
    return report


def _export_plain(module: nn.Module, inputs: tuple[Tensor, ...], results: list[str], path: Path) -> dict[str, Any]:
    """Export one network; its weights go into a file beside the graph, which may be larger than protobuf's 2 GB."""
    begin = time.perf_counter()
    with torch.no_grad():
        program = torch.onnx.export(
            module, inputs, dynamo=True, opset_version=_OPSET, output_names=results, optimize=True, verbose=False
        )
    assert program is not None
    program.save(path, external_data=True)
    return {"seconds": time.perf_counter() - begin, "nodes": len(list(program.model.graph))}


def export_chain(setup: Setup) -> dict[str, Any]:
    """Export the bundle's components before their layers are rewritten and before CLIP is folded.

    CLIP stays like this in the next step too: its convolutions need no rewriting, and its pool computes from the
    weights of its linear layers without calling them, until it is reduced to one query.
    """

    def load(component: Component, geometry: Geometry) -> nn.Module:
        if component.name == "clip_backbone":
            return ClipGraph(setup.sources().clip_backbone()).eval()
        return component.build(setup.sources(), geometry)

    return export_components(setup, "chain", COMPONENTS, load)


def export_sizes(setup: Setup, ensembles: tuple[int, ...], batches: tuple[int, ...]) -> dict[str, Any]:
    """Export the bundle's own components for other ensembles (at batch 1) and other batches, sharing their weights."""
    method = setup.opened().manifest.method

    def load(component: Component, geometry: Geometry) -> nn.Module:
        module = component.build(setup.sources(), geometry)
        prepare(module)
        return module

    points = sorted({*((ensemble, 1) for ensemble in ensembles), *((method.ensemble, batch) for batch in batches)})
    return export_components(setup, "sizes", COMPONENTS, load, points)


def export_components(
    setup: Setup,
    folder: str,
    components: Iterable[Component],
    load: Callable[[Component, Geometry], nn.Module],
    points: list[tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """Write ``<component>[.e<E>].b<B>.onnx`` for every point (E, B), one file of weights a component."""
    torch.set_num_threads(setup.threads)
    geometry = plan_geometry(setup.sources(), build_options(setup.opened(), setup.threads))
    report = {}
    for component in components:
        begin = time.perf_counter()
        module = load(component, geometry)
        sizes = points or [(geometry.ensemble, 1)]
        if component.name != "unet_step":  # the only one that knows the ensemble
            sizes = sorted({(geometry.ensemble, batch) for _, batch in sizes})
        nodes = 0
        with WeightFile(setup.folder(folder) / f"{component.name}.data") as weights:
            for ensemble, batch in sizes:
                model = export_graph(module, component, replace(geometry, ensemble=ensemble), batch=batch)
                strip(model, key=_NO_KEY)
                weights.move_in(model)
                ir.save(model, setup.folder(folder) / graph_name(component.name, ensemble, batch))
                nodes = len(list(model.graph))
        report[component.name] = {"seconds": time.perf_counter() - begin, "nodes": nodes}
    return report


def build_own_bundle(setup: Setup) -> dict[str, Any]:
    """Build the bundle that all rows share, with the method's defaults, as ``build_engines.py`` would."""
    from lare2_export.build.bundle import build_bundle
    from lare2_export.build.options import BuildOptions

    options = BuildOptions(batches=(1,), half=False, threads=setup.threads)
    bundle = build_bundle(setup.sources(), Path(setup.bundle), options, report=lambda line: print(line, flush=True))
    return {"id": bundle.manifest.id}
