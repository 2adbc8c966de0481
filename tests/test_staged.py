"""Stages: the same graph in pieces, each on its library, with the weights left where they were checked."""

import hashlib
import itertools
import json
import shutil

import numpy as np
import onnx
import pytest
from fake_engine import facts_of_the_cache, need_engine

from lare2_rt import Detector, EngineError
from lare2_rt.bundle import open_bundle
from lare2_rt.compiled import CompiledCache
from lare2_rt.engines import EngineOptions, load_engine, mnn_library, select_engine, staged, staged_split, stages
from lare2_rt.engines.mnn_library import NEWEST_OPSET
from lare2_rt.engines.onnxruntime import OnnxRuntimeEngine
from lare2_rt.engines.staged import PLACEMENTS, StagedEngine
from lare2_rt.engines.stages import Placement
from lare2_rt.metrics import difference
from lare2_rt.preprocess import preprocess

pytestmark = pytest.mark.usefixtures("every_core")

ENGINE = StagedEngine()


@pytest.fixture(autouse=True)
def _installed():
    need_engine("mnn")
    need_engine("onnx")


@pytest.fixture(scope="module")
def bundle(embedded):
    return open_bundle(embedded)


def output(engine, bundle, photo, cache):
    pixels = preprocess(photo, bundle.manifest.policy)
    running = load_engine(engine, bundle, EngineOptions(threads=2, batch=1, cache=cache))
    try:
        return running.run(pixels.image[None], pixels.crop[None])
    finally:
        running.close()


@pytest.mark.parametrize("library", ["onnxruntime", "mnn", None])
def test_pieces_give_what_the_whole_gives(bundle, rocket, tmp_path, library):
    """On ONNX Runtime alone only the cutting could make a difference; then with the libraries in their places."""
    placements = PLACEMENTS
    if library is not None:
        placements = {"vae_encoder": Placement(library, library), "unet_step": Placement(library, library)}
    whole = output(OnnxRuntimeEngine(), bundle, rocket, tmp_path)
    pieces = output(StagedEngine(placements), bundle, rocket, tmp_path)
    bound = {"onnxruntime": 2e-6, "mnn": 1e-3, None: 1e-3}[library]
    assert difference(pieces.lare, whole.lare).relative_l2 < bound
    assert np.abs(pieces.logits - whole.logits).max() < bound * np.abs(whole.logits).max()
    assert not np.array_equal(pieces.lare, np.zeros_like(whole.lare))


class TestSplit:
    @pytest.fixture(scope="class")
    @classmethod
    def listing(cls, embedded, tmp_path_factory):
        folder = tmp_path_factory.mktemp("split")
        variant = open_bundle(embedded).variant("unet_step", batch=1, precision="fp32", profile="portable")
        staged_split.write(str(embedded / variant.graph), folder)
        return embedded / variant.graph, folder, json.loads((folder / "stages.json").read_text())

    def test_every_node_in_its_order(self, listing):
        source, folder, stages = listing
        names = [node.name for node in onnx.load(source, load_external_data=False).graph.node]
        found = [
            node.name for s in stages for node in onnx.load(folder / s["graph"], load_external_data=False).graph.node
        ]
        assert found == names
        kinds = [stage["kind"] for stage in stages]
        assert set(kinds) == {"attention", "conv"}
        assert all(a != b for a, b in itertools.pairwise(kinds))

    def test_attention_is_where_its_layers_are(self, listing):
        _, folder, stages = listing
        for stage in stages:
            types = {n.op_type for n in onnx.load(folder / stage["graph"], load_external_data=False).graph.node}
            assert ("Softmax" in types) == (stage["kind"] == "attention")
            assert "Gelu" not in types or stage["kind"] == "attention"

    def test_what_comes_in_was_made_before(self, listing):
        source, _, stages = listing
        graph = onnx.load(source, load_external_data=False).graph
        known = {value.name for value in graph.input}
        for stage in stages:
            assert {spec["name"] for spec in stage["inputs"]} <= known
            known |= {spec["name"] for spec in stage["outputs"]}
        assert {value.name for value in graph.output} <= known

    def test_weights_are_counted_once(self, listing):
        source, _, stages = listing
        graph = onnx.load(source, load_external_data=False).graph
        floats = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1]
        assert sum(stage["weights"] for stage in stages) >= sum(4 * int(np.prod(t.dims)) for t in floats)

    def test_a_node_without_a_layer_goes_with_the_next(self):
        names = ["graph/Mul", "unet.conv_in/Conv", "unet.mid_block.attentions.0.norm/Mul", "graph/Split"]
        names += ["unet.mid_block.attentions.0/Add", "graph/Concat", "unet.conv_out/Conv", "graph/Sub"]
        found = staged_split.kinds_of(names)
        assert found == ["conv", "conv", "attention", "attention", "attention", "conv", "conv", "conv"]


def test_weights_stay_in_the_bundle(bundle, rocket, tmp_path):
    """Of what runs on ONNX Runtime the cache has the graph alone; damaged weights are found where they are hashed."""
    output(ENGINE, bundle, rocket, tmp_path)
    for entry in CompiledCache(tmp_path).entries():
        folder = tmp_path / "compiled" / entry.key
        for stage in json.loads((folder / "stages.json").read_text()):
            graph = folder / stage["graph"]
            on_mnn = (folder / stage["graph"].replace(".onnx", ".mnn")).exists()
            assert graph.exists() != on_mnn
            assert on_mnn or graph.stat().st_size < 100_000


def test_values_go_when_nothing_reads_them(tmp_path):
    spec = {name: {"name": name, "dtype": "float32", "shape": [1]} for name in "xyz"}
    line = {"kind": "conv", "weights": 0}
    stages_ = [
        {**line, "graph": "00.onnx", "inputs": [spec["x"]], "outputs": [spec["y"]]},
        {**line, "graph": "01.onnx", "inputs": [spec["x"], spec["y"]], "outputs": [spec["z"]]},
    ]
    (tmp_path / "stages.json").write_text(json.dumps(stages_))
    assert stages._last_uses(stages._listing(tmp_path), keep={"z"}) == [[], ["x", "y"]]


def test_a_damaged_stage_is_made_again(bundle, rocket, tmp_path, monkeypatch):
    output(ENGINE, bundle, rocket, tmp_path)
    count = len(CompiledCache(tmp_path).entries())

    def refuse(*arguments, **options):
        raise RuntimeError("no")

    monkeypatch.setattr(stages, "load_model", refuse)
    with pytest.raises(EngineError, match=r"cannot load the stages of .*; they were removed from the cache: try again"):
        output(ENGINE, bundle, rocket, tmp_path)
    assert len(CompiledCache(tmp_path).entries()) == count - 1
    monkeypatch.undo()
    assert np.isfinite(output(ENGINE, bundle, rocket, tmp_path).logits).all()


def test_a_graph_that_cannot_be_split(bundle, tmp_path):
    variant = bundle.variant("unet_step", batch=1, precision="fp32", profile="portable")
    broken = tmp_path / "bundle"
    shutil.copytree(bundle.path, broken)
    (broken / variant.graph).write_bytes(b"no graph")
    damaged = open_bundle(bundle.path)
    object.__setattr__(damaged, "path", broken)
    (tmp_path / "out").mkdir()
    with pytest.raises(EngineError, match=rf"cannot split {variant.graph} into stages: .*; update onnx, or choose"):
        stages.make_stages(damaged, variant, tmp_path / "out", PLACEMENTS["unet_step"])


class TestRefused:
    @pytest.mark.parametrize("absent", ["mnn", "onnx"])
    def test_without_a_package(self, bundle, monkeypatch, absent):
        real = staged.installed_version
        monkeypatch.setattr(staged, "installed_version", lambda name: None if name == absent else real(name))
        with pytest.raises(EngineError, match=rf"{absent} is not installed: pip install 'lare2-rt\[staged\]'"):
            select_engine("staged", bundle, EngineOptions(threads=1))

    def test_half_precision(self, bundle):
        with pytest.raises(EngineError, match="staged computes in fp32 here, not in fp16; leave --precision out"):
            select_engine("staged", bundle, EngineOptions(threads=1, precision="fp16"))

    def test_batches(self, bundle):
        with pytest.raises(EngineError, match="runs at batch 1 only, not 4"):
            select_engine("staged", bundle, EngineOptions(threads=1, batch=4))

    def test_a_newer_opset(self, bundle, monkeypatch):
        monkeypatch.setattr(mnn_library, "NEWEST_OPSET", 12)
        assert NEWEST_OPSET > 12
        with pytest.raises(EngineError, match="mnn reads ONNX up to opset 12 and the bundle has 20"):
            select_engine("staged", bundle, EngineOptions(threads=1))


def test_the_key_knows_the_placement_and_the_revision(bundle, monkeypatch):
    options = EngineOptions(threads=1, batch=1)
    other = {**PLACEMENTS, "vae_encoder": Placement("mnn", "mnn")}
    keys = {StagedEngine(p).describe(bundle, options).build_key for p in (PLACEMENTS, other)}
    assert len(keys) == 2
    monkeypatch.setattr(staged, "REVISION", staged.REVISION + 1)
    assert ENGINE.describe(bundle, options).build_key not in keys


def test_another_split_is_another_revision(tmp_path):
    """Caches have the stages of a released revision and would go on with them."""
    names = ["graph/Mul", "a.conv/Conv", "a.attentions.0.norm/Softmax", "graph/Split", "a.attentions.0/Add", "b/Conv"]
    kind = [onnx.TensorProto.FLOAT, [1, 4]]
    nodes = [
        onnx.helper.make_node("Add", [f"v{i}", "x" if i else "w"], [f"v{i + 1}"], name) for i, name in enumerate(names)
    ]
    ends = [onnx.helper.make_tensor_value_info(name, *kind) for name in ("v0", "x", f"v{len(names)}")]
    weights = [onnx.numpy_helper.from_array(np.ones((1, 4), np.float32), "w")]
    graph = onnx.helper.make_graph(nodes, "g", ends[:2], ends[2:], weights)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), tmp_path / "in.onnx")
    (tmp_path / "out").mkdir()
    staged_split.write(str(tmp_path / "in.onnx"), tmp_path / "out")
    found = hashlib.sha256()
    for path in sorted((tmp_path / "out").glob("*.onnx")):
        stage = onnx.load(path).graph
        found.update(repr([(node.name, [*node.input], [*node.output]) for node in stage.node]).encode())
        found.update(repr([[value.name for value in part] for part in (stage.input, stage.output)]).encode())
    found.update((tmp_path / "out" / "stages.json").read_bytes())
    now = (staged.REVISION, found.hexdigest()[:16])
    assert now == (1, "c6739dc2e935bddb"), "raise REVISION, and write down here what it stands for"


def test_the_cache_knows_the_revision(bundle, tmp_path, monkeypatch):
    """Stages of another revision are not run."""
    options = EngineOptions(threads=2, batch=1, cache=tmp_path)
    facts = facts_of_the_cache(staged, monkeypatch, lambda: load_engine(ENGINE, bundle, options))
    assert facts["revision"] == staged.REVISION


def test_the_detector_takes_it(embedded, rocket, tmp_path, capfd):
    with Detector.load(embedded, engine="staged", threads=2, cache=tmp_path) as detector:
        result = detector.detect(rocket)
    assert (result.provenance.engine, result.provenance.precision) == ("staged", "fp32")
    assert capfd.readouterr().out == ""
