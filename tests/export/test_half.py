"""Half precision: typed by construction, measured with every value rounded, and refused where it overflows."""

import dataclasses
import json

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lare2_export.build.options import BuildOptions
from lare2_export.build.plan import make_plan, plan_geometry
from lare2_export.build.staging import BuildError
from lare2_export.components import COMPONENTS
from lare2_export.components.spec import random_pixels
from lare2_export.graph.half import HALF, LARGEST, SINGLE, check_half, open_rounded, round_values, soften
from lare2_export.graph.prepare import prepare
from lare2_export.parity.tolerances import what_failed
from lare2_ref.sources import default_model_folder, open_model_folder
from lare2_rt.bundle.manifest import COMPONENTS as NAMES
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.engines.difference import difference

pytestmark = pytest.mark.usefixtures("every_core")


@pytest.fixture(scope="module")
def graphs(tiny):
    """Component name -> its half-precision graph."""
    bundle = tiny[1]
    paths = {n: bundle.graph_path(bundle.variant(n, batch=1, precision="fp16", profile="native")) for n in NAMES}
    return {name: ir.load(path) for name, path in paths.items()}


def kinds(model):
    return [node.op_type for node in model.graph]


def test_graphs_are_typed_by_construction(graphs):
    for name, model in graphs.items():
        assert model.opset_imports[""] >= 21
        check_half(model, name)
        assert {value.dtype for value in model.graph.inputs} <= {SINGLE, ir.DataType.UINT8}
        assert {value.dtype for value in model.graph.outputs} == {SINGLE}
        arithmetic = [n for n in model.graph if n.op_type in ("Conv", "MatMul", "Gemm") and n.outputs[0].dtype == HALF]
        assert len(arithmetic) >= 10, name
        weights = [v for v in model.graph.initializers.values() if v.const_value.size > 1000]
        assert weights
        assert {v.dtype for v in weights} == {HALF}, name


def test_norms_are_single_layers(graphs, tiny):
    """One GroupNormalization for every GroupNorm, nothing decomposed, no shape arithmetic."""
    sources, _ = tiny
    for name, network in (("vae_encoder", sources.vae().encoder), ("unet_step", sources.unet())):
        wanted = sum(isinstance(module, torch.nn.GroupNorm) for module in network.modules())
        assert wanted > 10
        assert kinds(graphs[name]).count("GroupNormalization") == wanted
        assert not {"InstanceNormalization", "Shape", "ConstantOfShape"} & set(kinds(graphs[name]))


def test_what_stays_in_float32(graphs):
    """Softmax everywhere, the posterior's standard deviation, and the error and its mean over the draws."""
    for model in graphs.values():
        for node in model.graph:
            if node.op_type in ("Softmax", "Exp", "Pow"):
                assert node.outputs[0].dtype == SINGLE, node.name
    error = next(node for node in graphs["unet_step"].graph if node.name == "graph/Pow")
    assert {user.op_type for user, _ in error.outputs[0].uses()} == {"ReduceMean"}
    assert "Exp" in kinds(graphs["vae_encoder"])


def planted(model, kind):
    """A copy of a graph with one mistake."""
    model = ir.from_proto(ir.to_proto(model))
    nodes = {node.op_type: node for node in model.graph}
    if kind == "softmax in half":
        nodes["Softmax"].outputs[0].dtype = HALF
    elif kind == "convolution in float32":
        nodes["Conv"].outputs[0].dtype = SINGLE
    elif kind == "mixed types":
        nodes["Conv"].inputs[1].dtype = SINGLE
    elif kind == "half at the boundary":
        model.graph.outputs[0].dtype = HALF
    elif kind == "decomposed norm":
        nodes["GroupNormalization"].op_type = "InstanceNormalization"
    return model


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("softmax in half", "(Softmax)"),
        ("convolution in float32", "(Conv)"),
        ("mixed types", "(Conv)"),
        ("half at the boundary", "latent"),
        ("decomposed norm", "(InstanceNormalization)"),
    ],
)
def test_a_planted_mistake_is_refused(graphs, kind, where):
    with pytest.raises(BuildError) as refused:
        check_half(planted(graphs["vae_encoder"], kind), "vae_encoder")
    assert where in refused.value.problem
    assert refused.value.remedy.startswith("build with --no-half")


def small_graph(weight):
    """y = relu(x · w) in half precision between casts."""
    half = TensorProto.FLOAT16
    nodes = [
        helper.make_node("Cast", ["x"], ["x16"], to=half, name="in"),
        helper.make_node("MatMul", ["x16", "w"], ["p"], name="product"),
        helper.make_node("Softmax", ["p"], ["s"], name="softmax"),
        helper.make_node("Mul", ["p", "s"], ["m"], name="gate"),
        helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT, name="out"),
    ]
    shape = [2, weight.shape[1]]
    types = {"x16": [2, len(weight)], "p": shape, "s": shape, "m": shape}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, len(weight)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
        value_info=[helper.make_tensor_value_info(name, half, size) for name, size in types.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def run_rounded(proto, folder, x):
    model = ir.from_proto(proto)
    soften(model)
    ir.save(model, folder / "g.onnx")
    return open_rounded(folder / "g.onnx", threads=1).run({"x": x})


def test_every_value_is_rounded_as_half_would_be(tmp_path):
    """Against NumPy, which rounds in the same places."""
    generator = np.random.default_rng(0)
    x, weight = generator.normal(size=(2, 8)).astype(np.float32), generator.normal(size=(8, 5)).astype(np.float16)
    outputs, magnitudes = run_rounded(small_graph(weight), tmp_path, x)
    half = lambda a: a.astype(np.float16).astype(np.float32)  # noqa: E731
    product = half(x) @ weight.astype(np.float32)
    rounded = half(product)
    softmax = np.exp(rounded - rounded.max(1, keepdims=True))
    softmax = half(softmax / softmax.sum(1, keepdims=True))
    np.testing.assert_allclose(outputs["y"], half(rounded * softmax), rtol=2e-3, atol=1e-6)
    assert set(np.unique(outputs["y"] - half(outputs["y"]))) == {0.0}
    assert magnitudes[0] == pytest.approx(np.abs(product).max(), rel=1e-6)
    assert not np.array_equal(outputs["y"], rounded * (softmax))  # rounding does something here


def test_overflow_becomes_infinity_and_is_found(tmp_path):
    weight = np.full((8, 5), 3e4, np.float16)
    proto = small_graph(weight)
    x = np.ones((2, 8), np.float32)
    outputs, magnitudes = run_rounded(proto, tmp_path, x)
    assert magnitudes[0] == 2.4e5
    assert not np.isfinite(outputs["y"]).all()


def test_build_measures_half(tiny):
    report = json.loads((tiny[1].path / "parity.json").read_text())["half"]
    assert report["passed"]
    assert set(report["components"]) == set(NAMES)
    for component in COMPONENTS:
        outputs = report["components"][component.name]["outputs"]
        assert set(outputs) == {*component.output_names, *component.probes}
        for entry in outputs.values():
            # Rounding was really done (a float32 run is below 1e-5), and is what half precision costs.
            assert 5e-5 < entry["worst_relative_l2"] <= entry["tolerance"] <= 2e-2
    assert report["end_to_end"]["lare"]["worst_relative_l2"] <= 1e-2
    for name, ranges in report["ranges"].items():
        assert len(ranges) > 20, name
        assert max(ranges.values()) == report["largest"][name]["magnitude"] < LARGEST


def test_every_half_value_is_in_the_range_report(tiny, graphs):
    ranges = json.loads((tiny[1].path / "parity.json").read_text())["half"]["ranges"]
    for name, model in graphs.items():
        expected = {
            node.name for node in model.graph if node.op_type != "Cast" and any(v.dtype == HALF for v in node.outputs)
        }
        assert {layer.split("[")[0] for layer in ranges[name]} == expected


@torch.no_grad()
@pytest.mark.parametrize(
    "component",
    [pytest.param(c, marks=[pytest.mark.slow] if c.name == "unet_step" else []) for c in COMPONENTS],
    ids=lambda component: component.name,
)
def test_true_half_agrees_with_rounding(component, tiny):
    """torch's own half-precision kernels on the same module: the rounding run predicts how far they land."""
    sources, bundle = tiny
    geometry = plan_geometry(sources, BuildOptions())
    inputs = component.example_inputs(geometry, 1)
    names = [*component.output_names, *component.probes]

    def run(*, half):
        module = component.build(sources, geometry)
        prepare(module, profile="native")
        if half:
            module.to_half()
        outputs = module(*inputs)
        return dict(zip(names, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))

    expected, true = run(half=False), run(half=True)
    path = bundle.graph_path(bundle.variant(component.name, batch=1, precision="fp16", profile="native"))
    arrays = {name: tensor.numpy() for name, tensor in zip(component.input_names, inputs, strict=True)}
    rounded, _ = open_rounded(path, probes=component.probes, threads=2).run(arrays)
    for name in names:
        assert true[name].dtype == torch.float32
        distance = difference(true[name].numpy(), expected[name].numpy()).relative_l2
        predicted = difference(rounded[name], expected[name].numpy()).relative_l2
        assert distance <= component.half_tolerance[name]
        assert predicted / 2 < distance < predicted * 2, (name, distance, predicted)


def test_rounding_leaves_float32_graphs_alone(tiny):
    bundle = tiny[1]
    model = ir.load(bundle.graph_path(bundle.variant("egre", batch=1, precision="fp32", profile="portable")))
    before = len(model.graph)
    assert round_values(model) == ()
    assert len(model.graph) == before


def test_overflow_refuses_the_build_with_the_layer():
    entry = {"layer": "encoder.mid_block/Add", "magnitude": 70000.0}
    half = {"passed": False, "largest": {"vae_encoder": entry, "egre": {"layer": "x", "magnitude": 1.0}}}
    problem, remedy = what_failed({"half": half})
    assert problem == "half precision overflows in vae_encoder at encoder.mid_block/Add (7e+04 over 65504)"
    assert remedy == "build with --no-half"


def test_half_is_the_default_of_trained_weights_only():
    sources = open_model_folder(default_model_folder())
    assert make_plan(sources, BuildOptions()).precisions == ("fp32",)
    assert make_plan(sources, BuildOptions(half=True)).precisions == ("fp32", "fp16")
    trained = dataclasses.replace(sources, calibration="uncalibrated", synthetic=False, demonstration=False)
    assert make_plan(trained, BuildOptions()).precisions == ("fp32", "fp16")
    assert make_plan(trained, BuildOptions(half=False)).precisions == ("fp32",)


def test_precisions_share_no_key_and_no_weights(tiny):
    manifest = open_bundle(tiny[1].path).manifest
    for variants in manifest.components.values():
        assert [(v.precision, v.profile, v.opset) for v in variants] == [
            ("fp32", "portable", 20),
            ("fp16", "native", 21),
        ]
        assert len({v.component_key for v in variants}) == 2
        single, half = (manifest.files[v.files[0]].size for v in variants)
        assert 0.49 < half / single < 0.53
    assert random_pixels(1, 4).shape == (1, 4, 4, 3)
