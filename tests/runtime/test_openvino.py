"""OpenVINO: float32 and nothing else, the threads asked for, weights left in the bundle, and silence on the network."""

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest

from lare2_rt import Detector, EngineError
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.engines import registry
from lare2_rt.engines.cache.cache import CompiledCache
from lare2_rt.engines.contract import EngineOptions
from lare2_rt.engines.openvino import engine as adapter, library as openvino_library
from lare2_rt.engines.openvino.engine import OpenVinoEngine
from lare2_rt.engines.openvino.library import component_of_model, import_openvino
from lare2_rt.engines.selection import load_engine
from lare2_rt.host.machine import processors
from tests.fakes.engine import need_engine
from tests.helpers.processes import environment

pytestmark = pytest.mark.usefixtures("every_core")

ENGINE = OpenVinoEngine()


@pytest.fixture(scope="module", autouse=True)
def installed():
    need_engine("openvino")


@pytest.fixture(scope="module")
def bundle(embedded):
    return open_bundle(embedded)


@pytest.fixture
def models(monkeypatch):
    """The compiled models that are loaded from now on."""
    loaded, real = [], OpenVinoEngine.model

    def model(*arguments):
        loaded.append(real(*arguments))
        return loaded[-1]

    monkeypatch.setattr(OpenVinoEngine, "model", model)
    return loaded


@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_asked_for_is_what_runs(bundle, models, threads):
    """Read back from the library, so that it holds wherever the processors are."""
    lines = []
    running = load_engine(ENGINE, bundle, EngineOptions(threads=threads, batch=1, notify=lines.append))
    effective = min(threads, processors())
    assert len(models) == 4
    for model in models:
        assert model.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
        assert model.get_property("INFERENCE_NUM_THREADS") == effective
        assert model.get_property("NUM_STREAMS") == 1
        assert str(model.get_property("PERFORMANCE_HINT")) == "LATENCY"
        assert model.get_property("EXECUTION_DEVICES") == ["CPU"]
        for node in model.get_runtime_model().get_ops():
            precision = node.get_rt_info()["runtimePrecision"].astype(str)
            assert precision in ("f32", "u8", "i32", "i64", "boolean", "dynamic", "undefined"), node
    assert running.info.threads == effective
    assert any("threads asked for" in line for line in lines) == (effective != threads)
    running.close()


def test_more_threads_than_processors_are_told(bundle):
    lines = []
    running = load_engine(ENGINE, bundle, EngineOptions(threads=processors() + 3, batch=1, notify=lines.append))
    assert running.info.threads == processors()
    assert f"openvino uses {processors()} of the {processors() + 3} threads asked for" in lines[-1]
    running.close()


def test_another_precision_is_refused(bundle, monkeypatch):
    """In the options, and where the library would choose it by itself in spite of the setting."""
    assert "--precision" in ENGINE.why_not(bundle, EngineOptions(threads=1, precision="fp16")).remedy
    kind, half = import_openvino().CompiledModel, import_openvino().Type.bf16
    real = kind.get_property
    monkeypatch.setattr(
        kind, "get_property", lambda model, name: half if name == "INFERENCE_PRECISION_HINT" else real(model, name)
    )
    with pytest.raises(EngineError, match=r"computes vae_encoder\S* in bf16 instead of f32; choose another --engine"):
        load_engine(ENGINE, bundle, EngineOptions(threads=1, batch=1))


def test_weights_stay_in_the_bundle(bundle):
    """A cached UNet is smaller than its weights."""
    load_engine(ENGINE, bundle, EngineOptions(threads=1, batch=1)).close()
    entries = [entry for entry in CompiledCache().entries() if (entry.engine, entry.label[-1]) == ("openvino", "1")]
    sizes = {entry.label.split()[1]: entry.size for entry in entries}
    weights = bundle.manifest.files["unet_step.fp32.portable.data"].size
    assert sizes["unet_step"] < weights / 3
    assert set(sizes) == {"vae_encoder", "unet_step", "clip_backbone", "egre"}


def test_weights_inside_the_graph(bundle, tmp_path):
    """A graph without a data file is compiled with its weights, and gives the same."""
    variant = bundle.manifest.components["egre"][0]
    (tmp_path / "whole").mkdir()
    for name in (variant.graph, *variant.files):  # copies: onnx reads no weights from a file that has other links
        shutil.copyfile(bundle.path / name, tmp_path / "whole" / name)
    model = onnx.load(tmp_path / "whole" / variant.graph)
    (tmp_path / "bundle").mkdir()
    onnx.save(model, tmp_path / "bundle" / variant.graph)
    inner = replace(bundle, path=tmp_path / "bundle")
    whole = variant.model_copy(update={"files": ()})
    core = import_openvino().Core()
    generator = np.random.default_rng(0)
    inputs = {spec.name: generator.standard_normal(spec.shape, np.float32) for spec in variant.inputs}
    results = []
    for source, chosen in ((bundle, variant), (inner, whole)):
        folder = tmp_path / f"entry{len(results)}"
        folder.mkdir()
        ENGINE.make(source, chosen, folder)
        entry = type("Entry", (), {"folder": folder})
        loaded = ENGINE.model(core, source, chosen, entry, 1)
        results.append(component_of_model(chosen, loaded)(inputs))
    for name in results[0]:
        assert np.array_equal(results[0][name], results[1][name])
    sizes = [(tmp_path / f"entry{i}" / "model.blob").stat().st_size for i in range(2)]
    assert sizes[1] > sizes[0]


def test_a_cached_model_that_cannot_be_loaded_is_removed(bundle, tmp_path, monkeypatch):
    """For instance one that another build of the same version wrote."""
    monkeypatch.setattr(
        OpenVinoEngine, "make", lambda self, bundle, variant, folder: (folder / "model.blob").write_bytes(b"no model")
    )
    options = EngineOptions(threads=1, batch=1, cache=tmp_path)
    with pytest.raises(EngineError, match=r"cannot load what it made of vae_encoder\S* \(.*removed from the cache"):
        load_engine(ENGINE, bundle, options)
    assert "vae_encoder" not in {entry.label.split()[1] for entry in CompiledCache(tmp_path).entries()}


def test_a_graph_that_does_not_compile(bundle, bundle_copy):
    """The compiler's own words, in one sentence."""
    variant = bundle.manifest.components["egre"][0]
    (bundle_copy / variant.graph).write_bytes(b"garbage")
    with pytest.raises(
        EngineError, match=r"cannot compile egre\S*\.onnx with openvino: .+; update openvino, or"
    ) as told:
        ENGINE.make(replace(bundle, path=bundle_copy), variant, bundle_copy)
    assert "\n" not in str(told.value)
    assert "Exception from" not in str(told.value)


HOOK = """
import os, socket, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("openvino", "openvino_telemetry", "torch"):
            with open(os.environ["WATCHED"], "a") as log:
                log.write(name + "\\n")

def refuse(*arguments, **options):
    with open(os.environ["WATCHED"], "a") as log:
        log.write("network\\n")
    raise OSError("no network in this test")

socket.socket.connect = socket.getaddrinfo = refuse
sys.meta_path.insert(0, Watch())
"""


def test_nothing_is_reported(embedded, tmp_path):
    """Importing OpenVINO as it is would report that and leave an identity in the home folder."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook/sitecustomize.py").write_text(HOOK)
    watched = environment(tmp_path / "hook", HOME=home, WATCHED=tmp_path / "log", LARE2_CACHE=tmp_path / "cache")
    code = (
        "import sys; from lare2_rt.bundle.opening import open_bundle\n"
        "from lare2_rt.engines.contract import EngineOptions\n"
        "from lare2_rt.engines.openvino.engine import OpenVinoEngine\n"
        "from lare2_rt.engines.selection import load_engine\n"
        "load_engine(OpenVinoEngine(), open_bundle(sys.argv[1]), EngineOptions(threads=1)).close()"
    )
    subprocess.run([sys.executable, "-c", code, embedded], env=watched, check=True)
    seen = (tmp_path / "log").read_text().split()
    assert seen.count("openvino") == 5  # this process and four compilers; or the hook saw nothing at all
    assert {name for name in seen if not name.startswith("openvino.")} == {"openvino"}
    assert list(home.iterdir()) == []


def test_the_users_own_telemetry_module_is_left_alone():
    import_openvino()
    spec = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = marker = type(sys)("marker")
    try:
        import_openvino()
        assert sys.modules["openvino_telemetry"] is marker
    finally:
        if spec is None:
            del sys.modules["openvino_telemetry"]
        else:
            sys.modules["openvino_telemetry"] = spec


def test_broken_installation(embedded, monkeypatch):
    # Another test may have imported it.
    monkeypatch.setattr(openvino_library, "_kept_core", openvino_library._kept_core.__wrapped__)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match=r"installed but cannot be imported .*pip install --force-reinstall openvino"):
        Detector.load(embedded, engine="openvino", threads=1)


def test_not_installed(embedded, monkeypatch):
    monkeypatch.setattr(registry, "installed_version", lambda name: None)
    with pytest.raises(EngineError, match="openvino is not installed") as told:
        Detector.load(embedded, engine="openvino")
    assert told.value.remedy == "pip install 'openvino>=2025.4'"


def test_a_compiler_that_is_killed(bundle, tmp_path, monkeypatch):
    """As the system does when memory runs out."""
    (tmp_path / "killed.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setenv("PYTHONPATH", environment(tmp_path)["PYTHONPATH"])
    real = adapter.run_script
    monkeypatch.setattr(adapter, "run_script", lambda module, *rest, **options: real("killed", *rest, **options))
    with pytest.raises(EngineError, match=r"stopped by SIGKILL, .* more memory than there is; update openvino"):
        load_engine(ENGINE, bundle, EngineOptions(threads=1, batch=1, cache=tmp_path / "cache"))
    assert list((tmp_path / "cache/compiled").iterdir()) == []
    shutil.rmtree(tmp_path / "cache")


def test_a_signal_after_closing_is_harmless(embedded, tmp_path):
    """The plugin's own stack for signal handlers must not go while a thread still has it."""
    code = """
import faulthandler, gc, signal, sys, threading
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.engines.contract import EngineOptions
from lare2_rt.engines.openvino.engine import OpenVinoEngine
from lare2_rt.engines.selection import load_engine

faulthandler.enable()  # has a stack too, which is too small for the plugin
bundle = open_bundle(sys.argv[1])
opened = [load_engine(OpenVinoEngine(), bundle, EngineOptions(threads=1))]


def close():
    opened.pop().close()
    gc.collect()


thread = threading.Thread(target=close)
thread.start()
thread.join()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    run = subprocess.run([sys.executable, "-c", code, embedded], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "interrupted\n"), run.stderr
