"""Graphs that rows run and no bundle holds: the networks exported as they are, and the steps towards the bundle's own.

Every function runs in a process of its own, writes into one folder below ``Setup.work`` and returns what the report
says about it.
"""

from __future__ import annotations

import collections
import os
import shutil
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
from lare2_export.build.bundle import build_bundle
from lare2_export.build.options import BuildOptions
from lare2_export.build.plan import plan_geometry
from lare2_export.components import COMPONENTS, Component, Geometry
from lare2_export.components.clip_backbone import ClipGraph
from lare2_export.graph.onnx_export import FLAVOURS, WeightFile, export_graph, strip
from lare2_export.graph.prepare import prepare
from lare2_ref.clip_backbone import ClipBackbone

# The opset of the bundles' portable graphs, so that rows differ by what was rewritten and not by the exporter's target.
_OPSET = FLAVOURS["fp32"].opset
_NO_KEY = "0" * 64
# The fused GroupNorm, NHWC convolution, split GELU and packed attention of onnxruntime.transformers have kernels for
# GPUs alone: its own command line leaves these out for the CPU.
_GPU_ONLY = ("group_norm", "skip_group_norm", "nhwc_conv", "bias_splitgelu", "bias_add", "packed_qkv", "packed_kv")


class Plain(nn.Module):
    """A network as it is, without what our graphs put around it."""

    def __init__(self, network: Any, call: Callable[..., Any]) -> None:  # noqa: ANN401 - diffusers is untyped
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *inputs: Tensor) -> Any:  # noqa: ANN401
        """Return what ``call`` takes out of the network's answer."""
        return self.call(self.network, *inputs)


def _encode(vae: Any, sample: Tensor) -> Any:  # noqa: ANN401
    """[1,3,S,S] in [-1,1] -> the posterior's parameters [1,8,h,w], sampling left outside."""
    return vae.encode(sample).latent_dist.parameters


def _predict(unet: Any, sample: Tensor, timestep: Tensor, prompt: Tensor) -> Any:  # noqa: ANN401
    """[E,4,h,w], int64 [1], [E,tokens,width] -> noise prediction [E,4,h,w]."""
    return unet(sample, timestep, encoder_hidden_states=prompt, return_dict=False)[0]


def _look(backbone: ClipBackbone, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """[1,3,C,C], normalised -> embedding [1,D] and layer3 [1,C,grid,grid], because the head needs both."""
    features = backbone.features(pixels)
    return features.embedding, features.layer3


def _judge(head: nn.Module, lare: Tensor, embedding: Tensor, layer3: Tensor) -> Any:  # noqa: ANN401
    """[1,4,h,w], [1,D], [1,C,grid,grid] -> logits [1,2], by the head's own adaptive pooling."""
    return head(lare, embedding, layer3).logits


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
    shapes = ((channels, height, width), (egre.embedding,), (egre.channels, egre.grid, egre.grid))
    features = [torch.zeros(1, *shape) for shape in shapes]
    timestep = torch.tensor([method.timestep])
    # Names of inputs and outputs as optimum gives them.
    steps: dict[str, tuple[Callable[[], Any], Callable[..., Any], dict[str, Tensor], list[str]]] = {
        "vae": (sources.vae, _encode, {"sample": image}, ["latent_parameters"]),
        "unet": (
            sources.unet,
            _predict,
            {"sample": noisy, "timestep": timestep, "encoder_hidden_states": prompt},
            ["out_sample"],
        ),
        "clip": (sources.clip_backbone, _look, {"pixel_values": crop}, ["embedding", "layer3"]),
        "head": (sources.egre, _judge, dict(zip(("lare", "embedding", "layer3"), features, strict=True)), ["logits"]),
    }
    report = {}
    for name, (load, call, inputs, results) in steps.items():
        begin = time.perf_counter()
        with torch.no_grad():
            program = torch.onnx.export(
                Plain(load(), call).eval(),
                tuple(inputs.values()),
                dynamo=True,
                opset_version=_OPSET,
                input_names=list(inputs),
                output_names=results,
                optimize=True,
                verbose=False,
            )
        assert program is not None
        # Weights go into a file beside the graph, which may be larger than protobuf's 2 GB.
        program.save(folder / f"{name}.onnx", external_data=True)
        report[name] = {"seconds": time.perf_counter() - begin, "nodes": len(list(program.model.graph))}
    return report


def transform_plain(setup: Setup) -> dict[str, Any]:
    """Write all four plain graphs after onnxruntime's own offline optimiser; returns which operators it made.

    It has no rules for a ResNet or for the head. Graphs are changed without their weights: with them the UNet has more
    bytes than onnx can infer shapes for.
    """
    import onnx
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_by_fusion

    source, target = setup.folder("plain"), setup.folder("transformers")
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)  # no link: onnx refuses weights in a file with two names
    os.chdir(target)  # onnx looks for the weights of a model in memory in the current folder
    report: dict[str, Any] = {}
    for name in ("vae", "unet"):
        options = FusionOptions(name)
        for fusion in _GPU_ONLY:
            setattr(options, f"enable_{fusion}", False)
        model = onnx.load(f"{name}.onnx", load_external_data=False)
        fused = optimize_by_fusion(model, name, num_heads=0, hidden_size=0, optimization_options=options).model
        onnx.save(fused, f"{name}.onnx")
        made = (node.op_type for node in fused.graph.node if node.domain == "com.microsoft")
        report[name] = dict(collections.Counter(made))
    return report


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


def export_sizes(setup: Setup, ensembles: Iterable[int], batches: Iterable[int]) -> dict[str, Any]:
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
    options = BuildOptions(batches=(1,), half=False, threads=setup.threads)
    bundle = build_bundle(setup.sources(), Path(setup.bundle), options, report=lambda line: print(line, flush=True))
    return {"id": bundle.manifest.id}
