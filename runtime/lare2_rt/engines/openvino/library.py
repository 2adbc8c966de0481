"""OpenVINO as engines use it: imported without its telemetry, one core for the process, models from the user's cache.

Importing OpenVINO's Python package reports that over the network, and leaves files in the home folder, unless the user
has opted out: it is imported here without its telemetry.
"""

from __future__ import annotations

import abc
import contextlib
import ctypes
import functools
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...bundle.manifest import COMPONENTS, ComponentName, Variant
from ...bundle.opening import Bundle
from ...errors import EngineError, first_line
from ..base import CpuEngine
from ..cache.build import compile_chain
from ..cache.entry import Entry
from ..chain import Arrays, Component, ComponentChain, check_inputs, check_outputs
from ..contract import EngineOptions, Foreign, OpenEngine

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


def import_openvino() -> Foreign:
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


def openvino_core() -> Foreign:
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
def _kept_core() -> Foreign:
    return import_openvino().Core()


def settings_for(threads: int) -> dict[str, Any]:
    """Return with what a model is compiled or loaded."""
    return {**SETTINGS, "INFERENCE_NUM_THREADS": threads}


class OpenVinoBased(CpuEngine):
    """An engine whose components OpenVINO computes, some or all of them from entries of the user's cache.

    Attributes:
        cached: the components that have an entry each.
    """

    compiled = True
    cached: ClassVar[tuple[ComponentName, ...]] = COMPONENTS

    def open(self, bundle: Bundle, options: EngineOptions) -> OpenEngine:
        """Make what the cache lacks and load it; raises EngineError when OpenVINO refuses a component."""
        core, info, variants = openvino_core(), self.describe(bundle, options), self.variants(bundle, options)
        chain = compile_chain(
            bundle,
            {name: variants[name] for name in self.cached},
            options,
            info=info,
            facts=self.cache_facts(),
            build=lambda variant, folder: self.make(bundle, variant, folder),
        )
        try:
            models = {
                name: self._load(core, bundle, variant, chain.entries.get(name), options.threads)
                for name, variant in variants.items()
            }
            threads = _threads_used(models, options)
            components = {name: component_of_model(variants[name], model) for name, model in models.items()}
        except BaseException:
            chain.close()
            raise

        def close() -> None:
            models.clear()
            chain.close()

        opened = replace(info, threads=threads, compiled=chain.digest)
        return ComponentChain(opened, components, noise=bundle.noise, close=close)

    def cache_facts(self) -> Mapping[str, str | int]:
        """Return what decides an entry beside the graph, the version and the precision; threads do not."""
        return self.facts()

    @abc.abstractmethod
    def make(self, bundle: Bundle, variant: Variant, folder: Path) -> None:
        """Write an entry into ``folder``; raises EngineError or, where the disk is full, OSError."""

    @abc.abstractmethod
    def model(self, core: Foreign, bundle: Bundle, variant: Variant, entry: Entry | None, threads: int) -> Foreign:
        """Return the compiled model of an entry, or of the bundle's graph where there is none; raises anything."""

    def _load(self, core: Foreign, bundle: Bundle, variant: Variant, entry: Entry | None, threads: int) -> Foreign:
        try:
            model = self.model(core, bundle, variant, entry, threads)
        except Exception as error:
            problem, remedy = f"openvino cannot compile {variant.graph}", "choose another --engine"
            if entry is not None:
                entry.discard()
                problem = f"{self.name} cannot load what it made of {variant.graph}"
                remedy = f"it was removed from the cache: try again, else {remedy}"
            raise EngineError(f"{problem} ({what_is_wrong(error)})", remedy=remedy) from error
        _check_model(bundle, variant, model)
        return model


def _threads_used(models: Mapping[ComponentName, Any], options: EngineOptions) -> int:
    """Return how many threads compiled models use, and say so where they are fewer than asked for."""
    threads = min(int(model.get_property("INFERENCE_NUM_THREADS")) for model in models.values())
    if threads != options.threads:
        options.say(
            f"openvino uses {threads} of the {options.threads} threads asked for: it takes no more than there "
            "are processors"
        )
    return threads


def _check_model(bundle: Bundle, variant: Variant, model: Foreign) -> None:
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


def component_of_model(variant: Variant, model: Foreign) -> Component:
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


_SECONDS = 0.05  # between two times; a disk reads some hundred megabytes meanwhile
_DONT_NEED = 4  # MADV_DONTNEED of Linux


@contextlib.contextmanager
def let_go(*files: Path) -> Iterator[None]:
    """Let go of the pages of files that this process has mapped and cannot write to, again and again until the end.

    No result changes: what is read once more comes from the system's file cache. Only on Linux; elsewhere nothing
    happens.
    """
    if sys.platform != "linux":
        yield
        return
    names, done = {str(file.resolve()) for file in files}, threading.Event()

    def repeat() -> None:
        while not done.wait(_SECONDS):
            _drop(names)

    thread = threading.Thread(target=repeat, name="lare2-rt-let-go", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _drop(names)


def _drop(names: set[str]) -> None:
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with contextlib.suppress(OSError), Path("/proc/self/maps").open(encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(maxsplit=5)
            if fields[-1] in names and fields[1].startswith("r-"):
                begin, end = (int(number, 16) for number in fields[0].split("-"))
                advise(begin, end - begin, _DONT_NEED)
