"""Exporting one component: load, fold, rewrite, export each batch size, share the weights; in its own process."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from lare2_ref import quieten_libraries

from ..components import COMPONENTS, Component
from ..graph.half import check_half, soften
from ..graph.onnx_export import FLAVOURS, Flavour, WeightFile, export_graph, strip, tensor_specs
from ..graph.prepare import prepare
from .isolate import Report
from .plan import Plan


def export_component(name: str, plan: Plan, folder: Path, *, report: Report) -> list[dict[str, Any]]:
    """Write a component's graphs and weights into ``folder``; returns its variants as the manifest has them."""
    component = next(candidate for candidate in COMPONENTS if candidate.name == name)
    quieten_libraries()
    torch.set_num_threads(plan.options.threads)
    variants: list[dict[str, Any]] = []
    for precision in plan.precisions:
        variants += _export_flavour(component, FLAVOURS[precision], plan, folder, report=report)
        gc.collect()
    return variants


def _export_flavour(
    component: Component, flavour: Flavour, plan: Plan, folder: Path, *, report: Report
) -> list[dict[str, Any]]:
    """Write the graphs of one precision, which share one file of weights."""
    report(f"{component.name}: loading and folding" + (", half precision" if flavour.precision == "fp16" else ""))
    module = component.build(plan.sources, plan.geometry)
    prepare(module, profile=flavour.profile)
    if flavour.precision == "fp16":
        module.to_half()
        gc.collect()
    data = f"{component.name}.{flavour.suffix}.data"
    variants = []
    with WeightFile(folder / data) as weights:
        for batch in plan.options.batches:
            report(f"{component.name}: exporting batch {batch}")
            key = plan.keys[component.name][flavour.precision, batch]
            model = export_graph(module, component, plan.geometry, batch=batch, opset=flavour.opset)
            strip(model, key=key)
            if flavour.precision == "fp16":
                soften(model)
                check_half(model, component.name)
            weights.move_in(model)
            graph = f"{component.name}.b{batch}.{flavour.suffix}.onnx"
            ir.save(model, folder / graph)
            variants.append(_variant(flavour, batch=batch, graph=graph, data=data, key=key, model=model))
            del model
            gc.collect()
    return variants


def _variant(flavour: Flavour, *, batch: int, graph: str, data: str, key: str, model: ir.Model) -> dict[str, Any]:
    return {
        "batch": batch,
        "precision": flavour.precision,
        "profile": flavour.profile,
        "opset": flavour.opset,
        "graph": graph,
        "files": [data],
        "component_key": key,
        "inputs": tensor_specs(list(model.graph.inputs)),
        "outputs": tensor_specs(list(model.graph.outputs)),
    }
