"""The plain exports after onnxruntime.transformers, onnxruntime's own offline optimiser."""

from __future__ import annotations

import collections
import os
import shutil
from typing import Any

import onnx
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_by_fusion

from benchmarks.throughput.setup import Setup

# Its fused GroupNorm, NHWC convolution, split GELU and packed attention have kernels for GPUs alone: its own command
# line leaves these out for the CPU.
_GPU_ONLY = ("group_norm", "skip_group_norm", "nhwc_conv", "bias_splitgelu", "bias_add", "packed_qkv", "packed_kv")
_KNOWN = ("vae", "unet")  # it has no rules for a ResNet or for the head


def transform_plain(setup: Setup) -> dict[str, Any]:
    """Write all four plain graphs, those that it knows optimised, and return which operators it made.

    Graphs are changed without their weights: with them the UNet has more bytes than onnx can infer shapes for.
    """
    source, target = setup.folder("plain"), setup.folder("transformers")
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)  # no link: onnx refuses weights in a file with two names
    os.chdir(target)  # onnx looks for the weights of a model in memory in the current folder
    report: dict[str, Any] = {}
    for name in _KNOWN:
        options = FusionOptions(name)
        for fusion in _GPU_ONLY:
            setattr(options, f"enable_{fusion}", False)
        model = onnx.load(f"{name}.onnx", load_external_data=False)
        fused = optimize_by_fusion(model, name, num_heads=0, hidden_size=0, optimization_options=options).model
        onnx.save(fused, f"{name}.onnx")
        made = (node.op_type for node in fused.graph.node if node.domain == "com.microsoft")
        report[name] = dict(collections.Counter(made))
    return report
