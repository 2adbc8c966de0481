"""OpenVINO on the CPU: the portable float32 ONNX graphs, compiled once into the user's cache.

A compiled model is kept without its weights: these stay in the bundle's data file, whose hash was checked, and are
mapped from there. What is executed always comes out of the cache, the first time too, so that a file's bits do not
depend on whether this process compiled.

Importing OpenVINO's Python package reports that over the network, and leaves files in the home folder, unless the user
has opted out: it is imported here without its telemetry.
"""

from __future__ import annotations

import functools
import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..compiled_entry import Entry
from ..errors import BundleError, EngineError, first_line
from ..machine import cpu_facts
from ..manifest import Variant
from .chain import Arrays, Component, ComponentChain, check_inputs, check_outputs
from .compiling import compile_chain, run_script
from .contract import (
    EngineInfo,
    EngineOptions,
    OpenEngine,
    describe_on_cpu,
    fp32_only,
    installed_version,
    portable_variants,
)

_MODEL = "model.blob"
# One stream for the whole machine, made for the time of one call, in float32 and nothing else. Threads are not pinned:
# two processes would be pinned to the same processors.
_SETTINGS: dict[str, Any] = {
    "INFERENCE_PRECISION_HINT": "f32",
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,
    "ENABLE_HYPER_THREADING": True,
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}
# Leaves the weights out of the compiled model.
_WEIGHTLESS = {"CACHE_MODE": "OPTIMIZE_SIZE"}
_importing = threading.Lock()


class OpenVinoEngine:
    """Engine ``openvino``. Rows of a batch are equal; graphs of two batch sizes differ by rounding (tests bound it)."""

    name = "openvino"
    position_stable = True
    compiled = True

    @property
    def version(self) -> str | None:
        """See ``Engine.version``."""
        return installed_version("openvino")

    def why_not(self, bundle: Bundle, options: EngineOptions) -> str | None:
        """Return why OpenVINO cannot be used, with the remedy."""
        if self.version is None:
            return "openvino is not installed: pip install 'lare2-rt[openvino]'"
        reason = fp32_only(self.name, options)
        if reason is not None:
            return reason
        try:
            portable_variants(bundle, options)
        except BundleError as error:
            return str(error)
        return None

    def describe(self, bundle: Bundle, options: EngineOptions) -> EngineInfo:
        """See ``Engine.describe``."""
        return describe_on_cpu(self.name, self.version, bundle, options, _facts())

    def open(self, bundle: Bundle, options: EngineOptions) -> OpenEngine:
        """Compile what the cache lacks and load it; raises EngineError when OpenVINO refuses a component."""
        try:
            core = _core()
        except Exception as error:  # a broken installation can fail in any way
            raise EngineError(
                f"openvino is installed but cannot be imported ({first_line(error)}): "
                "pip install --force-reinstall openvino"
            ) from error
        info, variants = self.describe(bundle, options), portable_variants(bundle, options)
        chain = compile_chain(
            bundle,
            variants,
            options,
            info=info,
            facts={"device": "cpu", **_facts(), **cpu_facts()},
            build=lambda variant, folder: _compile(bundle, variant, folder),
        )
        try:
            models = {
                name: _load(core, bundle, variant, chain.entries[name], threads=options.threads)
                for name, variant in variants.items()
            }
            threads = min(int(model.get_property("INFERENCE_NUM_THREADS")) for model in models.values())
            if threads != options.threads:
                options.say(
                    f"openvino uses {threads} of the {options.threads} threads asked for: it takes no more than there "
                    "are processors"
                )
            components = {name: _component(variants[name], model) for name, model in models.items()}
        except BaseException:
            chain.close()
            raise
        opened = EngineInfo(
            info.name, info.version, info.device, info.precision, info.batch, threads, info.build_key, chain.digest
        )

        def close() -> None:
            models.clear()
            chain.close()

        return ComponentChain(opened, components, noise=bundle.noise, close=close)


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


def _core() -> Any:  # noqa: ANN401
    """Return this process's one OpenVINO core, which stays until the process ends.

    Its CPU plugin gives the thread that creates it a stack for signal handlers, and frees that stack when it goes. Were
    it to go from another thread, the next signal, a Ctrl-C for one, would end the process with a segmentation fault.
    """
    with _importing:
        return _kept_core()


@functools.cache
def _kept_core() -> Any:  # noqa: ANN401
    return import_openvino().Core()


def _facts() -> dict[str, str]:
    """What decides the compiled model beside the graph; the number of threads does not."""
    return {"settings": json.dumps({**_SETTINGS, **_WEIGHTLESS}, sort_keys=True)}


def _weights(bundle: Bundle, variant: Variant) -> Path | None:
    """Return the file that holds all weights of a graph; None where they are in the graph or in several files."""
    return bundle.path / variant.files[0] if len(variant.files) == 1 else None


def _compile(bundle: Bundle, variant: Variant, folder: Path) -> None:
    settings = _SETTINGS if _weights(bundle, variant) is None else {**_SETTINGS, **_WEIGHTLESS}
    run_script(
        "openvino_compile.py",
        [variant.graph, folder / _MODEL, json.dumps(settings)],
        cwd=bundle.path,
        doing=f"compile {variant.graph} with openvino",
        remedy="update openvino, or choose another --engine",
    )


def _load(core: Any, bundle: Bundle, variant: Variant, entry: Entry, *, threads: int) -> Any:  # noqa: ANN401
    """Return the compiled model of a component; raises EngineError, and forgets an entry that cannot be loaded."""
    weights = _weights(bundle, variant)
    settings = {**_SETTINGS, "INFERENCE_NUM_THREADS": threads}
    if weights is not None:
        settings |= {**_WEIGHTLESS, "WEIGHTS_PATH": str(weights)}
    try:
        model = core.import_model((entry.folder / _MODEL).read_bytes(), "CPU", settings)
    except Exception as error:
        entry.discard()
        raise EngineError(
            f"openvino cannot load what it compiled from {variant.graph} ({_what(error)}); it was removed from the "
            "cache: try again, else choose another --engine"
        ) from error
    precision = model.get_property("INFERENCE_PRECISION_HINT").to_string()
    if precision != "f32":
        raise EngineError(f"openvino computes {variant.graph} in {precision} instead of f32; choose another --engine")
    for ports, specs in ((model.inputs, variant.inputs), (model.outputs, variant.outputs)):
        actual = {port.any_name: (port.element_type.to_dtype(), tuple(port.shape)) for port in ports}
        if actual != {spec.name: (np.dtype(spec.dtype), spec.shape) for spec in specs}:
            raise EngineError(
                f"{bundle.graph_path(variant)} has other inputs or outputs than its manifest says; "
                "build the bundle again"
            )
    return model


def _component(variant: Variant, model: Any) -> Component:  # noqa: ANN401
    names = [spec.name for spec in variant.outputs]
    request = model.create_infer_request()

    def call(inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        check_inputs(variant, inputs)
        try:
            results = request.infer(dict(inputs), share_inputs=True)
        except Exception as error:
            raise EngineError(
                f"openvino failed in {variant.graph}: {_what(error)}; close other programs if memory is short, else "
                "report it"
            ) from error
        outputs = {name: results[name] for name in names}
        check_outputs(variant, outputs)
        return outputs

    return call


def _what(error: Exception) -> str:
    """The telling line of OpenVINO's texts, which begin with its own source lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
    return lines[-1][:200] if lines else first_line(error)
