"""Exported graphs: faithful to the reference, clean, counted, and the same wherever they are built."""

import dataclasses
import json
import re
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from lare2_export.build.bundle import build_bundle
from lare2_export.build.options import BuildOptions
from lare2_export.build.plan import make_plan, plan_geometry
from lare2_export.build.staging import BuildError, Staging
from lare2_export.components import COMPONENTS
from lare2_export.components.egre import EGRE
from lare2_export.components.unet_step import UNET_STEP
from lare2_export.graph.fold import fold_unet
from lare2_export.graph.onnx_export import KEY_PROPERTY, export_graph, strip
from lare2_export.graph.prepare import prepare
from lare2_export.parity.tolerances import logit_gap, what_failed, worst_component
from lare2_ref.sources import default_model_folder, open_model_folder
from lare2_rt.bundle.manifest import COMPONENTS as NAMES
from lare2_rt.bundle.noise import Noise
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.engines.contract import EngineOptions
from lare2_rt.engines.difference import difference
from lare2_rt.engines.selection import open_engine
from lare2_rt.pixels.policy import Preprocessing
from lare2_rt.pixels.preprocess import preprocess
from tests.helpers.tiny import GOLDEN, golden_noise, tiny_unet, write_tiny

LIMITS = {
    **dict.fromkeys(("latent", "noise_prediction", "embedding", "layer3", "logits", "attention"), 1e-5),
    "lare": 3e-5,
}


def check_parity(path):
    report = json.loads((path / "parity.json").read_text())
    assert report["passed"]
    assert set(report["components"]) == set(NAMES)
    seen = {name: entry for part in report["components"].values() for name, entry in part["outputs"].items()}
    assert set(seen) == set(LIMITS)
    for name, limit in LIMITS.items():
        assert seen[name]["worst_relative_l2"] <= seen[name]["tolerance"] <= limit, name
        assert seen[name]["not_finite"] == 0
    assert report["end_to_end"]["probability"]["max_difference"] <= 1e-5
    assert 0 < report["end_to_end"]["logit_gap"]["standard_deviations"] <= 1e-3
    return report


@pytest.mark.slow
def test_mini_is_faithful(built_mini):
    report = check_parity(built_mini)
    assert report["same_bits_as_batch_1"] == {"4": True}


def test_tiny_pipeline_is_faithful(tiny):
    check_parity(tiny[1].path)


def golden_pixels(prediction_type):
    golden = np.load(GOLDEN / f"official_lare_{prediction_type}.npz")
    return preprocess(golden["image"], Preprocessing()), golden["lare"]


def test_tiny_export_gives_the_official_lare(tiny):
    """The exported chain on the golden picture and noise, against the official script's map."""
    bundle = open_bundle(tiny[1].path)
    options = EngineOptions(threads=1, batch=1)
    pixels, expected = golden_pixels("epsilon")
    opened, _ = open_engine("onnxruntime", bundle, options)
    output = opened.run(pixels.image[None], pixels.crop[None], noise=Noise(*golden_noise()))
    opened.close()
    assert difference(output.lare[0], expected).relative_l2 <= 3e-5


@pytest.mark.slow
def test_v_prediction_export_gives_the_official_lare(tiny, tmp_path):
    """The other prediction type: only the UNet step is exported anew, after the same VAE."""
    sources = write_tiny(tmp_path / "model", "v_prediction")
    geometry = plan_geometry(sources, BuildOptions())
    module = UNET_STEP.build(sources, geometry)
    prepare(module)
    ir.save(export_graph(module, UNET_STEP, geometry, batch=1), tmp_path / "unet.onnx")
    posterior, ensemble = golden_noise()
    pixels, expected = golden_pixels("v_prediction")
    vae = onnxruntime.InferenceSession(tiny[1].path / "vae_encoder.b1.fp32.portable.onnx")
    latent = vae.run(["latent"], {"image": pixels.image[None], "posterior_noise": posterior})[0]
    unet = onnxruntime.InferenceSession(tmp_path / "unet.onnx")
    lare = unet.run(["lare"], {"latent": latent, "noise": ensemble})[0]
    assert difference(lare[0], expected).relative_l2 <= 3e-5


def test_exported_unet_has_exactly_the_folded_elements(tiny):
    """UNet − cross-attention K/V weights − time path + K/V constants, and beside them only shapes and scalars."""
    sources, bundle = tiny
    report = fold_unet(tiny_unet(), timestep=200, prompt_embeds=sources.prompt_embeds(""))
    graph = ir.load(bundle.path / "unet_step.b1.fp32.portable.onnx").graph
    weights = {k: v.const_value for k, v in graph.initializers.items() if k.startswith("unet.")}
    others = {k: v.const_value for k, v in graph.initializers.items() if not k.startswith("unet.")}
    assert sum(tensor.size for tensor in weights.values()) == report.after
    assert report.after == report.before - report.removed + report.constants
    groups = tiny_unet().config.norm_num_groups
    for name, tensor in others.items():
        # Shapes, scalars, and the ones and zeros that InstanceNormalization asks for.
        trivial = tensor.size <= 5 or (tensor.size == groups and np.ptp(tensor.numpy()) == 0)
        assert trivial, (name, tensor.shape)


@pytest.mark.slow
def test_batch_sizes_share_one_weight_file(built_mini):
    manifest = open_bundle(built_mini).manifest
    for component in NAMES:
        one, four = manifest.components[component]
        assert one.files == four.files
        assert (one.batch, four.batch) == (1, 4)
        weights = sum(manifest.files[name].size for name in one.files)
        assert manifest.files[four.graph].size < 0.2 * weights


def test_no_shipped_file_tells_where_it_was_built(tiny, embedded):
    """Exporters write stack traces and machine paths into graphs; ours are stripped."""
    telltale = re.compile(rb"/(home|root|tmp|usr|opt|var)/|site-packages|\.py\b|Traceback|File \"")
    for folder in (tiny[1].path, embedded):
        for path in folder.iterdir():
            if path.suffix != ".data":
                found = telltale.search(path.read_bytes())
                assert found is None, (path.name, found)
        for graph in folder.glob("*.onnx"):
            model = ir.load(graph)
            assert list(model.metadata_props) == [KEY_PROPERTY]
            for node in model.graph:
                assert not node.metadata_props
                assert not node.doc_string


@pytest.mark.slow
def test_graphs_carry_their_component_key(built_mini):
    manifest = open_bundle(built_mini).manifest
    for variants in manifest.components.values():
        for variant in variants:
            model = ir.load(built_mini / variant.graph)
            assert model.metadata_props[KEY_PROPERTY] == variant.component_key
            assert model.opset_imports[""] == variant.opset == 20


def weights_of(graph):
    return {name: value.const_value.numpy() for name, value in ir.load(graph).graph.initializers.items()}


@pytest.mark.slow
def test_build_of_the_committed_model_equals_the_embedded_bundle(built_mini, embedded):
    """The wheel's bundle is what the script makes of the committed weights, whatever the exporters' versions write."""
    ours, shipped = open_bundle(built_mini).manifest, open_bundle(embedded).manifest
    assert ours.method == shipped.method
    assert ours.preprocessing == shipped.preprocessing
    assert [(s.role, s.sha256) for s in ours.sources] == [(s.role, s.sha256) for s in shipped.sources]
    assert ours.files["noise.npy"] == shipped.files["noise.npy"]
    for component, variants in shipped.components.items():
        for variant in variants:
            fresh = ours.variant(component, batch=variant.batch, precision=variant.precision, profile=variant.profile)
            built, kept = (weights_of(folder / v.graph) for folder, v in ((built_mini, fresh), (embedded, variant)))
            assert built.keys() == kept.keys()
            for name, value in kept.items():
                # What is folded (time, prompt, norms) is summed by this processor's kernels: other last digits.
                assert difference(built[name], value).relative_l2 <= 1e-6, name
    # The reference's sums depend on the processor in the last digits.
    pairs = zip(open_bundle(built_mini).selfcheck, open_bundle(embedded).selfcheck, strict=True)
    assert max(difference(new, old).relative_l2 for new, old in pairs) <= 3e-5


def test_export_is_deterministic():
    """The same component twice in one process: equal bytes."""
    sources = open_model_folder(default_model_folder())
    geometry = plan_geometry(sources, BuildOptions())
    contents = []
    for _ in range(2):
        module = EGRE.build(sources, geometry)
        prepare(module)
        model = export_graph(module, EGRE, geometry, batch=1)
        strip(model, key="k")
        contents.append(ir.to_proto(model).SerializeToString(deterministic=True))
    assert contents[0] == contents[1]


def test_component_order_and_names():
    assert tuple(component.name for component in COMPONENTS) == NAMES


@torch.no_grad()
def test_velocity_target():
    """A v-prediction step measures against DDPM's velocity, not against the noise."""
    sources = open_model_folder(default_model_folder())
    geometry = plan_geometry(sources, BuildOptions())
    step = UNET_STEP.build(sources, geometry)
    step.predicts_velocity = True
    latent, noise = UNET_STEP.example_inputs(geometry, 2)
    scheduler = sources.scheduler()
    expected = scheduler.get_velocity(latent[:1], noise[:1], torch.tensor([geometry.timestep]))
    torch.testing.assert_close(step.target(latent[:, None], noise[None])[0, 0], expected[0])


def test_worst_component_is_relative_to_its_tolerance():
    entry = {"worst_relative_l2": 2e-6, "tolerance": 1e-5}
    wide = {"worst_relative_l2": 3e-6, "tolerance": 3e-5}
    report = {"components": {"a": {"outputs": {"x": entry}}, "b": {"outputs": {"y": wide}}}}
    assert worst_component(report) == ("a", 2e-6)


def refused_build(tmp_path, monkeypatch, report):
    """Build with steps that return at once and a parity report of our choice."""
    from lare2_export.build import bundle as build

    measured = SimpleNamespace(report=report, selfcheck=np.zeros((1, 2), np.float32))
    monkeypatch.setattr(build, "has_half", lambda manifest: False)
    monkeypatch.setattr(build, "run_isolated", lambda name, *a, **k: measured if name == "parity" else [])
    monkeypatch.setattr(build, "describe", lambda *a, **k: SimpleNamespace(files={}, notes=()))
    sources = dataclasses.replace(open_model_folder(default_model_folder()), synthetic=True)
    with pytest.raises(BuildError) as error:
        build_bundle(sources, tmp_path / "engines", BuildOptions(), report=lambda line: None)
    assert not (tmp_path / "engines").exists()
    return error.value


def test_unfaithful_export_is_refused(tmp_path, monkeypatch):
    """A graph that is off by more than its tolerance leaves the old bundle alone and a report behind."""
    entry = {"worst_relative_l2": 2e-5, "tolerance": 1e-5}
    component = {"passed": False, "outputs": {"logits": entry}}
    report = {"passed": False, "components": {"egre": component}, "same_bits_as_batch_1": {}}
    error = refused_build(tmp_path, monkeypatch, report)
    assert "egre differs by 2.0e-05" in error.problem
    assert "engines.failed-parity.json" in error.problem
    assert error.remedy
    assert json.loads((tmp_path / "engines.failed-parity.json").read_text()) == report


def test_what_failed_names_the_chain_where_each_component_passed():
    fine = {"passed": True, "worst_relative_l2": 1e-7, "tolerance": 1e-5, "max_difference": 2e-5}
    outputs = {"egre": {"passed": True, "outputs": {"logits": fine}}}
    wrong = {**fine, "passed": False, "worst_relative_l2": 4e-5}
    whole = {"lare": fine, "logits": fine, "logit_gap": logit_gap(0, 1), "probability": fine}
    for changed, words in (
        ({"lare": wrong}, "LaRE of the whole chain differs by 4.0e"),
        ({"logits": wrong}, "logits of the whole chain differ by 4.0e-05"),
        ({"logit_gap": logit_gap(2e-3, 0.5)}, "logits differ by 4.0e-03 of their"),
        ({"logit_gap": logit_gap(0, 0), "probability": wrong}, "chain's probability differs by 2.0e-05"),
    ):
        chain = whole | changed
        report = {"components": outputs, "same_bits_as_batch_1": {"4": True}, "end_to_end": chain}
        assert words in what_failed(report)[0]


def test_logits_are_judged_by_how_far_they_spread():
    """At most a thousandth of the standard deviation, which has to be one in the first place."""
    assert [logit_gap(gap, 0.1)["passed"] for gap in (0.9e-4, 1.1e-4, np.nan, np.inf)] == [True, False, False, False]
    for spread, void in ((1e-2, True), (1.1e-2, False), (np.nan, True)):
        assert logit_gap(0.0, spread)["void"] == void
    assert logit_gap(1.0, 1e-3)["standard_deviations"] is None


def test_degenerate_synthetic_weights_are_refused(tmp_path, monkeypatch):
    report = {"passed": True, "logit_standard_deviation": 1e-4, "images": ["a", "b"]}
    error = refused_build(tmp_path, monkeypatch, report)
    assert "1.0e-04" in error.problem
    assert "--parity-images" in error.remedy


def test_geometry_checks_options():
    sources = open_model_folder(default_model_folder())
    for options, remedy in (
        (BuildOptions(timestep=1000), "choose one from 0 to 999"),
        *((BuildOptions(image_size=size), "choose a multiple of 64") for size in (250, 0, -64)),
        (BuildOptions(batches=(4,)), "add --batch 1"),
    ):
        with pytest.raises(BuildError) as refused:
            make_plan(sources, options)
        assert refused.value.remedy == remedy
    assert plan_geometry(sources, BuildOptions(image_size=512)).latent == (4, 64, 64)


def test_target_that_is_no_bundle_is_refused(tmp_path):
    (tmp_path / "precious.txt").write_text("do not lose me")
    sources = open_model_folder(default_model_folder())
    with pytest.raises(BuildError, match="--out"):
        build_bundle(sources, tmp_path, BuildOptions(), report=lambda line: None)
    assert (tmp_path / "precious.txt").exists()


def test_two_builds_at_once_are_refused(tmp_path):
    first, second = Staging(tmp_path / "engines").locked(), Staging(tmp_path / "engines").locked()
    with first, pytest.raises(BuildError, match="wait for it"), second:
        pass
    with Staging(tmp_path / "engines").locked():
        pass
