"""Engines ``onnxruntime-cuda`` and ``onnxruntime-tensorrt``: what needs no GPU, on fakes and on ONNX Runtime's CPU."""

import dataclasses
import importlib
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from lare2_rt.bundle.manifest import COMPONENTS
from lare2_rt.bundle.noise import draw_noise
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.engines import gpu, registry
from lare2_rt.engines.cache.entry import Recipe
from lare2_rt.engines.contract import EngineInfo, EngineOptions
from lare2_rt.engines.cuda_runtime import Gpu
from lare2_rt.engines.difference import difference
from lare2_rt.engines.onnxruntime import engine as cpu
from lare2_rt.engines.onnxruntime.engine import component_of, open_session, session_settings
from lare2_rt.engines.onnxruntime_gpu import bound as onnxruntime_bound, engine as module
from lare2_rt.engines.onnxruntime_gpu.bound import BoundChain
from lare2_rt.engines.onnxruntime_gpu.engine import OnnxRuntimeCudaEngine, OnnxRuntimeTensorRtEngine
from lare2_rt.engines.registry import engine_named
from lare2_rt.engines.selection import load_engine
from lare2_rt.errors import EngineError
from lare2_rt.pixels.preprocess import preprocess
from tests.fakes.onnxruntime import FakeOnnxRuntime, RuleBroken
from tests.helpers.commands import call

GPU = Gpu("Imaginary 9000", "8.9", 13000, 13050)
OPTIONS = EngineOptions(threads=1)
BOTH = pytest.mark.parametrize("kind", [OnnxRuntimeCudaEngine, OnnxRuntimeTensorRtEngine], ids=lambda kind: kind.name)
VERSIONS = {"onnxruntime-gpu": "1.31.1", "onnx": "1.23.2", "tensorrt-cu13": "10.16.1.11"}


@pytest.fixture(scope="module")
def bundle(tiny):
    return open_bundle(tiny[1].path)


@pytest.fixture(scope="module")
def pictures(photos, bundle):
    pixels = [preprocess(photo, bundle.manifest.policy) for photo in photos[:2]]
    return [(p.image[None], p.crop[None]) for p in pixels]


@pytest.fixture
def world(monkeypatch, tmp_path):
    """A machine with a GPU and onnxruntime-gpu, both fake; graphs are really rewritten."""
    monkeypatch.setenv("LARE2_CACHE", str(tmp_path / "cache"))
    world = SimpleNamespace(ort=FakeOnnxRuntime(), versions=dict(VERSIONS), gpu=GPU)
    for place in (registry, cpu):
        monkeypatch.setattr(place, "installed_version", lambda name: world.versions.get(name))
    for place in (gpu, module):
        monkeypatch.setattr(place, "current_gpu", lambda: world.current_gpu())
    world.current_gpu = lambda: world.gpu
    real = importlib.import_module
    monkeypatch.setattr(
        cpu.importlib, "import_module", lambda name, *rest: world.ort if name == "onnxruntime" else real(name, *rest)
    )

    def prepare(self, bundle, variant, folder, options):
        (folder / "TensorrtExecutionProvider_TRTKernel_0.engine").write_bytes(variant.graph.encode())

    monkeypatch.setattr(OnnxRuntimeTensorRtEngine, "prepare", prepare)
    return world


@pytest.fixture(scope="module")
def expected(bundle, pictures):
    """The half-precision graphs as they are, chained by hand on the CPU."""
    calls = {}
    for name in COMPONENTS:
        variant = bundle.variant(name, batch=1, precision="fp16", profile="native")
        calls[name] = component_of(variant, open_session(bundle, variant, 1))

    def chain(image, crop, noise):
        latent = calls["vae_encoder"]({"image": image, "posterior_noise": noise.posterior})["latent"]
        found = calls["unet_step"]({"latent": latent, "noise": noise.ensemble}) | calls["clip_backbone"]({"crop": crop})
        return found | calls["egre"]({name: found[name] for name in ("lare", "embedding", "layer3")})

    return chain, [chain(image, crop, bundle.noise) for image, crop in pictures]


def close(output, wanted):
    """Norms are written differently, which moves the last digits of half precision."""
    for name in ("lare", "embedding", "logits"):
        assert difference(getattr(output, name), wanted[name]).relative_l2 < 2e-3, name


@BOTH
@pytest.mark.parametrize("graph", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_images_give_their_own_results(world, bundle, pictures, expected, kind, graph, capsys):
    """A chain that replayed its first input would fail here."""
    opened = load_engine(kind(), bundle, dataclasses.replace(OPTIONS, cuda_graph=graph))
    assert (opened.info.name, opened.info.precision, opened.info.batch) == (kind.name, "fp16", 1)
    assert opened.info.device == "cuda:0 (Imaginary 9000)"
    results = [opened.run(*pictures[index]) for index in (0, 1, 0)]
    for index, result in zip((0, 1, 0), results, strict=True):
        close(result, expected[1][index])
    assert np.array_equal(results[0].lare, results[2].lare)
    assert difference(results[0].lare, results[1].lare).relative_l2 > 1e-2
    window = opened.run_window(results[0].lare, pictures[0][1])
    assert np.array_equal(window.logits, results[0].logits)
    assert set(world.ort.allocated) == {("cuda", 0)}
    assert len(world.ort.allocated) == 10  # one buffer a tensor, none for a call
    assert [sorted(session.captured) for session in world.ort.sessions] == [["1"] if graph else []] * 4
    opened.close()
    opened.close()
    with pytest.raises(EngineError, match="closed"):
        opened.run(*pictures[0])
    assert capsys.readouterr().out == ""  # the library prints what it does not find


def test_noise_can_be_given_per_call_and_leaves_no_trace(world, bundle, pictures, expected):
    opened = load_engine(OnnxRuntimeCudaEngine(), bundle, OPTIONS)
    method = bundle.manifest.method
    other = draw_noise(method.noise_seed + 1, method.ensemble, method.latent_shape)
    before = opened.run(*pictures[0])
    close(opened.run(*pictures[0], noise=other), expected[0](*pictures[0], other))
    assert np.array_equal(opened.run(*pictures[0]).lare, before.lare)
    for wrong in (pictures[0][0][:, :-1], pictures[0][0].astype(np.float32)):
        with pytest.raises(EngineError, match="takes image as uint8"):
            opened.run(wrong, pictures[0][1])
    opened.close()


def test_binding_anew_after_capture_replays_old_buffers(world, bundle, pictures):
    """Planted: the fake gives the old result, so the test of two images would see it."""
    opened = load_engine(OnnxRuntimeCudaEngine(), bundle, OPTIONS)
    first = opened.run(*pictures[0])
    fresh = world.ort.allocate(list(pictures[1][0].shape), np.uint8, "cuda", 0)
    fresh.update_inplace(pictures[1][0])
    opened._bindings["vae_encoder"].bind_ortvalue_input("image", fresh)
    opened._buffers["image"].update_inplace(pictures[0][0])
    for name in COMPONENTS:
        opened._call(name)
    assert np.array_equal(opened._read("lare"), first.lare)
    with pytest.raises(RuleBroken, match="IO binding"):
        world.ort.sessions[0].run(None, {})
    opened.close()


def test_the_same_code_on_the_cpu_gives_the_same_bits(embedded, photos):
    """IO binding for real, on ONNX Runtime's CPU provider, at both batch sizes, against plain calls."""
    bundle = open_bundle(embedded)
    for batch in (1, 4):
        variants = {
            name: bundle.variant(name, batch=batch, precision="fp32", profile="portable") for name in COMPONENTS
        }
        sessions = {name: open_session(bundle, variant, 1) for name, variant in variants.items()}
        info = EngineInfo("onnxruntime-cuda", "1", "cpu", "fp32", batch, 1, "0" * 64)
        bound = BoundChain(onnxruntime, sessions, variants, noise=bundle.noise, info=info, device="cpu", graph=False)
        plain = load_engine(engine_named("onnxruntime"), bundle, EngineOptions(threads=1, batch=batch))
        pixels = [preprocess(photo, bundle.manifest.policy) for photo in photos[:4]]
        for start in (0, 2):
            rows = [pixels[(start + row) % 4] for row in range(batch)]
            image, crop = np.stack([p.image for p in rows]), np.stack([p.crop for p in rows])
            ours, theirs = bound.run(image, crop), plain.run(image, crop)
            for name in ("lare", "embedding", "logits", "attention"):
                assert np.array_equal(getattr(ours, name), getattr(theirs, name)), (batch, name)
        kept = ours.lare.copy()
        bound.run(image[::-1], crop[::-1])
        assert np.array_equal(ours.lare, kept)  # the caller's own
        bound.close()
        plain.close()


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_rewritten_graphs_compute_nothing_with_shapes(bundle, tmp_path, precision):
    """What computes with shapes runs on the CPU; ONNX Runtime expands GroupNormalization into that."""
    import onnx

    kinds = Counter()
    for name in COMPONENTS:
        profile = "native" if precision == "fp16" else "portable"
        variant = bundle.variant(name, batch=1, precision=precision, profile=profile)
        OnnxRuntimeCudaEngine().prepare(bundle, variant, tmp_path, OPTIONS)
        assert [path.name for path in tmp_path.iterdir()] == [variant.graph]
        settings = session_settings(1)
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        settings.optimized_model_filepath = str(tmp_path / "optimised")
        settings.add_session_config_entry(module.WEIGHTS_FOLDER, str(bundle.path))
        graph = tmp_path / variant.graph
        onnxruntime.InferenceSession(graph.read_bytes(), settings, providers=["CPUExecutionProvider"])
        kinds += Counter(n.op_type for n in onnx.load(tmp_path / "optimised", load_external_data=False).graph.node)
        for path in tmp_path.iterdir():
            path.unlink()
    assert not {"Shape", "Size", "NonZero", "If", "Loop", "Scan", "GroupNormalization"} & set(kinds)
    assert kinds["InstanceNormalization"] > 20 or precision == "fp32"


def test_provider_options(bundle, world, tmp_path):
    """As ONNX Runtime 1.31 names them; TF32 and measured convolutions off."""
    ((name, cuda),) = OnnxRuntimeCudaEngine().provider_options(tmp_path, OPTIONS)
    assert name == "CUDAExecutionProvider"
    assert cuda == {"device_id": "0", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0", "enable_cuda_graph": "1"}
    without = dataclasses.replace(OPTIONS, cuda_graph=False, cache=tmp_path)
    ((_, off),) = OnnxRuntimeCudaEngine().provider_options(tmp_path, without)
    assert off["enable_cuda_graph"] == "0"
    first, second = OnnxRuntimeTensorRtEngine().provider_options(tmp_path, without)
    assert (first[0], second[0]) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert first[1]["trt_cuda_graph_enable"] == "0"
    assert first[1]["trt_engine_cache_path"] == str(tmp_path)
    assert first[1]["trt_timing_cache_path"] == str(tmp_path / "timings/onnxruntime-tensorrt-1.31.1+10.16.1.11")
    assert "enable_cuda_graph" not in second[1]


@pytest.mark.parametrize(
    "change",
    [
        {"gpu": dataclasses.replace(GPU, name="Other")},
        {"gpu": dataclasses.replace(GPU, driver=13010)},
        {"versions": {**VERSIONS, "onnxruntime-gpu": "1.32.0"}},
        {"versions": {**VERSIONS, "tensorrt-cu13": "10.17.0.1"}},
    ],
)
def test_what_decides_an_engine_is_in_its_key(world, bundle, change):
    engine = OnnxRuntimeTensorRtEngine()
    before = engine.describe(bundle, OPTIONS).build_key
    for name, value in change.items():
        setattr(world, name, value)
    assert engine.describe(bundle, OPTIONS).build_key != before
    assert OnnxRuntimeCudaEngine().describe(bundle, OPTIONS).build_key != before


@BOTH
@pytest.mark.parametrize("change", ["revision", "options"])
def test_our_own_part_of_an_engine_is_in_both_keys(world, bundle, monkeypatch, kind, change):
    """After a fix of ours nobody goes on with what was wrong; where files lie and how kernels start changes no key."""

    def keys(**options):
        engine, recipes = kind(), []

        def compile_chain(bundle, variants, options, *, info, facts, build):
            recipes.append(Recipe(info.name, info.version, "label", dict(facts), 1).key)
            raise EngineError("far enough", remedy="none")

        monkeypatch.setattr(module, "compile_chain", compile_chain)
        asked = dataclasses.replace(OPTIONS, **options)
        with pytest.raises(EngineError, match="far enough"):
            engine.open(bundle, asked)
        return recipes[0], engine.describe(bundle, asked).build_key

    before = keys()
    assert keys(cache=bundle.path / "elsewhere", cuda_graph=False) == before
    if change == "revision":
        monkeypatch.setattr(kind, "revision", kind.revision + 1)
    else:
        real = kind.provider_options

        def other(self, *arguments):
            return [(name, {**given, "use_tf32": "1"}) for name, given in real(self, *arguments)]

        monkeypatch.setattr(kind, "provider_options", other)
    after = keys()
    assert after[0] != before[0]
    assert after[1] != before[1]


def test_a_chain_that_cannot_be_made_lets_the_cache_go(world, bundle, monkeypatch):
    """What its constructor raises before it owns anything; else the entries could never be cleared again."""
    closed, real = [], module.compile_chain

    def compile_chain(*arguments, **options):
        chain = real(*arguments, **options)
        closed.append(False)
        return SimpleNamespace(
            entries=chain.entries, digest=chain.digest, close=lambda: (chain.close(), closed.__setitem__(0, True))
        )

    def disagree(variants):
        raise EngineError("two components disagree about lare", remedy="build the bundle again")

    monkeypatch.setattr(module, "compile_chain", compile_chain)
    monkeypatch.setattr(onnxruntime_bound, "tensors_of", disagree)
    with pytest.raises(EngineError, match="two components disagree"):
        load_engine(OnnxRuntimeCudaEngine(), bundle, OPTIONS)
    assert closed == [True]


class TestEnvironments:
    """The rules of docs/gpu.md, each with its remedy."""

    def reason(self, bundle, kind=OnnxRuntimeCudaEngine, **options):
        return kind().why_not(bundle, dataclasses.replace(OPTIONS, **options))

    @BOTH
    def test_nothing_is_wrong(self, world, bundle, kind):
        assert self.reason(bundle, kind) is None

    @BOTH
    def test_not_installed(self, world, bundle, kind):
        world.versions = {}
        reason = self.reason(bundle, kind)
        assert reason.problem == "onnxruntime-gpu is not installed"
        assert reason.remedy == registry.entry_of(kind.name).install
        world.versions = {"onnxruntime": "1.32.0"}
        assert self.reason(bundle, kind).remedy.startswith("pip uninstall -y onnxruntime, then pip install ")

    def test_both_installed(self, world, bundle):
        world.versions["onnxruntime"] = "1.32.0"
        assert self.reason(bundle).remedy.startswith("pip uninstall -y onnxruntime onnxruntime-gpu")

    def test_of_cuda_12(self, world, bundle):
        world.versions["onnxruntime-gpu"] = "1.24.2"
        reason = self.reason(bundle)
        assert "1.24.2 is too old" in reason.problem
        assert reason.remedy.startswith("pip install ")
        assert reason.remedy.endswith(" --upgrade")

    def test_tensorrt_11_beside_it(self, world, bundle):
        world.versions["tensorrt-cu13"] = "11.4.0.106"
        assert self.reason(bundle) is None
        reason = self.reason(bundle, OnnxRuntimeTensorRtEngine)
        assert "needs TensorRT 10 and 11.4.0.106 is installed" in reason.problem
        assert "another environment with pip install" in reason.remedy

    def test_no_tensorrt(self, world, bundle):
        del world.versions["tensorrt-cu13"]
        reason = self.reason(bundle, OnnxRuntimeTensorRtEngine)
        assert reason.problem == "tensorrt-cu13 is not installed"
        assert "tensorrt-cu13==10." in reason.remedy

    def test_no_onnx(self, world, bundle):
        del world.versions["onnx"]
        assert self.reason(bundle).problem == "onnx is not installed"

    def test_old_driver(self, world, bundle):
        world.gpu = dataclasses.replace(GPU, driver=12080)
        reason = self.reason(bundle)
        assert "too old for CUDA 13" in reason.problem
        assert "580" in reason.remedy

    def test_no_driver(self, world, bundle):
        absent = EngineError("no driver", remedy="install it")

        def current_gpu():
            raise absent

        world.current_gpu = current_gpu
        assert self.reason(bundle) is absent

    def test_precisions(self, world, bundle, embedded):
        assert "--precision" in self.reason(bundle, OnnxRuntimeTensorRtEngine, precision="fp32").remedy
        assert self.reason(bundle, precision="fp32") is None
        assert "--half" in self.reason(open_bundle(embedded)).remedy


@pytest.mark.parametrize(
    ("fail", "sentence"),
    [
        (
            "no library",
            r"cannot open vae_encoder\S* on the GPU .*explicitly disabled\); .*onnxruntime-gpu\[cuda,cudnn\]",
        ),
        ("fallback", r"on CPUExecutionProvider instead of CUDAExecutionProvider: .*pip install"),
        ("memory", r"cannot prepare its memory \(CUDA Provider not available\); free some memory"),
        ("run", r"failed in vae_encoder: CUDA error 2: out of memory; free some memory"),
    ],
)
def test_every_failure_is_a_sentence_and_nothing_falls_back(world, bundle, fail, sentence):
    world.ort.fail = {fail}
    with pytest.raises(EngineError, match=sentence) as told:
        load_engine(OnnxRuntimeCudaEngine(), bundle, OPTIONS)
    assert "\n" not in str(told.value)


def test_the_real_library_without_its_gpu_part_is_refused(bundle):
    """This package of ONNX Runtime has no CUDA provider: it must not end up on the CPU."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    variant = bundle.variant("egre", batch=1, precision="fp16", profile="native")
    providers = [("CUDAExecutionProvider", {"enable_cuda_graph": "1"})]
    with pytest.warns(UserWarning, match="not in available"), pytest.raises(EngineError, match="cannot open egre"):
        module.open_on(onnxruntime, str(bundle.graph_path(variant)), session_settings(1), providers, name="egre")


def test_the_build_process_tells_what_is_wrong(bundle, tmp_path):
    """As the engine starts it, with the real library, which has no TensorRT provider here."""
    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    variant = bundle.variant("egre", batch=1, precision="fp16", profile="native")
    options = dataclasses.replace(OPTIONS, cache=tmp_path / "cache")
    with pytest.raises(EngineError, match=r"cannot build egre\S* with TensorRT: .*; free some GPU memory"):
        OnnxRuntimeTensorRtEngine().prepare(bundle, variant, tmp_path, options)


def test_the_real_library_has_every_name():
    """The CPU package has the same Python code as the GPU package."""
    for owner, names in {
        onnxruntime.OrtValue: ("ortvalue_from_shape_and_type", "update_inplace", "numpy"),
        onnxruntime.IOBinding: ("bind_ortvalue_input", "bind_ortvalue_output"),
        onnxruntime.InferenceSession: ("io_binding", "run_with_iobinding", "get_providers"),
        onnxruntime.RunOptions: ("add_run_config_entry",),
        onnxruntime: ("preload_dlls",),
    }.items():
        for name in names:
            assert callable(getattr(owner, name)), name


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_command_says_what_is_missing_and_never_falls_back(photos, tiny, name):
    if engine_named(name).why_not(open_bundle(tiny[1].path), OPTIONS) is None:
        pytest.skip("there is a GPU")
    run = call("infer", photos[0], "--engine", name, "--format", "json", "--bundle", tiny[1].path)
    assert run.returncode == 2
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith(f"lare2-rt: {name} cannot be used: ")


@pytest.mark.gpu
def test_on_a_gpu_two_images_through_the_graphs(tiny, photos):
    bundle = open_bundle(tiny[1].path)
    engine = engine_named("onnxruntime-cuda")
    reason = engine.why_not(bundle, OPTIONS)
    if reason is not None:
        pytest.skip(str(reason))
    assert json.loads((tiny[1].path / "parity.json").read_text())["half"]["passed"]
    opened = load_engine(engine, bundle, OPTIONS)
    results = []
    for photo in (photos[0], photos[1], photos[0]):
        pixels = preprocess(photo, bundle.manifest.policy)
        results.append(opened.run(pixels.image[None], pixels.crop[None]))
    assert np.array_equal(results[0].lare, results[2].lare)
    assert difference(results[1].lare, results[0].lare).relative_l2 > 1e-2
    opened.close()
