"""Engine ``tensorrt``: who may use it, what decides a plan, and the sentences of everything that can be missing."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lare2_rt.bundle.manifest import COMPONENTS
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.engines import gpu, registry, selection
from lare2_rt.engines.cache.build import CompiledChain
from lare2_rt.engines.cache.entry import Recipe
from lare2_rt.engines.contract import EngineOptions
from lare2_rt.engines.cuda_runtime import Gpu
from lare2_rt.engines.measurements import Records
from lare2_rt.engines.registry import engine_named
from lare2_rt.engines.selection import load_engine, prepare_engine, select_engine
from lare2_rt.engines.self_check import reference_key
from lare2_rt.engines.tensorrt import engine as module
from lare2_rt.engines.tensorrt.engine import TensorRtEngine, TensorRtRtxEngine
from lare2_rt.engines.tensorrt.plan import PlanOptions, choose_plan_options, plan_options_of
from lare2_rt.errors import EngineError
from lare2_rt.host.integrity import cache_folder
from lare2_rt.pixels.preprocess import preprocess
from tests.fakes.cuda import FakeCuda
from tests.fakes.engine import use_engines
from tests.fakes.tensorrt import FakeTensorRt, plan_of
from tests.helpers.commands import call

GPU = Gpu("Imaginary 9000", "8.9", 13000, 13050)
OPTIONS = EngineOptions(threads=1)


@pytest.fixture(scope="module")
def bundle(tiny):
    return open_bundle(tiny[1].path)


@pytest.fixture
def world(monkeypatch, bundle, tmp_path):
    """A machine with a GPU and TensorRT 11, all of it fake; ``built`` lists the plans that were built."""
    monkeypatch.setenv("LARE2_CACHE", str(tmp_path / "cache"))  # plans of another test would not be built
    world = SimpleNamespace(cuda=FakeCuda(), built=[], versions={"tensorrt-cu13": "11.4.0.106"}, gpu=GPU)
    world.trt = FakeTensorRt(world.cuda)
    world.current_gpu = lambda: world.gpu

    def build(self, bundle, variant, target, timings, options):
        component = next(n for n in COMPONENTS if variant in bundle.manifest.components[n])
        world.built.append(component)
        target.write_bytes(plan_of(bundle, variant, component))

    monkeypatch.setattr(registry, "installed_version", lambda name: world.versions.get(name))
    monkeypatch.setattr(gpu, "current_gpu", lambda: world.current_gpu())
    monkeypatch.setattr(selection, "_SHORT_ROUNDS", 3)
    monkeypatch.setattr(module, "import_runtime", lambda: world.cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", world.trt)
    monkeypatch.setattr(TensorRtEngine, "_build", build)
    return world


def run(opened, bundle, photo):
    pixels = preprocess(photo, bundle.manifest.policy)
    return opened.run(pixels.image[None], pixels.crop[None])


def test_plans_are_built_once_and_run(world, bundle, photos):
    lines = []
    options = dataclasses.replace(OPTIONS, notify=lines.append)
    results = []
    for _ in range(2):
        opened = load_engine(TensorRtEngine(), bundle, options)
        assert (opened.info.name, opened.info.precision, opened.info.batch) == ("tensorrt", "fp16", 1)
        assert opened.info.device == "cuda:0 (Imaginary 9000)"
        results.append(run(opened, bundle, photos[0]))
        opened.close()
        assert world.cuda.live() == 0
    assert world.built == list(COMPONENTS)
    assert sum("compiling" in line for line in lines) == 4
    np.testing.assert_array_equal(results[0].logits, results[1].logits)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"gpu": dataclasses.replace(GPU, name="Other")},
            "built by tensorrt 11.4.0.106 for Imaginary 9000, and here are 11.4.0.106 and Other",
        ),
        (
            {"versions": {"tensorrt-cu13": "10.16.1.11"}},
            "built by tensorrt 11.4.0.106 for Imaginary 9000, and here are 10.16.1.11 and Imaginary 9000",
        ),
    ],
    ids=["gpu", "major"],
)
def test_plans_of_another_gpu_or_version_are_told_and_stay(world, bundle, change, told):
    """Never opened, never silently built again, never replaced: one command builds plans that fit beside them."""
    engine = TensorRtEngine()
    load_engine(engine, bundle, OPTIONS).close()
    before = dict(vars(world))
    vars(world).update(change)
    reason = engine.why_not(bundle, OPTIONS)
    assert reason.problem.endswith(told)
    assert reason.remedy.endswith("'lare2-rt bench --engine tensorrt'")
    anew = dataclasses.replace(OPTIONS, build_anew=True)
    assert engine.why_not(bundle, anew) is None
    load_engine(engine, bundle, anew).close()
    assert world.built == 2 * list(COMPONENTS)
    assert engine.why_not(bundle, OPTIONS) is None  # now there are plans that fit
    vars(world).update({name: before[name] for name in change})
    assert engine.why_not(bundle, OPTIONS) is None
    load_engine(engine, bundle, OPTIONS).close()
    assert world.built == 2 * list(COMPONENTS)


def test_a_newer_driver_is_no_other_place(world, bundle):
    load_engine(TensorRtEngine(), bundle, OPTIONS).close()
    world.gpu = dataclasses.replace(GPU, driver=13010)
    assert TensorRtEngine().why_not(bundle, OPTIONS) is None


def test_a_build_chooses_options_and_a_run_finds_its_plans(world, bundle):
    engine = TensorRtEngine()
    load_engine(engine, bundle, OPTIONS).close()
    before = engine.describe(bundle, OPTIONS).build_key
    choose_plan_options("tensorrt", bundle, PlanOptions(level=5, workspace=1 << 30))
    assert plan_options_of("tensorrt", bundle) == PlanOptions(level=5, workspace=1 << 30)
    assert engine.describe(bundle, OPTIONS).build_key != before
    for _ in range(2):
        load_engine(engine, bundle, OPTIONS).close()
    assert world.built == 2 * list(COMPONENTS)
    kept = next((cache_folder() / "plans").iterdir())
    for damaged in (b"{", b'{"level": 9}', b""):
        kept.write_bytes(damaged)
        assert plan_options_of("tensorrt", bundle) == PlanOptions()


def test_a_build_is_checked_timed_and_then_chosen(world, bundle, monkeypatch):
    """Parity and a short benchmark are stored; ``auto`` goes by them, and never takes what failed."""
    engine, cpu = TensorRtEngine(), engine_named("onnxruntime")
    use_engines(monkeypatch, cpu, engine)
    world.versions["onnxruntime"] = "1.20"
    assert select_engine("auto", bundle, OPTIONS)[0] is cpu
    record = prepare_engine("tensorrt", bundle, OPTIONS)
    assert record.check.passed
    assert record.speed.rounds == 3
    assert 0 < record.speed.p50 <= record.speed.p90 <= record.speed.p99
    assert record == Records().read(engine.describe(bundle, OPTIONS).build_key, reference_key(bundle))
    assert select_engine("auto", bundle, OPTIONS)[0] is engine
    choose_plan_options("tensorrt", bundle, PlanOptions(level=1))
    wrong = dataclasses.replace(bundle, selfcheck=bundle.selfcheck + 1)
    with pytest.raises(EngineError, match="tensorrt is refused: it failed its self-check"):
        prepare_engine("tensorrt", wrong, OPTIONS)
    failed = Records().read(engine.describe(wrong, OPTIONS).build_key, reference_key(wrong))
    assert not failed.check.passed
    assert failed.speed is None
    assert select_engine("auto", wrong, OPTIONS)[0] is cpu
    with pytest.raises(EngineError, match="failed its self-check"):
        select_engine("tensorrt", wrong, OPTIONS)


def test_a_graph_can_be_switched_off(world, bundle, photos):
    opened = load_engine(TensorRtEngine(), bundle, dataclasses.replace(OPTIONS, cuda_graph=False))
    run(opened, bundle, photos[0])
    opened.close()
    assert world.cuda.counts["cudaGraphLaunch"] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"gpu": dataclasses.replace(GPU, name="Other")},
        {"gpu": dataclasses.replace(GPU, capability="9.0")},
        {"gpu": dataclasses.replace(GPU, driver=13010)},
        {"gpu": dataclasses.replace(GPU, runtime=14000)},
        {"versions": {"tensorrt-cu13": "10.16.1.11"}},
        {"plan_options": PlanOptions(level=4)},
        {"plan_options": PlanOptions(workspace=1 << 30)},
        {"plan_options": PlanOptions(tf32=True)},
        {"onnx": "another graph"},
        {"shapes": (2, 2)},
        {"precision": "fp32"},
        {"engine": "tensorrt-rtx"},
    ],
    ids=lambda change: next(iter(change)) + " " + str(next(iter(change.values())))[:40],
)
def test_every_ingredient_is_in_the_key(world, bundle, change, monkeypatch):
    """Changed alone, each gives a new plan and a new build key."""

    def keys(**change):
        recipes = []

        def compile_chain(bundle, variants, options, *, info, facts, build):
            head = variants["egre"]
            if "shapes" in change:
                logits = next(spec for spec in head.outputs if spec.name == "logits")
                others = [spec for spec in head.outputs if spec is not logits]
                changed = logits.model_copy(update={"shape": change["shapes"]})
                head = head.model_copy(update={"outputs": (*others, changed)})
            recipes.append(
                Recipe(
                    change.get("engine", info.name),
                    info.version,
                    "label",
                    {"onnx": change.get("onnx", "graph"), "precision": change.get("precision", "fp16"), **facts(head)},
                    1,
                ).key
            )
            return CompiledChain({})

        monkeypatch.setattr(module, "compile_chain", compile_chain)
        world.gpu = change.get("gpu", GPU)
        world.versions = change.get("versions", {"tensorrt-cu13": "11.4.0.106"})
        engine = TensorRtEngine(plan_options=change.get("plan_options"))
        engine.compile(bundle, OPTIONS)
        return recipes[0], engine.describe(bundle, OPTIONS).build_key

    plan, build = keys()
    assert keys() == (plan, build)
    changed_plan, changed_build = keys(**change)
    assert changed_plan != plan
    if not {"onnx", "precision", "engine", "shapes"} & set(change):
        assert changed_build != build


class TestWhyNot:
    @pytest.mark.parametrize(
        ("engine", "package"), [(TensorRtEngine, "tensorrt-cu13>=10.16"), (TensorRtRtxEngine, "tensorrt-rtx>=1.7")]
    )
    def test_not_installed(self, world, bundle, engine, package):
        world.versions = {}
        reason = engine().why_not(bundle, OPTIONS)
        assert "not installed" in reason.problem
        assert reason.remedy.startswith(f"pip install '{package}' ")

    def test_too_old(self, world, bundle):
        world.versions = {"tensorrt": "10.9.0.34"}
        reason = TensorRtEngine().why_not(bundle, OPTIONS)
        assert "10.9.0.34 is too old, 10.16" in reason.problem
        assert reason.remedy.startswith("pip install 'tensorrt-cu13>=10.16' ")

    @pytest.mark.parametrize("version", ["10.16.1.11", "11.0.0.114", "11.4.0.106"])
    def test_both_majors_are_taken(self, world, bundle, version):
        world.versions = {"tensorrt-cu12": version}
        assert TensorRtEngine().why_not(bundle, OPTIONS) is None

    def test_float32_asked_for(self, world, bundle):
        reason = TensorRtEngine().why_not(bundle, dataclasses.replace(OPTIONS, precision="fp32"))
        assert "computes in fp16, not in fp32" in reason.problem
        assert "--precision" in reason.remedy

    def test_no_half_precision_graphs(self, world, embedded):
        reason = TensorRtEngine().why_not(open_bundle(embedded), OPTIONS)
        assert reason.problem.endswith("has no fp16 graphs for GPUs")
        assert reason.remedy == "build it with 'python export/build_engines.py --half'"

    def test_no_driver(self, world, bundle):
        world.current_gpu = no_gpu
        assert TensorRtEngine().why_not(bundle, OPTIONS).remedy == "install or update the NVIDIA driver"


def test_no_gpu_here_is_a_sentence():
    """The real binding on a machine without a driver."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    if int(runtime.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("there is a GPU")
    from lare2_rt.engines.cuda_runtime import current_gpu

    with pytest.raises(EngineError, match=r"driver|GPU"):
        current_gpu()


def test_a_broken_installation_is_a_sentence(world, bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"cannot be imported \(.*--force-reinstall"):
        load_engine(TensorRtEngine(), bundle, OPTIONS)


def test_a_plan_that_does_not_load_is_a_sentence(world, bundle):
    world.trt.fail = {"deserialize_cuda_engine"}
    with pytest.raises(EngineError, match="does not load the plan of vae_encoder: the plan was made for another GPU"):
        load_engine(TensorRtEngine(), bundle, OPTIONS)
    assert world.cuda.live() == 0


def test_only_batch_one(world, bundle):
    """Nobody has measured on a GPU yet whether rows are equal."""
    from lare2_rt.engines.selection import why_not

    assert "batch 1 only" in why_not(TensorRtEngine(), bundle, dataclasses.replace(OPTIONS, batch=4)).problem


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_command_says_what_is_missing_and_never_falls_back(photos, tiny, name):
    """On a machine without a GPU: one sentence, exit code 2, nothing scored."""
    if engine_named(name).why_not(open_bundle(tiny[1].path), OPTIONS) is None:
        pytest.skip("there is a GPU")
    for bundle in (tiny[1].path, None):
        arguments = ["--bundle", bundle] if bundle else []
        run = call("infer", photos[0], "--engine", name, "--format", "json", *arguments)
        assert run.returncode == 2
        assert run.stdout == ""
        assert len(run.stderr.splitlines()) == 1
        assert run.stderr.startswith(f"lare2-rt: {name} cannot be used: ")


OTHER_PLANS = "the plans of this bundle were built by tensorrt 11.4.0.106 for Imaginary 9000, and here are {}; go back"


def no_gpu():
    raise EngineError("CUDA failed in cudaGetDeviceCount (35)", remedy="install or update the NVIDIA driver")


def test_infer_refuses_in_one_sentence(world, bundle, photos, capsys, monkeypatch):
    """No driver, no TensorRT, 10 beside plans of 11, another GPU: exit code 2, nothing scored, no other engine."""
    from lare2_rt.cli import main

    def infer():
        arguments = ["infer", str(photos[0]), "--engine", "tensorrt", "--bundle", str(bundle.path), "--format", "json"]
        monkeypatch.setattr(sys, "argv", ["lare2-rt", *arguments])
        with pytest.raises(SystemExit) as leaving:
            main()
        return leaving.value.code, capsys.readouterr()

    engine = TensorRtEngine()
    engine.compile(bundle, OPTIONS)[0].close()
    usual, built = dict(vars(world)), list(world.built)
    for change, told in (
        ({"current_gpu": no_gpu}, "CUDA failed in cudaGetDeviceCount (35); install or update the NVIDIA driver"),
        ({"versions": {}}, "tensorrt-cu13 is not installed; pip install 'tensorrt-cu13>=10.16' "),
        ({"versions": {"tensorrt-cu13": "10.16.1.11"}}, OTHER_PLANS.format("10.16.1.11 and Imaginary 9000")),
        ({"gpu": dataclasses.replace(GPU, name="Other")}, OTHER_PLANS.format("11.4.0.106 and Other")),
    ):
        vars(world).update(usual | change)
        code, said = infer()
        assert (code, said.out) == (2, "")
        assert said.err.startswith(f"lare2-rt: tensorrt cannot be used: {told}")
        assert said.err.count("\n") == 1
        assert world.built == built
    vars(world).update(usual)
    assert engine.why_not(bundle, OPTIONS) is None  # each sentence was the answer to its own change


@pytest.mark.gpu
def test_on_a_gpu_two_images_through_one_graph(tiny, photos):
    """The real thing, against ONNX Runtime on the same bundle."""
    bundle = open_bundle(tiny[1].path)
    engine = engine_named("tensorrt")
    reason = engine.why_not(bundle, OPTIONS)
    if reason is not None:
        pytest.skip(str(reason))
    report = json.loads((tiny[1].path / "parity.json").read_text())
    assert report["half"]["passed"]
    opened = load_engine(engine, bundle, OPTIONS)
    reference = load_engine(engine_named("onnxruntime"), bundle, OPTIONS)
    for photo in (photos[0], photos[1], photos[0]):
        ours, theirs = (run(one, bundle, photo) for one in (opened, reference))
        assert np.linalg.norm(ours.lare - theirs.lare) <= 1e-2 * np.linalg.norm(theirs.lare)
    opened.close()
    reference.close()
