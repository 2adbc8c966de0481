"""A build whose graphs are the embedded bundle's: what takes long and writes nothing is replaced.

Networks are not loaded, torch's exporter gives the graphs of the embedded bundle, the parity run its report, and every
step runs in the build's own process, with the same conversion of failures as between worker and parent.

``python -m tests.helpers.quick_build OUT`` is such a build with a short pause after each line that it reports.
"""

import gc
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
import torch

from lare2_export.build import bundle as build, export_step, isolate
from lare2_export.build.options import BuildOptions
from lare2_ref.sources import default_model_folder, open_model_folder
from lare2_rt.bundle.locate import embedded_bundle
from lare2_rt.bundle.manifest import PARITY, SELFCHECK
from lare2_rt.bundle.opening import open_bundle

PAUSE = 0.1  # seconds
OPTIONS = BuildOptions(batches=(1,), half=False)
SOURCES = open_model_folder(default_model_folder())


def exporter(bundle):
    """A ``torch.onnx.export`` that gives the graph of a bundle with these inputs, its weights in memory."""
    variants = [variant for several in bundle.manifest.components.values() for variant in several]

    def export(module, inputs, *, opset_version, input_names, **options):
        wanted = {name: tuple(value.shape) for name, value in zip(input_names, inputs, strict=True)}
        (variant,) = (v for v in variants if {s.name: s.shape for s in v.inputs} == wanted and v.opset == opset_version)
        model = ir.load(bundle.graph_path(variant))
        for name, value in model.graph.initializers.items():
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=name)
        return SimpleNamespace(model=model)

    return export


def quicken(patch):
    """Let ``build_bundle`` be quick as long as ``patch`` lasts."""
    embedded = embedded_bundle()
    report, selfcheck = json.loads((embedded / PARITY).read_bytes()), np.load(embedded / SELFCHECK)
    measured = SimpleNamespace(report=report, selfcheck=selfcheck)

    def run_here(name, function, *arguments, lock, report):
        if name == "parity":
            return measured
        return isolate.answer(name, *isolate.attempt(function, *arguments, report=report))

    empty = [replace(component, build=lambda *_: torch.nn.Identity()) for component in export_step.COMPONENTS]
    patch.setattr(export_step, "COMPONENTS", empty)
    patch.setattr(torch.onnx, "export", exporter(open_bundle(embedded)))
    patch.setattr(build, "run_isolated", run_here)
    patch.setattr(gc, "collect", lambda: 0)  # with torch's hundred thousand objects it costs more than the rest


def build_quickly(out, options=OPTIONS, report=lambda line: None):
    """Build at ``out`` in this process; returns the bundle."""
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        return build.build_bundle(SOURCES, out, options, report=report)


def main():
    def report(line):
        print(line, file=sys.stderr, flush=True)
        time.sleep(PAUSE)

    build_quickly(Path(sys.argv[1]), report=report)


if __name__ == "__main__":
    main()
