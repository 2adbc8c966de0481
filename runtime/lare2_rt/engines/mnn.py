"""MNN on the CPU: the portable float32 ONNX graphs of batch 1, converted once into the user's cache.

Its convolutions need fewer multiplications (Winograd), which makes it the fastest engine where convolutions are most of
the work. Rows of a batch come out with other bits by position, so it runs at batch 1 only.

Three properties of the library reach further than one would expect. While it computes, it holds Python's global lock:
other threads wait, a Ctrl-C too. Its threads are one pool for the whole process, as large as the first model that is
loaded with more than one thread asks for; a later model that asks for more would silently get fewer, and other bits: it
is refused. And a hint counts for the whole process until a model has run once: it is given again right before that.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..compiled_entry import Entry
from ..errors import BundleError, EngineError, first_line
from ..manifest import Variant
from .chain import Arrays, Component, ComponentChain, check_inputs, check_outputs
from .compiling import compile_chain, run_script
from .contract import EngineInfo, EngineOptions, OpenEngine, build_key, choose_variants, installed_version
from .stdio import quiet_c_output, quiet_c_stream

_MODEL = "model.mnn"
_WEIGHTS = "model.mnn.weight"  # the name under which MNN looks for weights beside a model
_NEWEST_OPSET = 20  # what the converter of MNN 3.6 reads
_SUCCESS = "Converted Success!"
_WINOGRAD_HINT = 3
_PROBE = bytes(1 << 16)
_MOST_THREADS = 32  # more are taken for 32
_pool = 1  # threads that this process has for MNN; it grows once
_opening = threading.Lock()


@dataclass(frozen=True, slots=True)
class MnnEngine:
    """Engine ``mnn``.

    Attributes:
        winograd_level: how much memory Winograd convolutions may take (MNN's hint 3), which decides their tile and so
            their error: the VAE encoder of SD 1.5 is 5e-4 (relative L2) from the reference at 3, MNN's own default, and
            4e-6 at 1 and 2, for 15 to 40 % more time. A latent may be wrong by 3e-4, hence 1.
        external_from: size of the ONNX files in bytes from which weights are kept in a file of their own: MNN's format
            ends at 2 GB.
    """

    winograd_level: Literal[0, 1, 2, 3] = 1
    external_from: int = 1_800_000_000

    name = "mnn"
    position_stable = False
    compiled = True

    def why_not(self, bundle: Bundle, options: EngineOptions) -> str | None:
        """Return why MNN cannot be used, with the remedy."""
        if installed_version("mnn") is None:
            return "mnn is not installed: pip install 'lare2-rt[mnn]'"
        if options.precision not in (None, "fp32"):
            return f"mnn computes in fp32 here, not in {options.precision}; leave --precision out"
        try:
            variants = _variants(bundle, options)
        except BundleError as error:
            return str(error)
        newest = max(variant.opset for variant in variants.values())
        if newest > _NEWEST_OPSET:
            return f"mnn reads ONNX up to opset {_NEWEST_OPSET} and the bundle has {newest}; choose another --engine"
        return None

    def describe(self, bundle: Bundle, options: EngineOptions) -> EngineInfo:
        """See ``Engine.describe``."""
        variants = _variants(bundle, options)
        version = installed_version("mnn") or ""
        facts: dict[str, str | int] = {
            "engine": self.name,
            "version": version,
            "device": "cpu",
            "precision": "fp32",
            "threads": options.threads,
            "winograd_level": self.winograd_level,
        }
        key = build_key(bundle, variants, facts)
        return EngineInfo(self.name, version, "cpu", "fp32", variants["egre"].batch, options.threads, key)

    def open(self, bundle: Bundle, options: EngineOptions) -> OpenEngine:
        """Convert what the cache lacks and load it; raises EngineError when MNN refuses a component."""
        try:
            with quiet_c_output():
                importlib.import_module("MNN.nn")
        except Exception as error:  # a broken installation can fail in any way
            raise EngineError(
                f"mnn is installed but cannot be imported ({first_line(error)}): pip install --force-reinstall mnn"
            ) from error
        info, variants = self.describe(bundle, options), _variants(bundle, options)
        threads = min(options.threads, _MOST_THREADS)
        if threads != options.threads:
            options.say(f"mnn uses {threads} of the {options.threads} threads asked for: it takes no more")
        chain = compile_chain(
            bundle,
            variants,
            options,
            info=info,
            facts={"external_from": self.external_from},
            build=lambda variant, folder: _convert(bundle, variant, folder, external_from=self.external_from),
        )
        try:
            with quiet_c_output():
                runtime = _runtime(threads)
                modules = {name: _load(variants[name], entry, runtime) for name, entry in chain.entries.items()}
        except BaseException:
            chain.close()
            raise
        components = {
            name: _component(variants[name], module, lambda: runtime.set_hint(_WINOGRAD_HINT, self.winograd_level))
            for name, module in modules.items()
        }
        opened = EngineInfo(
            info.name, info.version, info.device, info.precision, 1, threads, info.build_key, chain.digest
        )

        def close() -> None:
            modules.clear()
            chain.close()

        return ComponentChain(opened, components, noise=bundle.noise, close=close)


def _convert(bundle: Bundle, variant: Variant, folder: Path, *, external_from: int) -> None:
    """Convert a variant into ``folder``; raises EngineError or, where the disk is full, OSError.

    The converter finds the ONNX files under plain names, whatever the path of the bundle looks like.
    """
    names = (variant.graph, *variant.files)
    size = sum(bundle.manifest.files[name].size for name in names)
    for name in names:
        try:
            (folder / name).symlink_to((bundle.path / name).resolve())
        except (OSError, NotImplementedError):  # file systems and users without links
            shutil.copyfile(bundle.path / name, folder / name)
    printed = run_script(
        "mnn_convert.py",
        [variant.graph, _MODEL, *(["--saveExternalData"] if size >= external_from else [])],
        cwd=folder,
        doing=f"convert {variant.graph} for mnn",
        remedy="update mnn, or choose another --engine",
    )
    for name in names:
        (folder / name).unlink()
    for name in (_MODEL, _WEIGHTS):
        if (folder / name).exists():
            _check_room(folder / name)
    made = sum(path.stat().st_size for path in folder.iterdir())
    # Weights are most of a model, and none may be missing.
    if _SUCCESS not in printed or not (folder / _MODEL).exists() or made < 0.9 * size:
        telling = [line.strip() for line in printed.splitlines() if "rror" in line or "ailed" in line]
        raise EngineError(
            f"mnn cannot convert {variant.graph}: {(telling or ['its result is not complete'])[-1][:200]}; update mnn, "
            "or choose another --engine"
        )


def _check_room(path: Path) -> None:
    """Raise OSError where a file cannot grow: then it is not complete either, which the converter does not notice."""
    with path.open("r+b") as handle:
        size = handle.seek(0, 2)
        handle.write(_PROBE)
        handle.flush()
        handle.truncate(size)


def _runtime(threads: int) -> Any:  # noqa: ANN401 - the binding has no types
    """Return a runtime of exactly so many threads; raises EngineError where the process cannot have one any more."""
    global _pool
    import MNN.nn

    with _opening:
        if threads > _pool > 1:
            raise EngineError(
                f"mnn has {_pool} threads in this process since it was first used and cannot have {threads}; ask for "
                f"at most {_pool} threads, or start another process"
            )
        # "high" is float32; "normal" would let it choose.
        runtime = MNN.nn.create_runtime_manager(({"backend": "CPU", "numThread": threads, "precision": "high"},))
        _pool = max(_pool, threads)
    return runtime


def _load(variant: Variant, entry: Entry, runtime: Any) -> Any:  # noqa: ANN401
    """Return the module of a component; raises EngineError, and forgets an entry that cannot be loaded."""
    import MNN.nn

    inputs, outputs = ([spec.name for spec in specs] for specs in (variant.inputs, variant.outputs))
    try:
        return MNN.nn.load_module_from_file(str(entry.folder / _MODEL), inputs, outputs, runtime_manager=runtime)
    except Exception as error:
        entry.discard()
        raise EngineError(
            f"mnn cannot load what it converted from {variant.graph}; it was removed from the cache: try again, else "
            "choose another --engine"
        ) from error


def _component(variant: Variant, module: Any, set_hint: Callable[[], None]) -> Component:  # noqa: ANN401
    from MNN import expr

    types = {"uint8": expr.uint8, "float32": expr.float}
    fresh = True

    def forward(inputs: list[Any]) -> list[Any]:
        nonlocal fresh
        with quiet_c_stream(), _opening if fresh else contextlib.nullcontext():  # it prints when something goes wrong
            if fresh:
                set_hint()
            results: list[Any] = module.forward(inputs)
        fresh = False
        return results

    def call(inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        check_inputs(variant, inputs)
        try:
            given = [
                expr.const(np.ascontiguousarray(inputs[spec.name]), list(spec.shape), expr.NCHW, types[spec.dtype])
                for spec in variant.inputs
            ]
            results = forward(given)
            outputs = {
                # A copy: what MNN gives lies in memory that the next call uses again.
                spec.name: np.array(expr.convert(results[index], expr.NCHW).read(), np.float32)
                for index, spec in enumerate(variant.outputs)
            }
        except Exception as error:
            raise EngineError(
                f"mnn failed in {variant.graph}: {first_line(error)}; close other programs if memory is short, else "
                "report it"
            ) from error
        check_outputs(variant, outputs)
        return outputs

    return call


def _variants(bundle: Bundle, options: EngineOptions) -> dict[str, Variant]:
    return choose_variants(bundle, options, profile="portable", default_precision="fp32", default_batch=1)
