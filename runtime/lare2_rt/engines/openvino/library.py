"""OpenVINO as engines use it: imported without its telemetry, one core for the process, a compiled model as component.

Importing OpenVINO's Python package reports that over the network, and leaves files in the home folder, unless the user
has opted out: it is imported here without its telemetry.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundle.manifest import Variant
from ...bundle.opening import Bundle
from ...errors import EngineError, first_line
from ..cache.build import CompiledChain
from ..chain import Arrays, Component, ComponentChain, check_inputs, check_outputs
from ..contract import EngineInfo, EngineOptions, OpenEngine

# One stream for the whole machine, made for the time of one call, in float32 and nothing else. Threads are not pinned:
# two processes would be pinned to the same processors.
SETTINGS: dict[str, Any] = {
    "INFERENCE_PRECISION_HINT": "f32",
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,
    "ENABLE_HYPER_THREADING": True,
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}
_importing = threading.Lock()


def import_openvino() -> Any:  # noqa: ANN401 - the binding has no types
    """Import OpenVINO such that it sends nothing; without its telemetry module it falls back to one that does nothing.

    Raises:
        ImportError: it is not installed, or broken.
    """
    absent: Any = None
    before = sys.modules.get("openvino_telemetry", absent)
    sys.modules["openvino_telemetry"] = absent
    try:
        import openvino
    finally:
        if before is None:
            del sys.modules["openvino_telemetry"]
        else:
            sys.modules["openvino_telemetry"] = before
    return openvino


def openvino_core() -> Any:  # noqa: ANN401
    """Return this process's one OpenVINO core, which stays until the process ends.

    Its CPU plugin gives the thread that creates it a stack for signal handlers, and frees that stack when it goes. Were
    it to go from another thread, the next signal, a Ctrl-C for one, would end the process with a segmentation fault.

    Raises:
        EngineError: the installation is broken.
    """
    try:
        with _importing:
            return _kept_core()
    except Exception as error:  # a broken installation can fail in any way
        raise EngineError(
            f"openvino is installed but cannot be imported ({first_line(error)})",
            remedy="pip install --force-reinstall openvino",
        ) from error


@functools.cache
def _kept_core() -> Any:  # noqa: ANN401
    return import_openvino().Core()


def check_model(bundle: Bundle, variant: Variant, model: Any) -> None:  # noqa: ANN401
    """Raise EngineError where a compiled model does not compute in float32 or is not what the manifest says."""
    precision = model.get_property("INFERENCE_PRECISION_HINT").to_string()
    if precision != "f32":
        raise EngineError(
            f"openvino computes {variant.graph} in {precision} instead of f32", remedy="choose another --engine"
        )
    for ports, specs in ((model.inputs, variant.inputs), (model.outputs, variant.outputs)):
        actual = {port.any_name: (port.element_type.to_dtype(), tuple(port.shape)) for port in ports}
        if actual != {spec.name: (np.dtype(spec.dtype), spec.shape) for spec in specs}:
            raise EngineError(
                f"{bundle.graph_path(variant)} has other inputs or outputs than its manifest says",
                remedy="build the bundle again",
            )


def settings_for(threads: int) -> dict[str, Any]:
    """Return with what a model is compiled or loaded."""
    return {**SETTINGS, "INFERENCE_NUM_THREADS": threads}


def open_models(
    bundle: Bundle,
    variants: Mapping[str, Variant],
    options: EngineOptions,
    *,
    info: EngineInfo,
    chain: CompiledChain,
    load: Callable[[str, Variant], Any],
) -> OpenEngine:
    """Return an open engine of compiled models, which closes the chain at the end, or at once where one fails.

    Args:
        info: name, version and build key of the engine.
        chain: the cached entries that models come from.
        load: returns the compiled model of a component, or raises EngineError.
    """
    try:
        models = {name: load(name, variant) for name, variant in variants.items()}
        threads = _threads_used(models.values(), options)
        components = {name: component_of_model(variants[name], model) for name, model in models.items()}
    except BaseException:
        chain.close()
        raise

    def close() -> None:
        models.clear()
        chain.close()

    opened = replace(info, threads=threads, compiled=chain.digest)
    return ComponentChain(opened, components, noise=bundle.noise, close=close)


def _threads_used(models: Iterable[Any], options: EngineOptions) -> int:
    """Return how many threads compiled models use, and say so where they are fewer than asked for."""
    threads = min(int(model.get_property("INFERENCE_NUM_THREADS")) for model in models)
    if threads != options.threads:
        options.say(
            f"openvino uses {threads} of the {options.threads} threads asked for: it takes no more than there "
            "are processors"
        )
    return threads


def component_of_model(variant: Variant, model: Any) -> Component:  # noqa: ANN401
    """Return a compiled model as a component; a call raises EngineError where OpenVINO fails."""
    names = [spec.name for spec in variant.outputs]
    request = model.create_infer_request()

    def call(inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        check_inputs(variant, inputs)
        try:
            results = request.infer(dict(inputs), share_inputs=True)
        except Exception as error:
            raise EngineError(
                f"openvino failed in {variant.graph}: {what_is_wrong(error)}",
                remedy="close other programs if memory is short, else report it",
            ) from error
        outputs = {name: results[name] for name in names}
        check_outputs(variant, outputs)
        return outputs

    return call


def what_is_wrong(error: Exception) -> str:
    """Return the telling line of OpenVINO's texts, which begin with its own source lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
    return lines[-1][:200] if lines else first_line(error)
