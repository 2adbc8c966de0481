"""Compile one ONNX file with OpenVINO. Run as a script, in the folder of the file, by ``openvino.py``.

Arguments: the file's name, where the compiled model goes, and its configuration as JSON. Where the result cannot be
written the exit code is 3 and the error number is printed; else what is wrong is the last line on standard error.
"""

import json
import sys
from pathlib import Path


def compile_graph(graph: str, settings: str) -> bytes:
    """Return the compiled model."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # importing OpenVINO would use the network
    import openvino

    content: bytes = openvino.Core().compile_model(graph, "CPU", json.loads(settings)).export_model().getvalue()
    return content


def main(graph: str, target: str, settings: str) -> None:
    """Compile and write."""
    try:
        content = compile_graph(graph, settings)
    except Exception as error:
        # OpenVINO's texts begin with its own source lines and end with what is the matter.
        lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
        sys.exit(lines[-1] if lines else type(error).__name__)
    try:
        Path(target).write_bytes(content)
    except OSError as error:
        print(error.errno or 0)  # noqa: T201 - for the parent
        sys.exit(3)


if __name__ == "__main__":
    main(*sys.argv[1:])
