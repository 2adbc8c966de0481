"""The rows that run exported graphs: plain exports in two runtimes, the steps towards our engine, and our engines."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.kept import Arrays, kept_images
from benchmarks.throughput.runner import Call, Runner, run_graphs
from benchmarks.throughput.setup import PREDICTIONS, Setup, graph_name
from lare2_rt.bundle.manifest import COMPONENTS
from lare2_rt.bundle.opening import Bundle
from lare2_rt.engines.chain import ComponentChain
from lare2_rt.engines.contract import Engine, EngineOptions, OpenEngine
from lare2_rt.engines.onnxruntime.engine import PROVIDER, session_settings
from lare2_rt.engines.registry import engine_named
from lare2_rt.engines.selection import load_engine, why_not
from lare2_rt.engines.winograd.engine import WinogradEngine
from lare2_rt.pixels.preprocess import Pixels

Open = Callable[[Path], Call]

# ImageNet's statistics and the range of the log-variance, as in lare2_ref: a user of plain exports writes them again.
_MEAN = np.array((0.485, 0.456, 0.406), np.float32)[:, None, None]
_STD = np.array((0.229, 0.224, 0.225), np.float32)[:, None, None]
_LOG_VARIANCE_RANGE = (-30.0, 20.0)
# Steps on the way to a shipped engine: the same code with one of its optimisations switched off.
_STEPS: dict[str, Engine] = {"winograd-small": WinogradEngine(tiles=(2,))}


class PlainRunner(Runner):
    """Plain exports, with everything between the networks in numpy on the host."""

    def __init__(self, setup: Setup, folder: Path, open_graph: Open, facts: Mapping[str, Any]) -> None:
        super().__init__(facts)
        bundle = setup.opened()
        self._method, self._noise = bundle.manifest.method, bundle.noise
        self._timestep = np.array([self._method.timestep], np.int64)
        self._prompt = np.load(folder / "prompt.npy", allow_pickle=False)
        self._vae, self._unet, self._clip, self._head = (
            open_graph(folder / f"{name}.onnx") for name in ("vae", "unet", "clip", "head")
        )

    def run(self, picture: Pixels) -> Arrays:
        """See ``Runner.run``."""
        method, noise = self._method, self._noise
        with self.laps("vae_encoder"):
            pixels = (picture.image.transpose(2, 0, 1)[None].astype(np.float32) / 255 - 0.5) * 2
            mean, log_variance = np.split(self._vae({"sample": pixels})[0], 2, axis=1)
            std = np.exp(0.5 * log_variance.clip(*_LOG_VARIANCE_RANGE))
            latent = (mean + std * noise.posterior) * np.float32(method.scaling_factor)
        with self.laps("unet_step"):
            signal, level = (np.float32(root) for root in np.sqrt([method.alpha_bar, 1 - method.alpha_bar]))
            noisy = signal * latent + level * noise.ensemble
            target = noise.ensemble
            if method.prediction_type == "v_prediction":
                target = signal * noise.ensemble - level * latent
            inputs = {"sample": noisy, "timestep": self._timestep, "encoder_hidden_states": self._prompt}
            prediction = self._unet(inputs)[0]
            lare = np.square(prediction - target).mean(axis=0, keepdims=True)
        with self.laps("clip_backbone"):
            crop = (picture.crop.transpose(2, 0, 1).astype(np.float32) / 255 - _MEAN) / _STD
            embedding, layer3 = self._clip({"pixel_values": crop[None]})
        with self.laps("egre"):
            logits = self._head({"lare": lare, "embedding": embedding, "layer3": layer3})[0]
        return {
            "latent": latent,
            "noise_prediction": prediction,
            "lare": lare,
            "embedding": embedding,
            "logits": logits,
        }


class StepRunner(Runner):
    """Our components, one onnxruntime session each, taken from wherever the step before the shipped engine has them."""

    def __init__(self, setup: Setup, graphs: Mapping[str, Path]) -> None:
        super().__init__(onnxruntime_facts(setup.threads))
        self._noise = setup.opened().noise
        self._calls = {name: open_onnxruntime(setup.threads)(path) for name, path in graphs.items()}

    def run(self, picture: Pixels) -> Arrays:
        """See ``Runner.run``."""
        return run_graphs(self._calls, picture.image[None], picture.crop[None], self._noise, self.laps)


class EngineRunner(Runner):
    """An engine through the public runtime, as a user has it.

    Its shipped graphs keep the noise prediction to themselves, so ``predictions`` has that of every picture, from the
    same engine on the same graph with one more output, and the LaRE that came with it; empty where nobody asked.
    """

    def __init__(self, engine: OpenEngine, setup: Setup, predictions: Iterable[Arrays]) -> None:
        info = engine.info
        name = f"{info.name} {info.version} {info.device} {info.precision}"
        super().__init__({"engine": name, "threads": info.threads, "build_key": info.build_key})
        self._engine, self._noise = engine, setup.opened().noise
        images = (picture.image.tobytes() for picture in setup.pictures())
        self._predictions = dict(zip(images, predictions, strict=False))

    def run(self, picture: Pixels) -> Arrays:
        """See ``Runner.run``."""
        output = self._engine.run(picture.image[None], picture.crop[None])
        self.laps.seconds = {name: milliseconds / 1e3 for name, milliseconds in output.timings.items()}
        return {"lare": output.lare, "embedding": output.embedding, "logits": output.logits}

    def check(self, picture: Pixels) -> Arrays:
        """See ``Runner.check``; ``probed_lare`` is the LaRE of the graph with the further output."""
        assert isinstance(self._engine, ComponentChain)
        inputs: Arrays = {"image": picture.image[None], "posterior_noise": self._noise.posterior}
        latent = np.array(self._engine.components["vae_encoder"](inputs)["latent"])
        arrays = {**self.run(picture), "latent": latent}
        if self._predictions:
            probed = self._predictions[picture.image.tobytes()]
            arrays |= {"noise_prediction": probed["noise_prediction"], "probed_lare": probed["lare"]}
        return arrays


def open_onnxruntime_plain(setup: Setup, folder: str | None) -> PlainRunner:
    """Open plain exports from a folder of ``work`` with the very settings that our engine uses."""
    assert folder is not None
    return PlainRunner(setup, setup.folder(folder), open_onnxruntime(setup.threads), onnxruntime_facts(setup.threads))


def open_openvino_plain(setup: Setup, folder: str | None) -> PlainRunner:
    """Open plain exports in OpenVINO as its documentation asks for latency on the CPU, in float32."""
    import openvino

    assert folder is not None
    # Without the precision hint OpenVINO takes bfloat16 by itself where the CPU has it; float32 is what is compared.
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": setup.threads,
        "NUM_STREAMS": 1,
    }
    core = openvino.Core()

    def open_graph(path: Path) -> Call:
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
        request = compiled.create_infer_request()

        def call(inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
            request.infer(dict(inputs), share_inputs=True)
            # Copied, because the next call writes into the same memory; these arrays are small.
            return [np.array(request.get_output_tensor(index).data) for index in range(len(compiled.outputs))]

        return call

    facts = {"engine": f"openvino {importlib.metadata.version('openvino')} cpu fp32", "properties": settings}
    return PlainRunner(setup, setup.folder(folder), open_graph, facts)


def open_chain(setup: Setup, argument: str | None) -> StepRunner:
    """Open the components before their layers are rewritten."""
    return StepRunner(setup, {name: _graph(setup, "chain", name) for name in COMPONENTS})


def open_rewrites(setup: Setup, argument: str | None) -> StepRunner:
    """Open the bundle's components with the CLIP of the step before, in which nothing is folded."""
    graphs = bundle_graphs(setup.opened())
    return StepRunner(setup, {**graphs, "clip_backbone": _graph(setup, "chain", "clip_backbone")})


def open_public(setup: Setup, name: str | None) -> EngineRunner:
    """Open an engine by its public name, with what was predicted for the pictures by the build of predictions."""
    assert name is not None
    predictions = kept_images(setup.folder(f"predictions-{name}") / PREDICTIONS)
    return EngineRunner(open_by_name(setup, name), setup, predictions)


def open_step(setup: Setup, name: str | None) -> EngineRunner:
    """Open a step on the way to a shipped engine, by its name in ``_STEPS``."""
    assert name is not None
    return EngineRunner(open_by_name(setup, name), setup, [])


def open_by_name(setup: Setup, name: str) -> OpenEngine:
    """Open an engine by its public name, or a step towards one; what it compiles is kept below ``work``.

    Raises:
        EngineError: it cannot be used here. It is not held against the bundle's own answers: the columns of fidelity do
            that, and an engine that fails must show there.
    """
    bundle, options = setup.opened(), EngineOptions(threads=setup.threads, batch=1, cache=setup.folder("engines"))
    engine = _STEPS.get(name) or engine_named(name)
    if (reason := why_not(engine, bundle, options)) is not None:
        raise reason
    return load_engine(engine, bundle, options)


def compile_engine(setup: Setup, name: str) -> dict[str, Any]:
    """Open an engine once, so that what it compiles is in its cache before anything is measured."""
    engine = open_by_name(setup, name)
    engine.close()
    return {"build_key": engine.info.build_key}


def open_onnxruntime(threads: int) -> Open:
    """Return a function that opens a graph in onnxruntime with our engine's settings."""

    def open_graph(path: Path) -> Call:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), session_settings(threads), providers=[PROVIDER])
        return lambda inputs: session.run(None, dict(inputs))

    return open_graph


def onnxruntime_facts(threads: int) -> dict[str, Any]:
    """Return the settings of every onnxruntime row that is not opened by the public runtime."""
    return {
        "engine": f"onnxruntime {importlib.metadata.version('onnxruntime')} cpu fp32",
        "threads": threads,
        "graph_optimization": "ORT_ENABLE_ALL",
        "execution": "sequential",
    }


def bundle_graphs(bundle: Bundle) -> dict[str, Path]:
    """Return the path of each component's graph at batch 1."""
    return {
        name: bundle.graph_path(bundle.variant(name, batch=1, precision="fp32", profile="portable"))
        for name in COMPONENTS
    }


def _graph(setup: Setup, folder: str, component: str) -> Path:
    return setup.folder(folder) / graph_name(component, setup.opened().manifest.method.ensemble, 1)
