"""Building plans: every failure of TensorRT's builder read, and real plans made by TensorRT-RTX, which needs no GPU."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest

from lare2_rt.bundle.manifest import COMPONENTS
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.engines.contract import EngineOptions
from lare2_rt.engines.tensorrt.engine import TensorRtRtxEngine
from lare2_rt.engines.tensorrt.plan import Messages, PlanOptions, build_plan, make_logger
from lare2_rt.errors import EngineError
from tests.conftest import ROOT

HERE = PlanOptions(target="8.9", level=0)


class FakeBuilder:
    """A module ``tensorrt`` whose builder fails where asked to."""

    class ILogger:
        Severity = SimpleNamespace(ERROR="error", INTERNAL_ERROR="internal", WARNING="warning")

    class IProgressMonitor:
        pass

    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=3)
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    BuilderFlag = SimpleNamespace(TF32="tf32")
    LayerType = SimpleNamespace(CONVOLUTION="convolution", SOFTMAX="softmax")
    DataType = SimpleNamespace(HALF="half", FLOAT="float")

    def __init__(self, fail=()):
        self.fail, self.flags, self.cleared, self.caches, self.limits = set(fail), None, [], [], {}

    def Builder(self, logger):  # noqa: N802
        self.logger = logger
        if "builder" in self.fail:
            logger.log("error", "CUDA initialization failure with error: 35")
            raise TypeError("factory function returned nullptr")
        return self

    def create_network(self, flags):
        self.flags = flags
        dtypes = {"softmax": "float", "convolution": "float" if "half" in self.fail else "half"}
        layers = [
            SimpleNamespace(type=kind, name=f"a/{kind}", get_output=lambda index, d=dtype: SimpleNamespace(dtype=d))
            for kind, dtype in dtypes.items()
        ]
        return SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__)

    def OnnxParser(self, network, logger):  # noqa: N802
        return self

    def parse_from_file(self, path):
        assert isinstance(path, str)
        return "parse" not in self.fail

    num_errors = 1

    def get_error(self, index):
        return SimpleNamespace(node_name=lambda: "a/Conv", node_operator=lambda: "Conv", desc=lambda: "type\nmismatch")

    def create_builder_config(self):
        return self

    def set_memory_pool_limit(self, pool, size):
        self.limits[pool] = size

    def clear_flag(self, flag):
        self.cleared.append(flag)

    def create_timing_cache(self, content):
        self.caches.append(content)
        return content

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        return not ("cache" in self.fail and cache) and "no cache" not in self.fail

    def get_timing_cache(self):
        return SimpleNamespace(serialize=lambda: b"timings")

    def build_serialized_network(self, network, config):
        self.progress_monitor.phase_start("tactics", None, 7)
        assert self.progress_monitor.step_complete("tactics", 0) is True
        self.progress_monitor.phase_finish("tactics")
        if "build" in self.fail:
            self.logger.log("warning", "nothing of interest")
            self.logger.log("error", "out of memory")
            return None
        return b"plan"


def build(trt, tmp_path, *, timings=b"", **options):
    told = []
    result = build_plan(trt, tmp_path / "g.onnx", PlanOptions(**options), progress=told.append, timings=timings)
    return result, told


def test_a_plan_is_strongly_typed_without_tf32(tmp_path):
    trt = FakeBuilder()
    assert build(trt, tmp_path, workspace=1 << 30, level=4)[0] == (b"plan", b"timings")
    assert trt.flags == 1 << 3
    assert trt.cleared == ["tf32"]
    assert trt.limits == {"workspace": 1 << 30}
    assert (trt.builder_optimization_level, trt.max_aux_streams) == (4, 0)
    assert trt.caches == [b""]


def test_tf32_and_timings_are_options(tmp_path):
    trt = FakeBuilder()
    build(trt, tmp_path, tf32=True, timings=b"known")
    assert trt.cleared == []
    assert trt.caches == [b"known"]


def test_a_timing_cache_of_another_gpu_is_begun_anew(tmp_path):
    trt = FakeBuilder(["cache"])
    result, told = build(trt, tmp_path, timings=b"of another")
    assert result[0] == b"plan"
    assert trt.caches == [b"of another", b""]
    assert "begun anew" in told[0]


@pytest.mark.parametrize(
    ("fail", "sentence"),
    [
        ("builder", "cannot start .CUDA initialization failure with error: 35.*driver"),
        ("parse", r"does not take g.onnx: a/Conv \(Conv\): type mismatch"),
        ("half", r"g.onnx computes in float32 where half precision is asked for \(a/convolution\); build the bundle"),
        ("no cache", "refuses an empty timing cache"),
        ("build", "cannot build g.onnx: out of memory; free GPU memory"),
    ],
)
def test_every_failure_is_read(tmp_path, fail, sentence):
    with pytest.raises(EngineError, match=sentence):
        build(FakeBuilder([fail]), tmp_path)


def test_progress_tells_phase_and_time(tmp_path, monkeypatch):
    from lare2_rt.engines.tensorrt import plan as module

    monkeypatch.setattr(module, "_PROGRESS_SECONDS", 0.0)
    _, told = build(FakeBuilder(), tmp_path)
    assert told == ["g.onnx: tactics, step 1 of 7, 0 s"]


class TestRealParser:
    """TensorRT-RTX has TensorRT's parser and builder and works without a GPU; its plans run nowhere here."""

    @pytest.fixture
    def trt(self):
        return pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")

    @pytest.fixture
    def graphs(self, tiny):
        bundle = open_bundle(tiny[1].path)
        return {
            name: bundle.graph_path(bundle.variant(name, batch=1, precision="fp16", profile="native"))
            for name in COMPONENTS
        }

    def network(self, trt, path):
        messages = Messages()
        logger = make_logger(trt, messages)
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        assert parser.parse_from_file(str(path)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
        return builder, network, parser, logger

    @pytest.mark.parametrize("component", COMPONENTS)
    def test_plan_is_built(self, trt, graphs, component):
        plan, _ = build_plan(trt, graphs[component], HERE, progress=lambda line: None)
        assert len(plan) > 10_000

    @pytest.mark.parametrize("component", COMPONENTS)
    def test_layers_are_half(self, trt, graphs, component):
        """What the parser made of the graph: arithmetic in half, softmax in float, no shape arithmetic."""
        _, network, *alive = self.network(trt, graphs[component])
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        for layer in layers:
            produced = layer.get_output(0).dtype
            if layer.type == trt.LayerType.SOFTMAX:
                assert produced == trt.DataType.FLOAT, layer.name
            around = layer.name.startswith(("pool/", "graph/"))
            if layer.type in (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY) and not around:
                assert produced == trt.DataType.HALF, layer.name
            if layer.type == trt.LayerType.NORMALIZATION:
                assert produced == trt.DataType.HALF, layer.name
            assert layer.type != trt.LayerType.SHAPE, layer.name
        assert alive

    def test_every_group_norm_is_one_native_layer(self, trt, graphs, tiny):
        import torch

        _, network, *alive = self.network(trt, graphs["unet_step"])
        kinds = Counter()
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            if layer.type == trt.LayerType.NORMALIZATION:
                layer.__class__ = trt.INormalizationLayer
                kinds["group" if layer.num_groups > 1 else "layer"] += 1
                assert layer.is_v2, layer.name
        unet = tiny[0].unet()
        wanted = {
            "group": sum(isinstance(m, torch.nn.GroupNorm) for m in unet.modules()),
            "layer": sum(isinstance(m, torch.nn.LayerNorm) for m in unet.modules()),
        }
        assert kinds == wanted
        assert alive

    def test_a_graph_with_mixed_types_is_refused(self, trt, graphs, tmp_path):
        """Strong typing is on: the parser inserts no cast where a convolution's kernel is of another type."""
        import onnx
        from onnx import TensorProto, helper

        nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 1, 8, 8])]
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, 1, 6, 6])]
        kernel = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 3, 3], [1.0] * 9)
        model = helper.make_model(
            helper.make_graph(nodes, "g", inputs, outputs, [kernel]), opset_imports=[helper.make_opsetid("", 21)]
        )
        onnx.save(model, tmp_path / "mixed.onnx")
        with pytest.raises(EngineError, match=r"does not take mixed.onnx: .*same type"):
            build_plan(trt, tmp_path / "mixed.onnx", HERE, progress=lambda line: None)

    def test_a_graph_in_single_precision_is_refused(self, trt, tiny):
        """The very graphs for CPUs, given where half was asked for."""
        bundle = open_bundle(tiny[1].path)
        path = bundle.graph_path(bundle.variant("egre", batch=1, precision="fp32", profile="portable"))
        with pytest.raises(EngineError, match="computes in float32 where half precision is asked for"):
            build_plan(trt, path, HERE, progress=lambda line: None)

    def test_build_process(self, trt, tiny, tmp_path):
        """As the engine starts it: in a process of its own."""
        bundle, target = open_bundle(tiny[1].path), tmp_path / "engine.plan"
        variant = bundle.variant("egre", batch=1, precision="fp16", profile="native")
        engine = TensorRtRtxEngine(plan_options=HERE)

        def build(target):
            engine._build(bundle, variant, target, tmp_path / "timings/t.cache", EngineOptions(threads=1))

        build(target)
        assert target.stat().st_size > 10_000
        with pytest.raises(IsADirectoryError):
            build(tmp_path)
        engine.module = "no_such_library"
        with pytest.raises(EngineError, match=r"with tensorrt-rtx: no_such_library failed: ModuleNotFoundError"):
            build(target)


def test_parse_report(tiny, tmp_path, capsys):
    """The benchmark that counts layers agrees with the network, and says what it cannot use."""
    import torch

    from benchmarks import tensorrt_parse

    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    sources, bundle = tiny
    assert tensorrt_parse.main(["--bundle", str(bundle.path), "--out", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert json.loads(capsys.readouterr().out) == report
    unet = report["components"]["unet_step"]
    norms = Counter(type(m).__name__ for m in sources.unet().modules() if "Norm" in type(m).__name__)
    assert unet["norms"] == {"group": norms["GroupNorm"], "layer": norms["LayerNorm"]}
    assert unet["precision"]["CONVOLUTION"] == {
        "HALF": sum(isinstance(m, torch.nn.Conv2d) for m in sources.unet().modules())
    }
    assert [entry["errors"] for entry in report["components"].values()] == [[]] * 4
    assert tensorrt_parse.main(["--bundle", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("tensorrt_parse: ")


def test_committed_report_at_full_width():
    """What docs/gpu.md says of SD 1.5's graphs: as many norms as diffusers' UNet of that geometry has."""
    report = json.loads((ROOT / "benchmarks/results/tensorrt-parse-synthetic-sd15.json").read_text())
    assert report["passed"]
    assert report["components"]["unet_step"]["norms"] == {"group": 61, "layer": 48}
    for entry in report["components"].values():
        assert entry["accepted"]
        assert entry["shape_layers"] == 0
        assert set(entry["precision"]["CONVOLUTION"]) == {"HALF"}
