"""``--profile``: where the time goes, by component and by block of the UNet, and what more draws or images cost.

These are single processes measured one after the other: they show proportions. Comparisons belong to the rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from benchmarks.throughput.builds import Builder
from benchmarks.throughput.options import Options
from benchmarks.throughput.probe import machine_facts, now
from benchmarks.throughput.process import RefusedError
from benchmarks.throughput.rows import BUILDS, Build
from benchmarks.throughput.session import identity_of
from benchmarks.throughput.setup import packages

SCHEMA = "lare2-rt/profile/1"
ENSEMBLES = (1, 2, 4, 8)
BATCHES = (1, 2, 4)
REPEATS = 3
COMPILING = ("openvino", "winograd")
_OURS = ("lare2_rt", "lare2_export", "lare2_ref")


def profile(options: Options, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure every part that is not there yet and return the report.

    Each part is kept like a build, so a run that was ended goes on where it stopped, and has a process of its own, so
    its peak memory is its own.

    Raises:
        RefusedError, FailedError: a part cannot be measured.
    """
    setup, identity = options.setup, identity_of(options.setup)
    started = now()
    prepared = Builder(setup, BUILDS, identity=identity, report=report).get("reference").result
    method = setup.opened().manifest.method
    parts = _parts(json.dumps(prepared["layout"]), method.ensemble)
    builder = Builder(setup, BUILDS | parts, identity=identity, report=report, fresh=options.fresh)
    measured = {
        **{name: builder.get(f"profile-{name}").result for name in ("eager", "onnxruntime")},
        **_usable(builder, report),
    }
    sizes = []
    for ensemble, batch in points(method.ensemble) if options.sizes else ():
        for engine in ("eager", "onnxruntime"):
            built = builder.get(_point(engine, ensemble, batch))
            sizes.append(
                {
                    "engine": engine,
                    "ensemble": ensemble,
                    "batch": batch,
                    "seconds": built.result,
                    "peak_bytes": built.peak_bytes,
                }
            )
    return {
        "schema": SCHEMA,
        "model": setup.opened().manifest.model.name,
        "identity": identity,
        "started": started,
        "machine": machine_facts(setup.threads),
        "packages": packages(),
        "method": {"ensemble": method.ensemble, "image_size": method.image_size},
        "flop": prepared["flop"],
        "peak_gflops": builder.get("profile-peak").result,
        "parts": measured,
        "sizes": sizes,
    }


def _usable(builder: Builder, report: Callable[[str], None]) -> dict[str, Any]:
    """Return the components' times of every compiling engine that can be used here."""
    parts = {}
    for name in COMPILING:
        try:
            parts[name] = builder.get(f"profile-{name}").result
        except RefusedError as error:
            report(f"{name} is left out: {error}")
    return parts


def points(ensemble: int) -> list[tuple[int, int]]:
    """Return (ensemble, batch): every ensemble at one image, every batch at the bundle's ensemble."""
    return sorted({*((draws, 1) for draws in ENSEMBLES), *((ensemble, batch) for batch in BATCHES)})


def _point(engine: str, ensemble: int, batch: int) -> str:
    return f"size-{engine}-e{ensemble}-b{batch}"


def _parts(layouts: str, ensemble: int) -> dict[str, Build]:
    eager, graphs = "benchmarks.throughput.profile_eager", "benchmarks.throughput.profile_graphs"
    torch_code = ("benchmarks.throughput.eager", "lare2_ref")
    parts = {
        "profile-peak": Build("benchmarks.throughput.probe:best_product", ()),
        "profile-eager": Build(f"{eager}:profile_eager", torch_code, arguments=(layouts, REPEATS)),
        "profile-onnxruntime": Build(
            f"{graphs}:profile_onnxruntime",
            ("benchmarks.throughput.graphs", "benchmarks.throughput.blocks", "lare2_rt"),
            (REPEATS,),
        ),
        "sizes": Build("benchmarks.throughput.exports:export_sizes", _OURS, arguments=(ENSEMBLES, BATCHES)),
    }
    for name in COMPILING:
        whole = name == "winograd"  # its rewritten nodes are named after layers
        parts[f"profile-{name}"] = Build(
            f"{graphs}:profile_{'winograd' if whole else 'engine'}",
            ("benchmarks.throughput.graphs", "benchmarks.throughput.blocks", "lare2_rt"),
            (REPEATS,) if whole else (name, REPEATS),
            needs=(f"engine-{name}",),
        )
    for draws, batch in points(ensemble):
        parts[_point("eager", draws, batch)] = Build(
            f"{eager}:time_size", torch_code, arguments=(layouts, draws, batch, REPEATS)
        )
        parts[_point("onnxruntime", draws, batch)] = Build(
            f"{graphs}:time_size",
            ("benchmarks.throughput.graphs",),
            arguments=(draws, batch, REPEATS),
            needs=("sizes",),
        )
    return parts
