"""Every row of the table: what it runs, what it stands for, and what has to be built for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from benchmarks.throughput.memory import Footprint

Kind = Literal["reference", "peer", "step", "ours"]


@dataclass(frozen=True, slots=True)
class Build:
    """Something that must exist before a row can be opened.

    Attributes:
        function: ``module:function``, called as ``function(setup, *arguments)`` in a process of its own, with the
            empty folder of the build's name ready below ``work``.
        code: packages whose code decides the result; needs: builds that come first.
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


_TORCH = ("torch", "diffusers", "transformers", "open_clip")
_REFERENCE = ("lare2_ref",)
_OURS = ("lare2_rt", "lare2_export", "lare2_ref")
# Compiled kernels stay here, so that a row loads what its build compiled and compilation is timed once, in the build.
_INDUCTOR = {"TORCHINDUCTOR_CACHE_DIR": "{work}/inductor"}
# Measured at full size (3.5 GB of float32 weights): eager 5.4 GB and with the text encoder 5.8, torch.compile 5.5,
# onnxruntime 5.2, OpenVINO 8.0, winograd 7.0. Each estimate lies 5 to 15 % above.
_EAGER = Footprint(0.9e9, 1.4)
_OFFICIAL = Footprint(1.4e9, 1.4)
_COMPILED = Footprint(1.2e9, 1.4)
_ONNXRUNTIME = Footprint(0.6e9, 1.45)
_OPENVINO = Footprint(0.8e9, 2.3)
_WINOGRAD = Footprint(0.8e9, 2.05)

REFERENCE = "eager"
LAYOUTS = "layouts"

BUILDS: dict[str, Build] = {
    "reference": Build(
        "benchmarks.throughput.reference:prepare_reference",
        ("benchmarks.throughput.eager", "benchmarks.throughput.probe", *_REFERENCE),
        reads_images=True,
    ),
    "plain": Build("benchmarks.throughput.exports:export_plain", _REFERENCE),
    "transformers": Build(
        "benchmarks.throughput.transform:transform_plain", _REFERENCE, needs=("plain",), imports=("onnxruntime",)
    ),
    "chain": Build("benchmarks.throughput.exports:export_chain", _OURS),
    "inductor": Build(
        "benchmarks.throughput.compile:compile_chain",
        ("benchmarks.throughput.eager", *_REFERENCE),
        environment=_INDUCTOR,
    ),
    "probed": Build("benchmarks.throughput.probed:make_bundle", _OURS, aid=True),
    # The engines' graphs keep the noise prediction inside; these tell it, for the column of that name.
    **{
        f"predictions-{name}": Build(
            "benchmarks.throughput.probed:predict",
            _OURS,
            arguments=(name, f"predictions-{name}"),
            needs=("probed",),
            reads_images=True,
            aid=True,
        )
        for name in ("onnxruntime", "openvino", "winograd")
    },
    "engine-openvino": Build("benchmarks.throughput.graphs:compile_engine", _OURS, arguments=("openvino",)),
    "engine-winograd-small": Build("benchmarks.throughput.graphs:compile_engine", _OURS, arguments=("winograd-small",)),
    "engine-winograd": Build("benchmarks.throughput.graphs:compile_engine", _OURS, arguments=("winograd",)),
}

ROWS: tuple[Row, ...] = (
    Row(
        REFERENCE,
        "reference",
        "PyTorch eager, float32, the faster layout of each network, prompt encoded once",
        "the reference against itself in a second process: how far its ratio is from 1 is the error of the method",
        "benchmarks.throughput.eager:open_eager",
        _TORCH,
        _REFERENCE,
        _EAGER,
        argument=LAYOUTS,
        reads_weights=False,
    ),
    Row(
        "eager-accurate",
        "reference",
        "the same with GroupNorm statistics in float64",
        "the definition of fidelity, here in the layouts of `eager`, which round differently; what its exactness costs",
        "benchmarks.throughput.eager:open_accurate",
        _TORCH,
        _REFERENCE,
        _EAGER,
        argument=LAYOUTS,
        reads_weights=False,
    ),
    Row(
        "eager-official",
        "peer",
        "PyTorch eager as the official scripts work: text encoder and fresh noise for every image, NCHW",
        "what somebody gets who runs the published code",
        "benchmarks.throughput.official:open_official",
        _TORCH,
        _REFERENCE,
        _OFFICIAL,
        reads_weights=False,
    ),
    Row(
        "torch-compile",
        "peer",
        "torch.compile: inductor, frozen weights, channels-last, fixed shapes, whole chain",
        "the best that PyTorch offers without an export",
        "benchmarks.throughput.compile:open_compiled",
        _TORCH,
        _REFERENCE,
        _COMPILED,
        needs=("inductor",),
        reads_weights=False,
        environment=_INDUCTOR,
    ),
    Row(
        "onnxruntime-plain",
        "peer",
        "onnxruntime on a plain export: UNet with timestep and prompt as inputs, noise and error in numpy",
        "what exporting each network as it is gives, as optimum does it",
        "benchmarks.throughput.graphs:open_onnxruntime_plain",
        ("onnxruntime",),
        ("lare2_rt", "lare2_ref"),
        _ONNXRUNTIME,
        argument="plain",
        needs=("plain",),
    ),
    Row(
        "onnxruntime-transformers",
        "peer",
        "the same graphs after onnxruntime.transformers' Stable Diffusion optimiser, set for the CPU",
        "onnxruntime's own offline optimisation on top",
        "benchmarks.throughput.graphs:open_onnxruntime_plain",
        ("onnxruntime",),
        ("lare2_rt", "lare2_ref"),
        _ONNXRUNTIME,
        argument="transformers",
        needs=("transformers",),
    ),
    Row(
        "openvino-plain",
        "peer",
        "OpenVINO on the same plain export: static shapes, latency hint, float32",
        "the other runtime that users of Intel and AMD CPUs reach for",
        "benchmarks.throughput.graphs:open_openvino_plain",
        ("openvino",),
        ("lare2_rt", "lare2_ref"),
        _OPENVINO,
        argument="plain",
        needs=("plain",),
    ),
    Row(
        "onnxruntime-chain",
        "step",
        "our step 1: noise mixing, target and mean inside the graphs, timestep and prompt folded into constants",
        "what folding is worth",
        "benchmarks.throughput.graphs:open_chain",
        ("onnxruntime",),
        _OURS,
        _ONNXRUNTIME,
        needs=("chain",),
    ),
    Row(
        "onnxruntime-rewrites",
        "step",
        "our step 2: with linear layers, norms and attention rewritten for export",
        "what the rewrites are worth",
        "benchmarks.throughput.graphs:open_rewrites",
        ("onnxruntime",),
        _OURS,
        _ONNXRUNTIME,
        needs=("chain",),
    ),
    Row(
        "onnxruntime",
        "ours",
        "our step 3, the shipped engine: with CLIP's BatchNorms folded and its pool reduced to one query",
        "`--engine onnxruntime` through the public runtime",
        "benchmarks.throughput.graphs:open_public",
        ("onnxruntime",),
        _OURS,
        _ONNXRUNTIME,
        argument="onnxruntime",
        needs=("predictions-onnxruntime",),
    ),
    Row(
        "winograd-small",
        "step",
        "our step 4: 3×3 convolutions as Winograd F(2×2)",
        "2.25 times fewer multiplications in the convolutions",
        "benchmarks.throughput.graphs:open_step",
        ("openvino",),
        _OURS,
        _WINOGRAD,
        argument="winograd-small",
        needs=("engine-winograd-small",),
    ),
    Row(
        "winograd",
        "ours",
        "our step 5, the shipped engine: F(2×2) or F(4×4) for each layer, within a budget of memory",
        "`--engine winograd` through the public runtime",
        "benchmarks.throughput.graphs:open_public",
        ("openvino",),
        _OURS,
        _WINOGRAD,
        argument="winograd",
        needs=("engine-winograd", "predictions-winograd"),
    ),
    Row(
        "openvino",
        "ours",
        "the shipped OpenVINO engine on the same bundle",
        "`--engine openvino` through the public runtime",
        "benchmarks.throughput.graphs:open_public",
        ("openvino",),
        _OURS,
        _OPENVINO,
        argument="openvino",
        needs=("engine-openvino", "predictions-openvino"),
    ),
)
