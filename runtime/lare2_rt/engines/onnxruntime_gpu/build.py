"""Let ONNX Runtime's TensorRT provider build and keep the engine of one graph. Runs in a child process.

Arguments: the ONNX file, and the providers with their options as JSON; the first of them names the folder where the
engine goes. What is wrong is the last line on standard error.
"""

import importlib
import json
import sys

from ...host.child import written_or_said

REVISION = 1  # in the keys of the cache: raise it with every change of how engines are built


def build(graph: str, providers: str) -> None:
    """Open a session, which builds, and leave."""
    ort = importlib.import_module("onnxruntime")
    ort.preload_dlls()
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    wanted = [(name, options) for name, options in json.loads(providers)]
    session = ort.InferenceSession(graph, settings, providers=wanted)
    found = session.get_providers()
    if found[:1] != [wanted[0][0]]:
        sys.exit(f"it went to {found[0]}, as libraries of TensorRT 10 or CUDA 13 do not load")


def main(graph: str, providers: str) -> None:
    """Build, as a child of the engine."""
    written_or_said(lambda: build(graph, providers))
