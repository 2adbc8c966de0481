"""Exporting one component: load, fold, rewrite, export each batch size, share the weights; in its own process."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from .components import COMPONENTS
from .isolate import Report
from .onnx_export import PORTABLE_OPSET, WeightFile, export_graph, strip, tensor_specs
from .plan import Plan
from .prepare import prepare


def export_component(name: str, plan: Plan, folder: Path, *, report: Report) -> list[dict[str, Any]]:
    """Write a component's graphs and weights into ``folder``; returns its variants as the manifest has them."""
    component = next(candidate for candidate in COMPONENTS if candidate.name == name)
    torch.set_num_threads(plan.options.threads)
    report(f"{name}: loading and folding")
    module = component.build(plan.sources, plan.geometry)
    prepare(module)
    data = f"{name}.fp32.portable.data"
    variants = []
    with WeightFile(folder / data) as weights:
        for batch, key in plan.keys[name].items():
            report(f"{name}: exporting batch {batch}")
            model = export_graph(module, component, plan.geometry, batch=batch)
            strip(model, key=key)
            weights.move_in(model)
            graph = f"{name}.b{batch}.fp32.portable.onnx"
            ir.save(model, folder / graph)
            variants.append(
                {
                    "batch": batch,
                    "precision": "fp32",
                    "profile": "portable",
                    "opset": PORTABLE_OPSET,
                    "graph": graph,
                    "files": [data],
                    "component_key": key,
                    "inputs": tensor_specs(list(model.graph.inputs)),
                    "outputs": tensor_specs(list(model.graph.outputs)),
                }
            )
            del model
            gc.collect()
    return variants
