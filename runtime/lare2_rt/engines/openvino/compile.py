"""Compile one ONNX file with OpenVINO, in a child process whose working folder is that of the file.

Arguments: the file's name, where the compiled model goes, and its configuration as JSON.
"""

import json
from pathlib import Path

from ...host.child import written_or_said
from .library import import_openvino, what_is_wrong


def compile_graph(graph: str, settings: str) -> bytes:
    """Return the compiled model."""
    core = import_openvino().Core()
    try:
        content: bytes = core.compile_model(graph, "CPU", json.loads(settings)).export_model().getvalue()
    except Exception as error:
        raise RuntimeError(what_is_wrong(error)) from error
    return content


def main(graph: str, target: str, settings: str) -> None:
    """Compile and write."""
    written_or_said(lambda: Path(target).write_bytes(compile_graph(graph, settings)))
