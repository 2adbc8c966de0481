"""The half of ``--profile`` that runs graphs: the libraries' own profilers, mapped to blocks by the names of nodes."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.throughput.graphs import EngineRunner, StepRunner, bundle_graphs, open_by_name, open_onnxruntime
from benchmarks.throughput.layers import OTHER, blocks_of_nodes, clock, measure
from benchmarks.throughput.runner import Call, Laps, component_seconds, run_graphs
from benchmarks.throughput.setup import Setup, graph_name
from lare2_rt.bundle.manifest import COMPONENTS
from lare2_rt.bundle.noise import draw_noise
from lare2_rt.engines.onnxruntime.engine import PROVIDER, session_settings
from lare2_rt.engines.openvino.library import let_go, openvino_core, settings_for
from lare2_rt.engines.winograd.engine import MODEL, WEIGHTS, WinogradEngine
from lare2_rt.engines.winograd.layers import choose, layers_of

_KERNEL = "_kernel_time"
_REPEATS = 5  # of one layer, of which the least time counts


def profile_onnxruntime(setup: Setup, repeats: int) -> dict[str, Any]:
    """Return seconds of every repetition for components, and by block and operator type for the UNet."""
    graphs = bundle_graphs(setup.opened())
    return {
        "components": component_seconds(StepRunner(setup, graphs), setup.pictures(), repeats),
        **profile_unet(setup, "profile-onnxruntime", graphs["unet_step"], repeats),
        "winograd_flop": {name: winograd_flop(path) for name, path in graphs.items()},
    }


def profile_winograd(setup: Setup, repeats: int) -> dict[str, Any]:
    """Return the same for the engine ``winograd``, whose rewritten nodes bear the names of their layers too."""
    bundle, folder = setup.opened(), setup.folder("profile-winograd")
    variant = bundle.variant("unet_step", batch=1, precision="fp32", profile="portable")
    WinogradEngine().make(bundle, variant, folder)
    return {
        **profile_engine(setup, "winograd", repeats),
        **_profile_rewritten(setup, folder / MODEL, repeats),
        "layers": _layers(bundle_graphs(bundle), setup.threads),
    }


def _layers(graphs: Mapping[str, Path], threads: int) -> list[dict[str, object]]:
    """Time every 3×3 convolution of the two networks where nearly all of them are, by itself."""
    import onnx

    found = []
    engine = WinogradEngine()
    for name in ("vae_encoder", "unet_step"):
        counts = Counter(layers_of(onnx.load(str(graphs[name]), load_external_data=False)).values())
        chosen = choose(counts, tiles=engine.tiles, budget=engine.budget, channels=engine.channels)
        measured = measure(counts, clock(threads, _REPEATS))
        found += [{"component": name, **entry.facts(chosen.get(entry.layer))} for entry in measured]
    return found


def profile_unet(setup: Setup, target: str, graph: Path, repeats: int) -> dict[str, Any]:
    """Run a UNet step under onnxruntime's profiler; returns its seconds by block and by operator type.

    ``named_share`` is the part of the kernels' time that the names place in a block or outside of all; where the
    bundle's nodes are not named after layers it is 0, and only the operator types tell something.
    """
    import onnxruntime

    settings = session_settings(setup.threads)
    settings.enable_profiling = True
    settings.profile_file_prefix = str(setup.folder(target) / "unet")
    session = onnxruntime.InferenceSession(str(graph), settings, providers=[PROVIDER])
    inputs = _unet_inputs(setup)
    for _ in range(repeats + 1):
        session.run(None, inputs)
    events = Path(session.end_profiling())
    found = by_block(runs_of(json.loads(events.read_bytes())), _producers(graph))
    events.unlink()
    return found


def _profile_rewritten(setup: Setup, graph: Path, repeats: int) -> dict[str, Any]:
    """Run a rewritten UNet step under OpenVINO's profiler; returns the same as ``profile_unet``."""
    settings = {**settings_for(setup.threads), "PERF_COUNT": True}
    with let_go(graph.with_name(WEIGHTS)):
        request = openvino_core().compile_model(str(graph), "CPU", settings).create_infer_request()
    inputs, runs = _unet_inputs(setup), []
    for _ in range(repeats + 1):
        request.infer(inputs)
        nodes = (
            {"name": node.node_name, "op": node.node_type, "seconds": node.real_time.total_seconds()}
            for node in request.profiling_info
        )
        runs.append([node for node in nodes if node["seconds"]])
    return by_block(runs, {})


def _unet_inputs(setup: Setup) -> dict[str, NDArray[np.float32]]:
    bundle = setup.opened()
    latent = np.random.default_rng(0).standard_normal((1, *bundle.manifest.method.latent_shape), np.float32)
    return {"latent": latent, "noise": bundle.noise.ensemble}


def winograd_flop(graph: Path) -> int:
    """Return the work of the 3×3 convolutions with stride 1, as direct convolutions: what Winograd makes less."""
    import onnx

    layers = layers_of(onnx.load(str(graph), load_external_data=False)).values()
    return sum(18 * lay.batch * lay.inputs * lay.outputs * lay.height * lay.width for lay in layers)


def profile_engine(setup: Setup, name: str, repeats: int) -> dict[str, Any]:
    """Return seconds of every repetition for the components of a shipped engine, by its own clock."""
    engine = open_by_name(setup, name)
    try:
        return {"components": component_seconds(EngineRunner(engine, setup, ()), setup.pictures(), repeats)}
    finally:
        engine.close()


def by_block(runs: Sequence[list[dict[str, Any]]], layers: dict[str, str]) -> dict[str, Any]:
    """Sum the nodes of runs: mean seconds a run by block and by operator type, without the first run."""
    runs = runs[1:]
    blocks: dict[str, float] = {}
    operators: dict[str, float] = {}
    named = total = 0.0
    for nodes in runs:
        for node, block in zip(nodes, blocks_of_nodes(nodes, layers), strict=True):
            seconds = node["seconds"] / len(runs)
            blocks[block] = blocks.get(block, 0.0) + seconds
            operators[node["op"]] = operators.get(node["op"], 0.0) + seconds
            total += seconds
            named += seconds if "/" in layers.get(node["name"].removesuffix("_nchwc"), node["name"]) else 0.0
    if set(blocks) <= {OTHER}:
        blocks = {}
    return {"blocks": blocks, "operators": operators, "named_share": named / total if total and blocks else 0.0}


def runs_of(events: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Split the list of onnxruntime's profiler into runs: each ends with the event of the whole."""
    runs: list[list[dict[str, Any]]] = [[]]
    for event in events:
        if event.get("name") == "model_run":
            runs.append([])
        elif event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            name = event["name"].removesuffix(_KERNEL)
            runs[-1].append({"name": name, "op": event["args"]["op_name"], "seconds": event["dur"] / 1e6})
    return [run for run in runs if run]


def _producers(graph: Path) -> dict[str, str]:
    """Return value -> name of the node that computes it, from the graph without its weights."""
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    return {output: node.name for node in model.graph.node for output in node.output}


def time_size(setup: Setup, ensemble: int, batch: int, repeats: int) -> list[float]:
    """Return seconds of the whole chain for another number of draws or images."""
    method, pictures = setup.opened().manifest.method, setup.pictures()
    folder, opened = setup.folder("sizes"), open_onnxruntime(setup.threads)
    calls: dict[str, Call] = {name: opened(folder / graph_name(name, ensemble, batch)) for name in COMPONENTS}
    row = [pictures[index % len(pictures)] for index in range(batch)]
    image, crop = (np.stack([getattr(picture, name) for picture in row]) for name in ("image", "crop"))
    noise = draw_noise(method.noise_seed, ensemble, method.latent_shape)
    times: list[float] = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        run_graphs(calls, image, crop, noise, Laps())
        times.append(time.perf_counter() - begin)
    return times[1:]
