"""``--profile``: where the time goes, by component and by block of the UNet, and what more draws or images cost.

These are single processes measured one after the other: they show proportions. Comparisons belong to the rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from benchmarks.common.resident import RefusedError
from benchmarks.throughput.builds import Builder
from benchmarks.throughput.options import Options
from benchmarks.throughput.rows import BUILDS, COMPILING, OURS, Build, here
from benchmarks.throughput.session import header

SCHEMA = "lare2-rt/profile/1"
ENSEMBLES = (1, 2, 4, 8)
BATCHES = (1, 2, 4)
REPEATS = 3


def profile(options: Options, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure every part that is not there yet and return the report.

    Each part is kept like a build, so a run that was ended goes on where it stopped, and has a process of its own, so
    its peak memory is its own.

    Raises:
        RefusedError, FailedError: a part cannot be measured.
    """
    setup = options.setup
    begin = header(setup, SCHEMA)
    identity = begin["identity"]
    prepared = Builder(setup, BUILDS, identity=identity, report=report).get("reference").result
    ensemble = begin["method"]["ensemble"]
    parts = profile_builds(json.dumps(prepared["layout"]), ensemble)
    builder = Builder(setup, BUILDS | parts, identity=identity, report=report, fresh=options.fresh)
    measured = {
        **{name: builder.get(f"profile-{name}").result for name in ("eager", "onnxruntime")},
        **_usable(builder, report),
    }
    sizes = []
    for draws, batch in points(ensemble) if options.sizes else ():
        for engine in ("eager", "onnxruntime"):
            built = builder.get(_point(engine, draws, batch))
            size = {"engine": engine, "ensemble": draws, "batch": batch}
            sizes.append({**size, "seconds": built.result, "peak_bytes": built.peak_bytes})
    return {
        **begin,
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


def profile_builds(layouts: str, ensemble: int) -> dict[str, Build]:
    """Return the parts of a profile; ``layouts`` is JSON, as the reference build returned it."""
    torch_code = (here("eager"), "lare2_ref")
    graph_code = (here("graphs"), here("layers"), "lare2_rt")
    parts = {
        "profile-peak": Build(here("probe:best_product"), ()),
        "profile-eager": Build(here("profile_eager:profile_eager"), torch_code, (layouts, REPEATS)),
        "profile-onnxruntime": Build(here("profile_graphs:profile_onnxruntime"), graph_code, (REPEATS,)),
        "sizes": Build(here("exports:export_sizes"), OURS, (ENSEMBLES, BATCHES)),
    }
    for name in COMPILING:
        # The rewritten nodes of winograd are named after layers.
        function, arguments = ("winograd", (REPEATS,)) if name == "winograd" else ("engine", (name, REPEATS))
        whole = here(f"profile_graphs:profile_{function}")
        parts[f"profile-{name}"] = Build(whole, graph_code, arguments, needs=(f"engine-{name}",))
    for size in points(ensemble):
        parts[_point("eager", *size)] = Build(here("profile_eager:time_size"), torch_code, (layouts, *size, REPEATS))
        parts[_point("onnxruntime", *size)] = Build(
            here("profile_graphs:time_size"), (here("graphs"),), (*size, REPEATS), needs=("sizes",)
        )
    return parts
