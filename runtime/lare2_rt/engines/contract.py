"""What an engine answers before it is opened (``Engine``) and after (``OpenEngine``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import ComponentName, Precision, TensorSpec, Variant
from ..bundle.noise import Noise
from ..bundle.opening import Bundle
from ..errors import EngineError
from ..host.integrity import digest_of

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
Notify = Callable[[str], None]
Foreign = Any  # what a library without types gives or takes


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the caller asks of an engine; None means the engine's own default.

    Attributes:
        threads: CPU threads, resolved (>= 1).
        precision: ``fp32`` or ``fp16``.
        batch: images per call; fixed for the life of the engine, so that a file's bits never depend on its company.
        cache: folder of compiled engines and measurements; default: ``LARE2_CACHE``, else the user's.
        notify: called with one line before anything that takes long, such as compiling, and for what a user should
            know about the engine; from the thread that opens the engine.
        cuda_graph: whether GPU engines replay one captured graph instead of launching every kernel anew.
        build_anew: whether an engine builds plans where those that lie in the cache are of another version of its
            library or another GPU. Else it is refused: a wrong environment is likelier than the wish to build again.
    """

    threads: int
    precision: Precision | None = None
    batch: int | None = None
    cache: Path | None = None
    notify: Notify | None = None
    cuda_graph: bool = True
    build_anew: bool = False

    def say(self, line: str) -> None:
        """Pass one line to ``notify``, if there is one."""
        if self.notify is not None:
            self.notify(line)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What was really opened; every result carries it.

    Attributes:
        threads: CPU threads in use.
        build_key: sha256 in hex over everything that determines the engine, the number of threads asked for included.
        compiled: sha256 in hex over the compiled files in use; None where nothing is compiled, or not yet.
    """

    name: str
    version: str
    device: str
    precision: Precision
    batch: int
    threads: int
    build_key: str
    compiled: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ChainOutput:
    """Results of one batch.

    Attributes:
        lare: float32 [B,4,h,w]; embedding: float32 [B,D], attention-pooled and not normalised.
        logits: float32 [B,2], index 1 = generated; attention: float32 [B,heads,tokens].
        timings: milliseconds per phase, for the whole batch.
    """

    lare: Float32
    embedding: Float32
    logits: Float32
    attention: Float32
    timings: Mapping[str, float] = field(default_factory=dict)


class OpenEngine(Protocol):
    """A loaded engine. ``run`` may be called from any thread, one call at a time."""

    @property
    def info(self) -> EngineInfo:
        """What was opened."""

    def run(self, image: UInt8, crop: UInt8, *, noise: Noise | None = None) -> ChainOutput:
        """Score one full batch: uint8 [B,S,S,3] and [B,C,C,3] RGB; ``noise`` replaces the bundle's (ablations).

        Raises:
            EngineError: the engine failed.
        """

    def close(self) -> None:
        """Release everything; calling it twice is harmless."""


@dataclass(frozen=True, slots=True, eq=False)
class WindowOutput:
    """Results of one further window per image: ``logits``, ``attention`` and ``timings`` as in ``ChainOutput``."""

    logits: Float32
    attention: Float32
    timings: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class WindowEngine(Protocol):
    """An open engine that can also score other windows of pictures whose LaRE is known."""

    def run_window(self, lare: Float32, crop: UInt8) -> WindowOutput:
        """Score one full batch by the CLIP backbone and EGRE alone: float32 [B,4,h,w] and uint8 [B,C,C,3] RGB.

        With the LaRE of ``run`` and the same window it gives the logits and the attention of ``run`` to the bit.

        Raises:
            EngineError: the engine failed.
        """


class Engine(Protocol):
    """An engine that may or may not be usable here. ``RegisteredEngine`` implements most of it."""

    @property
    def name(self) -> str:
        """The name users give, such as ``onnxruntime``."""

    @property
    def position_stable(self) -> bool:
        """Whether an image's bits are the same in every row of a batch, regardless of the other rows.

        Where this is False the engine is only ever opened at batch 1: see ``select_engine``.
        """

    @property
    def compiled(self) -> bool:
        """Whether opening compiles into the user's cache.

        Such an engine computes with kernels that the build of the bundle has not seen, so it is checked once against
        the reference before anybody relies on it: see ``open_engine``.
        """

    @property
    def version(self) -> str | None:
        """Version of the libraries that it computes with; None unless all that it needs are installed."""

    def machine_lacks(self) -> EngineError | None:
        """Return what is missing on this machine whatever the bundle: packages, driver, device; None if nothing is."""

    def why_not(self, bundle: Bundle, options: EngineOptions) -> EngineError | None:
        """Return why this engine cannot take the bundle here; None if it can."""

    def describe(self, bundle: Bundle, options: EngineOptions) -> EngineInfo:
        """Return what ``open`` would open, without loading anything; only for what ``why_not`` has no reason against.

        Raises:
            BundleError: the bundle lacks what the options ask for.
        """

    def open(self, bundle: Bundle, options: EngineOptions) -> OpenEngine:
        """Load the engine; raises EngineError or BundleError."""


def build_key(bundle: Bundle, variants: Mapping[ComponentName, Variant], facts: Mapping[str, str | int]) -> str:
    """Return sha256 in hex over the graphs and weights in use and everything else that decides the compiled engine."""
    files = sorted({name for variant in variants.values() for name in (variant.graph, *variant.files)})
    hashes = {name: bundle.manifest.files[name].sha256 for name in files}
    return digest_of({"files": hashes, "facts": dict(facts)})


def tensors_of(variants: Mapping[ComponentName, Variant]) -> dict[str, TensorSpec]:
    """Return every tensor of a chain by name; what one component gives and the next takes is one tensor.

    Raises:
        EngineError: two components disagree about one.
    """
    specs: dict[str, TensorSpec] = {}
    for variant in variants.values():
        for spec in (*variant.inputs, *variant.outputs):
            known = specs.setdefault(spec.name, spec)
            if (known.dtype, known.shape) != (spec.dtype, spec.shape):
                raise EngineError(f"two components disagree about {spec.name}", remedy="build the bundle again")
    return specs
