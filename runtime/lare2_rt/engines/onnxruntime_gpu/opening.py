"""Opening ONNX Runtime's GPU sessions, and preparing what they open; never on the CPU by stealth."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from pathlib import Path
from typing import Any

from ...bundle.manifest import Variant
from ...bundle.opening import Bundle
from ...errors import EngineError, first_line
from ..cache.build import onnx_files, run_script

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_NO_CPU = "session.disable_cpu_ep_fallback"


def open_on(
    ort: Any,  # noqa: ANN401 - the binding has no types
    graph: str | bytes,
    settings: Any,  # noqa: ANN401
    providers: list[tuple[str, dict[str, str]]],
    *,
    name: str,
) -> Any:  # noqa: ANN401
    """Return a session on the first of the providers, with no node on the CPU; raises EngineError.

    Args:
        graph: path, or content; settings: SessionOptions; name: of the graph, for sentences.
    """
    wanted = providers[0][0]
    settings.add_session_config_entry(_NO_CPU, "1")
    try:
        session = ort.InferenceSession(graph, settings, providers=providers)
    except Exception as error:
        raise EngineError(
            f"onnxruntime cannot open {name} on the GPU ({first_line(error)}): see 'lare2-rt doctor', or install its "
            "libraries with pip install 'onnxruntime-gpu[cuda,cudnn]'"
        ) from error
    if session.get_providers()[:1] != [wanted]:  # libraries that do not load are no error to ONNX Runtime
        raise EngineError(
            f"onnxruntime opened {name} on {', '.join(session.get_providers())} instead of {wanted}: "
            "libraries of CUDA 13 or cuDNN 9 do not load",
            remedy="pip install 'onnxruntime-gpu[cuda,cudnn]'",
        )
    return session


def import_onnxruntime_gpu() -> Any:  # noqa: ANN401
    """Import ONNX Runtime with the libraries of NVIDIA's packages; raises EngineError with the remedy."""
    try:
        ort = importlib.import_module("onnxruntime")
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find, which may be elsewhere
            ort.preload_dlls()
    except Exception as error:  # a broken installation can fail in any way
        raise EngineError(
            f"onnxruntime-gpu is installed but cannot be imported ({first_line(error)})",
            remedy="pip install --force-reinstall 'onnxruntime-gpu[cuda,cudnn]'",
        ) from error
    return ort


def rewrite_norms(bundle: Bundle, variant: Variant, folder: Path) -> None:
    """Put the graph as the CUDA provider can run it into ``folder``; its weights stay in the bundle."""
    with onnx_files(bundle, variant, folder):
        run_script(
            "onnxruntime_norms",
            [variant.graph, "rewritten"],
            cwd=folder,
            doing=f"rewrite {variant.graph} for CUDA",
            remedy="install onnx again: pip install --force-reinstall onnx",
        )
    (folder / "rewritten").rename(folder / variant.graph)


def build_tensorrt(bundle: Bundle, variant: Variant, folder: Path, providers: list[tuple[str, dict[str, str]]]) -> None:
    """Let the TensorRT provider put its engine into ``folder``, in a process of its own."""
    run_script(
        "onnxruntime_build",
        [bundle.graph_path(variant).absolute(), json.dumps(providers)],
        cwd=folder,
        doing=f"build {variant.graph} with TensorRT",
        remedy="free some GPU memory, or choose another --engine",
    )
    if not any(path.suffix == ".engine" for path in folder.iterdir()):
        raise EngineError(f"TensorRT took no part of {variant.graph}", remedy="choose another --engine, and report it")
