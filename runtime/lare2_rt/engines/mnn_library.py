"""MNN's library, as it wants to be used: converting an ONNX file, one pool of threads, hints in time, silence.

Three of its properties reach further than one would expect. While it computes, it holds Python's global lock: other
threads wait, a Ctrl-C too. Its threads are one pool for the whole process, as large as the first model that is loaded
with more than one thread asks for; a later model that asks for more would silently get fewer, and other bits: it is
refused. And a hint counts for the whole process until a model has run once: it is given again right before that.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, first_line
from ..manifest import TensorSpec, Variant
from .chain import Arrays
from .compiling import run_script
from .contract import EngineOptions
from .stdio import quiet_c_output, quiet_c_stream

WinogradLevel = Literal[0, 1, 2, 3]
Model = Callable[[Arrays], dict[str, NDArray[np.float32]]]

NEWEST_OPSET = 20  # what the converter of MNN 3.6 reads
_SUCCESS = "Converted Success!"
_WINOGRAD_HINT = 3
_PROBE = bytes(1 << 16)
_MOST_THREADS = 32  # more are taken for 32
_pool = 1  # threads that this process has for MNN; it grows once
_opening = threading.Lock()


def too_new(variants: Mapping[str, Variant]) -> str | None:
    """Return why the converter cannot read the graphs; None if it can."""
    newest = max(variant.opset for variant in variants.values())
    if newest <= NEWEST_OPSET:
        return None
    return f"mnn reads ONNX up to opset {NEWEST_OPSET} and the bundle has {newest}; choose another --engine"


def convert(folder: Path, graph: str, target: str, *, size: int, external_from: int) -> None:
    """Convert the ONNX file ``graph``, which lies in ``folder`` with its weights, into ``target`` there.

    Args:
        size: bytes of the graph and its weights.
        external_from: size from which weights are kept in a file of their own, ``TARGET.weight``: MNN's format ends at
            2 GB.

    Raises:
        EngineError: MNN refuses the graph. OSError: the disk is full.
    """
    printed = run_script(
        "mnn_convert.py",
        [graph, target, *(["--saveExternalData"] if size >= external_from else [])],
        cwd=folder,
        doing=f"convert {graph} for mnn",
        remedy="update mnn, or choose another --engine",
    )
    files = [path for path in (folder / target, folder / f"{target}.weight") if path.exists()]
    for path in files:
        _check_room(path)
    # Weights are most of a model, and none may be missing.
    if _SUCCESS not in printed or not files or sum(path.stat().st_size for path in files) < 0.9 * size:
        telling = [line.strip() for line in printed.splitlines() if "rror" in line or "ailed" in line]
        raise EngineError(
            f"mnn cannot convert {graph}: {(telling or ['its result is not complete'])[-1][:200]}; update mnn, or "
            "choose another --engine"
        )


def _check_room(path: Path) -> None:
    """Raise OSError where a file cannot grow: then it is not complete either, which the converter does not notice."""
    with path.open("r+b") as handle:
        size = handle.seek(0, 2)
        handle.write(_PROBE)
        handle.flush()
        handle.truncate(size)


def import_mnn() -> None:
    """Import the library without what it prints; raises EngineError."""
    try:
        with quiet_c_output():
            importlib.import_module("MNN.nn")
    except Exception as error:  # a broken installation can fail in any way
        raise EngineError(
            f"mnn is installed but cannot be imported ({first_line(error)}): pip install --force-reinstall mnn"
        ) from error


def threads_for(options: EngineOptions) -> int:
    """Return the threads that MNN will use, and say so where these are fewer than were asked for."""
    threads = min(options.threads, _MOST_THREADS)
    if threads != options.threads:
        options.say(f"mnn uses {threads} of the {options.threads} threads asked for: it takes no more")
    return threads


def open_runtime(threads: int) -> Any:  # noqa: ANN401 - the binding has no types
    """Return a runtime of exactly so many threads; raises EngineError where the process cannot have one any more."""
    global _pool
    import MNN.nn

    with _opening:
        if threads > _pool > 1:
            raise EngineError(
                f"mnn has {_pool} threads in this process since it was first used and cannot have {threads}; ask for "
                f"at most {_pool} threads, or start another process"
            )
        with quiet_c_output():
            # "high" is float32; "normal" would let it choose.
            runtime = MNN.nn.create_runtime_manager(({"backend": "CPU", "numThread": threads, "precision": "high"},))
        _pool = max(_pool, threads)
    return runtime


def load_model(
    path: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    runtime: Any,  # noqa: ANN401
    winograd: WinogradLevel,
) -> Model:
    """Return a converted model as a function of named arrays, which must have the shapes and types of ``inputs``.

    Loading it, and each call, raise whatever the binding raises. ``winograd`` is how much memory Winograd convolutions
    may take (hint 3), which decides their tile and so their error.
    """
    import MNN.nn
    from MNN import expr

    with quiet_c_output():
        names = [[spec.name for spec in specs] for specs in (inputs, outputs)]
        module = MNN.nn.load_module_from_file(str(path), *names, runtime_manager=runtime)
    types = {"uint8": expr.uint8, "float32": expr.float}
    fresh = True

    def call(arrays: Arrays) -> dict[str, NDArray[np.float32]]:
        nonlocal fresh
        given = [
            expr.const(np.ascontiguousarray(arrays[spec.name]), list(spec.shape), expr.NCHW, types[spec.dtype])
            for spec in inputs
        ]
        with quiet_c_stream(), _opening if fresh else contextlib.nullcontext():  # it prints when something goes wrong
            if fresh:
                runtime.set_hint(_WINOGRAD_HINT, winograd)
            results: list[Any] = module.forward(given)
        fresh = False
        return {
            # A copy: what MNN gives lies in memory that the next call uses again.
            spec.name: np.array(expr.convert(results[index], expr.NCHW).read(), np.float32)
            for index, spec in enumerate(outputs)
        }

    return call
