"""Every row of the table: what it runs, what it stands for, and what has to be built for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from benchmarks.common.facts import engines_on
from lare2_rt.engines.registry import entry_of

Kind = Literal["reference", "peer", "step", "ours"]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Largest resident memory of a technique: ``base`` bytes and ``factor`` times the weights.

    Estimates for the check before the start. They err upwards; what is reported is measured.
    """

    base: float
    factor: float

    def bytes(self, weights: int) -> int:
        """Return the estimate for float32 weights of this many bytes."""
        return int(self.base + self.factor * weights)


@dataclass(frozen=True, slots=True)
class Build:
    """Something that must exist before a row can be opened.

    Attributes:
        function: ``module:function``, called as ``function(setup, *arguments)`` in a process of its own, with the
            empty folder of the build's name ready below ``work``.
        code: packages and modules whose code decides the result; needs: builds that come first.
        imports: modules that must be installed; environment: variables of its process, ``{work}`` filled in.
        reads_images: whether the photographs decide the result too.
        aid: needed to measure a row and not to run it, so that it does not count as the row's build time.
    """

    function: str
    code: tuple[str, ...]
    arguments: tuple[object, ...] = ()
    needs: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    reads_images: bool = False
    aid: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One technique.

    Attributes:
        title: what runs, in one line; stands_for: why the row is there.
        opener: ``module:function``, called as ``function(setup, argument)``; returns a ``Runner``.
        argument: for the opener; ``layouts`` stands for the best layouts as they were measured.
        imports: libraries whose start is timed apart from loading.
        memory: estimated peak, for the check before the start.
        reads_weights: whether loading reads files even of synthetic weights; else its time means nothing for those.
    """

    name: str
    kind: Kind
    title: str
    stands_for: str
    opener: str
    imports: tuple[str, ...]
    code: tuple[str, ...]
    memory: Footprint
    argument: str | None = None
    needs: tuple[str, ...] = ()
    reads_weights: bool = True
    environment: dict[str, str] = field(default_factory=dict)


def here(name: str) -> str:
    """Return the full name of a module, or ``module:function``, of this package."""
    return f"{__package__}.{name}"


_REFERENCE = ("lare2_ref",)
OURS = ("lare2_rt", "lare2_export", "lare2_ref")
# Compiled kernels stay here, so that a row loads what its build compiled and compilation is timed once, in the build.
_INDUCTOR = {"TORCHINDUCTOR_CACHE_DIR": "{work}/inductor"}
# Measured at full size (3.5 GB of float32 weights): eager 5.4 GB and with the text encoder 5.8, torch.compile 5.5,
# onnxruntime 5.2, OpenVINO 8.0, winograd 7.0. Each estimate lies 5 to 15 % above.
_EAGER, _OFFICIAL, _COMPILED = Footprint(0.9e9, 1.4), Footprint(1.4e9, 1.4), Footprint(1.2e9, 1.4)
_ONNXRUNTIME, _OPENVINO, _WINOGRAD = Footprint(0.6e9, 1.45), Footprint(0.8e9, 2.3), Footprint(0.8e9, 2.05)

REFERENCE = "eager"
LAYOUTS = "layouts"
# The engines that a CPU can run; GPUs are held against the reference by the GPU report.
ENGINES = tuple(entry.name for entry in engines_on("cpu"))
COMPILING = tuple(name for name in ENGINES if entry_of(name).load().compiled)

_compiled = partial(Build, here("graphs:compile_engine"), OURS)


def predictions(name: str, target: str) -> Build:
    """Return the build of what an engine computes for every image, into the folder ``target``."""
    return Build(here("probed:predict"), OURS, (name, target), needs=("probed",), reads_images=True, aid=True)


BUILDS: dict[str, Build] = {
    "reference": Build(
        here("reference:prepare_reference"), (here("eager"), here("probe"), *_REFERENCE), reads_images=True
    ),
    "plain": Build(here("exports:export_plain"), _REFERENCE),
    "transformers": Build(
        here("exports:transform_plain"), _REFERENCE, needs=("plain",), imports=("onnxruntime.transformers.optimizer",)
    ),
    "chain": Build(here("exports:export_chain"), OURS),
    "inductor": Build(here("peers:compile_chain"), (here("eager"), *_REFERENCE), environment=_INDUCTOR),
    "probed": Build(here("probed:make_bundle"), OURS, aid=True),
    # The engines' graphs keep the noise prediction inside; these tell it, for the column of that name.
    **{f"predictions-{name}": predictions(name, f"predictions-{name}") for name in ENGINES},
    **{f"engine-{name}": _compiled((name,)) for name in (*COMPILING, "winograd-small")},
}


def _torch(
    name: str, kind: Kind, opener: str, memory: Footprint, texts: tuple[str, str], *,
    argument: str | None = None, needs: tuple[str, ...] = (), environment: dict[str, str] | None = None,
) -> Row:  # fmt: skip
    libraries = ("torch", "diffusers", "transformers", "open_clip")
    return Row(
        name, kind, *texts, here(opener), libraries, _REFERENCE, memory, argument, needs,
        reads_weights=False, environment=environment or {},
    )  # fmt: skip


def _plain(name: str, opener: str, library: str, memory: Footprint, needs: str, texts: tuple[str, str]) -> Row:
    code = ("lare2_rt", "lare2_ref")
    return Row(name, "peer", *texts, here(opener), (library,), code, memory, needs, (needs,))


def _step(
    name: str, opener: str, library: str, memory: Footprint, needs: str, texts: tuple[str, str], argument: str = ""
) -> Row:
    return Row(name, "step", *texts, here(opener), (library,), OURS, memory, argument or None, (needs,))


def _shipped(name: str, title: str = "", memory: Footprint = _OPENVINO) -> Row:
    """An engine through the public runtime; what no row says about it is the same for all."""
    title = title or f"the shipped {name} engine on the same bundle"
    needs = (*((f"engine-{name}",) if name in COMPILING else ()), f"predictions-{name}")
    library = entry_of(name).libraries[0].partition("|")[0].replace("-", "_")
    texts = (title, f"`--engine {name}` through the public runtime")
    return Row(name, "ours", *texts, here("graphs:open_public"), (library,), OURS, memory, name, needs)


_KNOWN: tuple[Row, ...] = (
    _torch(REFERENCE, "reference", "eager:open_eager", _EAGER, (
        "PyTorch eager, float32, the faster layout of each network, prompt encoded once",
        "the reference against itself in a second process: how far its ratio is from 1 is the error of the method",
    ), argument=LAYOUTS),
    _torch("eager-accurate", "reference", "eager:open_accurate", _EAGER, (
        "the same with GroupNorm statistics in float64",
        "the definition of fidelity, here in the layouts of `eager`, which round differently; what its exactness costs",
    ), argument=LAYOUTS),
    _torch("eager-official", "peer", "peers:open_official", _OFFICIAL, (
        "PyTorch eager as the official scripts work: text encoder and fresh noise for every image, NCHW",
        "what somebody gets who runs the published code",
    )),
    _torch("torch-compile", "peer", "peers:open_compiled", _COMPILED, (
        "torch.compile: inductor, frozen weights, channels-last, fixed shapes, whole chain",
        "the best that PyTorch offers without an export",
    ), needs=("inductor",), environment=_INDUCTOR),
    _plain("onnxruntime-plain", "graphs:open_onnxruntime_plain", "onnxruntime", _ONNXRUNTIME, "plain", (
        "onnxruntime on a plain export: UNet with timestep and prompt as inputs, noise and error in numpy",
        "what exporting each network as it is gives, as optimum does it",
    )),
    _plain("onnxruntime-transformers", "graphs:open_onnxruntime_plain", "onnxruntime", _ONNXRUNTIME, "transformers", (
        "the same graphs after onnxruntime.transformers' Stable Diffusion optimiser, set for the CPU",
        "onnxruntime's own offline optimisation on top",
    )),
    _plain("openvino-plain", "graphs:open_openvino_plain", "openvino", _OPENVINO, "plain", (
        "OpenVINO on the same plain export: static shapes, latency hint, float32",
        "the other runtime that users of Intel and AMD CPUs reach for",
    )),
    _step("onnxruntime-chain", "graphs:open_chain", "onnxruntime", _ONNXRUNTIME, "chain", (
        "our step 1: noise mixing, target and mean inside the graphs, timestep and prompt folded into constants",
        "what folding is worth",
    )),
    _step("onnxruntime-rewrites", "graphs:open_rewrites", "onnxruntime", _ONNXRUNTIME, "chain", (
        "our step 2: with linear layers, norms and attention rewritten for export",
        "what the rewrites are worth",
    )),
    _shipped(
        "onnxruntime",
        "our step 3, the shipped engine: with CLIP's BatchNorms folded and its pool reduced to one query",
        _ONNXRUNTIME,
    ),
    _step("winograd-small", "graphs:open_step", "openvino", _WINOGRAD, "engine-winograd-small", (
        "our step 4: 3×3 convolutions as Winograd F(2×2)",
        "2.25 times fewer multiplications in the convolutions",
    ), "winograd-small"),
    _shipped(
        "winograd",
        "our step 5, the shipped engine: F(2×2) or F(4×4) for each layer, within a budget of memory",
        _WINOGRAD,
    ),
    _shipped("openvino", "the shipped OpenVINO engine on the same bundle"),
)  # fmt: skip
# Engines that no row above is about come last, in the registry's order.
ROWS = (*_KNOWN, *(_shipped(name) for name in ENGINES if name not in {row.name for row in _KNOWN}))
