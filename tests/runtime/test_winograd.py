"""Winograd's convolution as a rewrite: the same graph in fewer multiplications, chosen layer by layer."""

import errno
import hashlib
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks.throughput.layers import clock, measure, single, variations
from lare2_rt import Detector, EngineError
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.engines import registry
from lare2_rt.engines.cache.cache import CompiledCache
from lare2_rt.engines.contract import EngineOptions
from lare2_rt.engines.difference import difference
from lare2_rt.engines.onnxruntime_gpu import norms
from lare2_rt.engines.openvino import library
from lare2_rt.engines.openvino.engine import OpenVinoEngine
from lare2_rt.engines.selection import load_engine, select_engine
from lare2_rt.engines.winograd import build as winograd_build, engine as winograd
from lare2_rt.engines.winograd.conv import transforms
from lare2_rt.engines.winograd.engine import WinogradEngine
from lare2_rt.engines.winograd.layers import Choice, Layer, choose, layers_of
from lare2_rt.engines.winograd.rewrite import rewrite
from lare2_rt.pixels.preprocess import preprocess
from tests.fakes.engine import facts_of_the_cache, need_engine
from tests.helpers.written_network import CHANNELS, Network, block

pytestmark = pytest.mark.usefixtures("every_core")

WHOLE = WinogradEngine(channels=1)  # the small model has fewer channels than pay
NEVER = WinogradEngine(tiles=())


@pytest.fixture(autouse=True)
def _installed():
    need_engine("onnx")
    need_engine("openvino")


@pytest.fixture(scope="module")
def bundle(embedded):
    return open_bundle(embedded)


def run(model, array):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": array})[0]


class TestRewrite:
    @pytest.mark.parametrize("tile", [2, 4])
    def test_one_tile_by_hand(self, tile):
        """The formula itself, in float64, against a convolution written out."""
        source, kernel, target = transforms(tile)
        generator = np.random.default_rng(0)
        pixels, weights = generator.standard_normal((tile + 2, tile + 2)), generator.standard_normal((3, 3))
        found = target @ ((kernel @ weights @ kernel.T) * (source @ pixels @ source.T)) @ target.T
        expected = np.array(
            [[(pixels[y : y + 3, x : x + 3] * weights).sum() for x in range(tile)] for y in range(tile)]
        )
        assert np.abs(found - expected).max() < 1e-13

    @pytest.mark.parametrize("choice", [Choice(2), Choice(4), Choice(2, 3), Choice(4, 4)])
    @pytest.mark.parametrize("layer", [Layer(2, 16, 24, 8, 8), Layer(1, 17, 16, 7, 5), Layer(3, 16, 16, 4, 13)])
    def test_equals_the_untouched_graph(self, layer, choice):
        """With pictures that tiles do not divide and several images, whose borders must not mix."""
        model = single(layer)
        array = np.random.default_rng(1).standard_normal((layer.batch, layer.inputs, layer.height, layer.width), "f4")
        expected = run(model, array)
        assert rewrite(model, {layer: choice}) == 1
        onnx.checker.check_model(model, full_check=True)
        assert "Conv" not in {node.op_type for node in model.graph.node}
        found = run(model, array)
        assert found.shape == expected.shape
        assert difference(found, expected).relative_l2 < (1e-6 if choice.tile == 2 else 1e-5)

    def test_a_bias_is_added(self):
        layer = Layer(1, 16, 16, 4, 4)
        model = single(layer)
        bias = np.arange(16, dtype=np.float32)
        model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(bias, "b"))
        rewrite(model, {layer: Choice(4)})
        found = run(model, np.zeros((1, 16, 4, 4), np.float32))
        assert np.array_equal(found, np.broadcast_to(bias[:, None, None], (1, 16, 4, 4)))

    def test_two_layers_may_share_their_weights(self):
        layer = Layer(1, 16, 16, 8, 8)
        model = single(layer)
        (first,) = model.graph.node
        second = onnx.NodeProto()
        second.CopyFrom(first)
        first.output[0], second.input[0], second.name = "between", "between", "layer/Conv.2"
        model.graph.node.append(second)
        array = np.random.default_rng(1).standard_normal((1, 16, 8, 8), np.float32)
        expected = run(model, array)
        assert rewrite(model, {layer: Choice(4)}) == 2
        onnx.checker.check_model(model, full_check=True)
        for named in (model.graph.initializer, model.graph.node):
            assert len({entry.name for entry in named}) == len(named)
        assert difference(run(model, array), expected).relative_l2 < 1e-5

    @pytest.mark.parametrize(
        "changes",
        [{"strides": [2, 2]}, {"pads": [0, 0, 0, 0]}, {"pads": [0, 0, 1, 1]}, {"dilations": [2, 2]}, {"group": 2}],
    )
    def test_other_convolutions_are_left_alone(self, changes):
        model = single(Layer(1, 16, 16, 8, 8))
        (node,) = model.graph.node
        kept = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} | changes
        del node.attribute[:]
        node.attribute.extend(onnx.helper.make_attribute(*pair) for pair in kept.items())
        assert layers_of(model) == {}

    def test_only_chosen_shapes(self, embedded, bundle):
        variant = bundle.variant("unet_step", batch=1, precision="fp32", profile="portable")
        model = onnx.load(embedded / variant.graph)
        layers = layers_of(model)
        one = min(layers.values())
        names = [node.name for node in model.graph.node]
        count = rewrite(model, {one: Choice(2)})
        assert count == sum(layer == one for layer in layers.values())
        assert layers_of(model) == {name: layer for name, layer in layers.items() if layer != one}
        assert len({node.name for node in model.graph.node}) == len(model.graph.node)
        assert [node.name for node in model.graph.node if ".winograd" not in node.name] == [
            name for name in names if name in {node.name for node in model.graph.node}
        ]


def written(model):
    """What the rewriting decides: operators, their order and their constants."""
    return [
        *(
            repr(
                (n.op_type, n.name, [*n.input], [*n.output], [onnx.helper.get_attribute_value(a) for a in n.attribute])
            )
            for n in model.graph.node
        ),
        *(f"{t.name} {rounded(onnx.numpy_helper.to_array(t)).tolist()}" for t in model.graph.initializer),
    ]


def rounded(array):
    """Without what one processor's arithmetic leaves of a zero and another's does not."""
    return array.astype(np.float64).round(6) + 0.0 if array.dtype == np.float32 else array


def test_another_graph_is_another_revision():
    """Caches have the graph of a released revision and would go on with it."""
    layer = Layer(1, 16, 16, 5, 4)
    found = hashlib.sha256()
    network = Network(1, CHANNELS, 8, 8, whole=True)
    model = network.model(block(network, block(network, "x"), stages=2))
    rewrite(model, dict.fromkeys(layers_of(model).values(), Choice(4)))
    found.update("\n".join(written(model)).encode())
    for choice in (Choice(2), Choice(4), Choice(2, strips=2)):
        model = single(layer)
        whole = np.arange(16 * 16 * 9).reshape(16, 16, 3, 3) % 7 * 576  # divides by every number of the transforms
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(whole.astype(np.float32), "w"))
        rewrite(model, {layer: choice})
        found.update("\n".join(written(model)).encode())
    now = (winograd.REVISION, found.hexdigest()[:16])
    assert now == (3, "8c6ca5b6df5f1484"), "raise REVISION, and write down here what it stands for"


class TestChoose:
    def test_tiles_by_size(self):
        def chosen(*shape):
            return choose({Layer(*shape): 1}, tiles=(2, 4), budget=10**12, channels=64).get(Layer(*shape))

        assert chosen(4, 320, 320, 32, 32) == Choice(4)
        assert chosen(4, 640, 640, 16, 16) == Choice(4)
        assert chosen(4, 1280, 1280, 8, 8) == Choice(2)
        assert chosen(4, 2560, 1280, 4, 4) == Choice(2)
        assert chosen(1, 128, 128, 256, 256) == Choice(4, 22)
        assert chosen(4, 4, 320, 32, 32) is None
        assert chosen(1, 1280, 1280, 1, 1) is None

    def test_the_budget_goes_where_a_byte_saves_most(self):
        low, high = Layer(4, 640, 640, 8, 8), Layer(4, 640, 640, 32, 32)
        small = Choice(2).weight_bytes(high) - high.weight_bytes
        large = Choice(4).weight_bytes(high) - high.weight_bytes

        def tiles(budget, allowed=(2, 4)):
            found = choose({low: 1, high: 1}, tiles=allowed, budget=budget, channels=64)
            return {layer: choice.tile for layer, choice in found.items()}

        assert tiles(0) == {}
        assert tiles(small - 1) == {}
        assert tiles(small) == {high: 2}
        assert tiles(large) == {high: 4}
        assert tiles(large + small) == {high: 4, low: 2}
        assert tiles(10**12, allowed=(2,)) == {high: 2, low: 2}
        assert tiles(10**12, allowed=()) == {}

    def test_a_layer_is_paid_as_often_as_it_occurs(self):
        layer = Layer(4, 640, 640, 8, 8)
        cost = Choice(2).weight_bytes(layer) - layer.weight_bytes
        assert choose({layer: 3}, tiles=(2,), budget=3 * cost - 1, channels=64) == {}
        assert choose({layer: 3}, tiles=(2,), budget=3 * cost, channels=64) != {}


class TestMeasure:
    def test_every_way_is_run(self):
        layer = Layer(1, 16, 16, 8, 8)
        (entry,) = measure({layer: 3}, clock(1, 1))
        assert (entry.layer, entry.count) == (layer, 3)
        assert set(entry.choices) == {Choice(2), Choice(4)}
        assert all(seconds > 0 for seconds in (entry.direct, *entry.choices.values()))
        json.dumps(entry.facts(Choice(2)))

    def test_large_pictures_in_strips_too(self):
        assert [c.strips for c in variations(Layer(1, 128, 128, 256, 256)) if c.tile == 4] == [1, 22]
        assert variations(Layer(1, 3, 64, 64, 64)) == []


def output(engine, bundle, photo, cache):
    pixels = preprocess(photo, bundle.manifest.policy)
    running = load_engine(engine, bundle, EngineOptions(threads=2, batch=1, cache=cache))
    try:
        return running.run(pixels.image[None], pixels.crop[None])
    finally:
        running.close()


def made(bundle, folder):
    """Rewrite the smallest graph into a new folder, where nothing else may be left."""
    folder.mkdir()
    variant = bundle.variant("egre", batch=1, precision="fp32", profile="portable")
    NEVER.make(bundle, variant, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([winograd.MODEL, winograd.WEIGHTS])


@pytest.mark.parametrize("script", [winograd_build, norms], ids=["winograd", "onnxruntime-cuda"])
@pytest.mark.parametrize(("error", "number"), [(OSError("no number"), errno.EIO), (OSError(28, "full"), 28)])
def test_a_script_tells_the_error_number(script, error, number, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(onnx, "load", fail)
    with pytest.raises(SystemExit) as caught:
        script.main("in.onnx", "out", *["{}"] * (script is winograd_build))
    assert (caught.value.code, capsys.readouterr().out.strip()) == (3, str(number))


@pytest.mark.parametrize("location", ["../weights.data", "/etc/hostname", "a/weights.data"])
def test_weights_elsewhere_are_not_read(location):
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[1])
    for key, value in {"location": location, "offset": "0", "length": "4"}.items():
        tensor.external_data.add(key=key, value=value)
    with pytest.raises(ValueError, match=r"w are said to lie in .*, outside of the bundle"):
        winograd_build.content_of(tensor)


class TestEngine:
    def test_gives_what_the_untouched_graphs_give(self, bundle, rocket, tmp_path):
        whole = output(OpenVinoEngine(), bundle, rocket, tmp_path / "whole")
        off = output(NEVER, bundle, rocket, tmp_path)
        rewritten = output(WHOLE, bundle, rocket, tmp_path)
        assert np.array_equal(off.lare, whole.lare)
        assert np.array_equal(off.logits, whole.logits)
        assert 0 < difference(rewritten.lare, whole.lare).relative_l2 < 3e-5
        assert 0 < np.abs(rewritten.logits - whole.logits).max() < 1e-5 * np.abs(whole.logits).max()
        rewritten_graphs = 0
        for entry in CompiledCache(tmp_path).entries():
            folder = tmp_path / "compiled" / entry.key
            operators = [n.op_type for n in onnx.load(folder / "model.onnx", load_external_data=False).graph.node]
            rewritten_graphs += "Gather" in operators
        assert rewritten_graphs == 2  # of four: two without tiles

    def test_a_damaged_entry_is_made_again(self, bundle, rocket, tmp_path, monkeypatch):
        output(NEVER, bundle, rocket, tmp_path)
        count = len(CompiledCache(tmp_path).entries())

        def refuse(path):
            raise RuntimeError("no")

        monkeypatch.setattr(winograd, "let_go", refuse)
        with pytest.raises(EngineError, match=r"made of vae_encoder\S* \(no\); it was removed from the cache: try"):
            output(NEVER, bundle, rocket, tmp_path)
        assert len(CompiledCache(tmp_path).entries()) == count - 1
        monkeypatch.undo()
        assert np.isfinite(output(NEVER, bundle, rocket, tmp_path).logits).all()

    def test_a_graph_that_cannot_be_rewritten(self, bundle, bundle_copy, tmp_path):
        variant = bundle.variant("egre", batch=1, precision="fp32", profile="portable")
        (bundle_copy / variant.graph).write_bytes(b"no graph")
        (tmp_path / "out").mkdir()
        with pytest.raises(EngineError, match=rf"cannot rewrite {variant.graph} for winograd: .*; update onnx"):
            WHOLE.make(replace(bundle, path=bundle_copy), variant, tmp_path / "out")

    def test_a_bundle_in_a_folder_with_a_strange_name_and_no_links(self, bundle, bundle_copy, tmp_path, monkeypatch):
        def refuse(*arguments):
            raise OSError("no links here")

        monkeypatch.setattr(Path, "symlink_to", refuse)
        strange = tmp_path / os.fsdecode(b"caf\xe9 [1]\n*")
        bundle_copy.rename(strange)
        made(replace(bundle, path=strange), tmp_path / "out")

    def test_a_module_of_the_users_folder_is_not_taken_for_a_library(self, bundle, tmp_path, monkeypatch):
        (tmp_path / "onnx.py").write_text("raise SystemExit('mine')")
        monkeypatch.chdir(tmp_path)
        made(bundle, tmp_path / "out")

    def test_the_key_knows_the_settings(self, bundle, monkeypatch):
        options = EngineOptions(threads=1, batch=1)
        engines = (WinogradEngine(), NEVER, WinogradEngine(budget=0))
        keys = {engine.describe(bundle, options).build_key for engine in engines}
        assert len(keys) == 3
        monkeypatch.setattr(winograd, "REVISION", winograd.REVISION + 1)
        assert WinogradEngine().describe(bundle, options).build_key not in keys

    def test_so_does_the_cache(self, bundle, tmp_path, monkeypatch):
        """Graphs of another revision or of other settings are not run."""
        options = EngineOptions(threads=2, batch=1, cache=tmp_path)
        facts = facts_of_the_cache(library, monkeypatch, lambda: load_engine(NEVER, bundle, options))
        assert facts["revision"] == winograd.REVISION
        assert facts["settings"] == json.dumps(asdict(NEVER))

    def test_refused(self, bundle, monkeypatch):
        for changes, words in (({"precision": "fp16"}, "computes in fp32"), ({"batch": 4}, "batch 1 only, not 4")):
            with pytest.raises(EngineError, match=words):
                select_engine("winograd", bundle, replace(EngineOptions(threads=1), **changes))
        real = registry.installed_version
        monkeypatch.setattr(registry, "installed_version", lambda name: None if name == "onnx" else real(name))
        with pytest.raises(EngineError, match="onnx is not installed") as told:
            select_engine("winograd", bundle, EngineOptions(threads=1))
        assert told.value.remedy == "pip install 'onnx>=1.17' 'openvino>=2025.4'"

    def test_the_detector_takes_it(self, embedded, rocket, tmp_path):
        with Detector.load(embedded, engine="winograd", threads=2, cache=tmp_path) as detector:
            result = detector.detect(rocket)
        assert (result.provenance.engine, result.provenance.precision) == ("winograd", "fp32")
