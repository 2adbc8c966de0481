"""Build one TensorRT plan, in a child process.

Arguments: name of the binding's module, ONNX file, where the plan goes, the timing cache, options as JSON. Lines on
standard output tell the progress.
"""

import importlib
import json
import sys
from pathlib import Path

from ...errors import EngineError, OutputError, first_line
from ...host.atomic import write_bytes
from ...host.child import written_or_said
from .plan import PlanOptions, build_plan


def main(module: str, graph: str, target: str, timings: str, options: str) -> None:
    """Build and write."""
    known = Path(timings)
    try:
        plan, measured = build_plan(
            importlib.import_module(module),
            Path(graph),
            PlanOptions(**json.loads(options)),
            progress=lambda line: print(line, flush=True),  # noqa: T201 - for the parent
            timings=known.read_bytes() if known.is_file() else b"",
        )
    except EngineError as error:
        sys.exit(str(error))
    except Exception as error:  # the library is loaded from what the user has installed, and that can be broken
        sys.exit(f"{module} failed: {type(error).__name__}: {first_line(error)}")
    written_or_said(lambda: Path(target).write_bytes(plan))
    if measured:
        try:
            known.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_bytes(known, measured)  # atomically: several builds may share it
        except (OSError, OutputError) as error:
            print(f"the timing cache is not kept: {first_line(error)}")  # noqa: T201
