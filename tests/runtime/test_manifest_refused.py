"""Manifests come from anywhere: whatever is wrong with one is a sentence, before any engine sees the bundle."""

import json
import shutil

import pytest

from lare2_rt import Detector
from lare2_rt.bundle.opening import open_bundle, parse
from lare2_rt.errors import BundleError
from tests.helpers.tampering import GRAPH, read_manifest, refused, reseal


def changed(path, value):
    """A change of one place in the manifest, given as a path of keys."""

    def change(raw):
        *way, last = path
        for key in way:
            raw = raw[key]
        if value is ...:
            del raw[last]
        else:
            raw[last] = value(raw[last]) if callable(value) else value

    return change


def renamed(new):
    """The graph GRAPH under another name, everywhere in the manifest."""

    def change(raw):
        raw["files"][new] = raw["files"].pop(GRAPH)
        raw["components"]["egre"][0]["graph"] = new

    return change


HEAD = ("components", "egre", 0)
BAD_MANIFESTS = {
    "extra field": (changed(["surprise"], 1), "surprise"),
    "extra field inside": (changed(["method", "surprise"], 1), "method.surprise"),
    "missing field": (changed(["method", "timestep"], ...), "method.timestep"),
    "text for a number": (changed(["method", "timestep"], "200"), "method.timestep"),
    "fraction for a number": (changed(["method", "timestep"], 200.5), "method.timestep"),
    "truth for a number": (changed(["method", "ensemble"], True), "method.ensemble"),
    "negative": (changed(["method", "timestep"], -1), "method.timestep"),
    "list for text": (changed(["model", "name"], ["mini"]), "model.name"),
    "unknown word": (changed(["preprocessing", "exif"], "sometimes"), "preprocessing.exif"),
    "NaN": (changed(["method", "alpha_bar"], float("nan")), "method.alpha_bar"),
    "infinity": (changed(["method", "scaling_factor"], float("inf")), "method.scaling_factor"),
    "huge image": (changed(["method", "image_size"], 1 << 20), "method.image_size"),
    "huge ensemble": (changed(["method", "ensemble"], 1 << 40), "method.ensemble"),
    "short hash": (changed(["sources", 0, "sha256"], "ab"), "sources.0.sha256"),
    "no component": (changed(["components", "egre"], ...), "components must be"),
    "unknown component": (lambda raw: raw["components"].update(evil=[]), "evil"),
    "no variant": (changed(["components", "egre"], []), "each with a variant"),
    "same variant twice": (changed(["components", "egre"], lambda v: [v[0], v[0]]), "two variants"),
    "no common batch": (changed(["components", "egre"], lambda v: [{**v[0], "batch": 2}]), "no batch size in common"),
    "threshold without calibration": (
        changed(["decision"], {"calibration": "uncalibrated", "real_below": 0.5}),
        "both thresholds",
    ),
    "calibration without thresholds": (changed(["decision"], {"calibration": "calibrated"}), "both thresholds"),
    "thresholds in the wrong order": (
        lambda raw: raw["decision"].update(calibration="calibrated", real_below=0.6, generated_from=0.4),
        "must not exceed",
    ),
    "unlisted graph": (changed(["files", GRAPH], ...), GRAPH),
    "unlisted noise": (changed(["files", "noise.npy"], ...), "noise.npy"),
    "idle file": (lambda raw: raw["files"].update({"model.pkl": {"size": 1, "sha256": "0" * 64}}), "model.pkl"),
    "manifest in its own list": (
        lambda raw: raw["files"].update({"manifest.json": {"size": 1, "sha256": "0" * 64}}),
        "manifest.json",
    ),
}


@pytest.fixture(scope="module")
def shared(embedded, tmp_path_factory):
    """A copy of which tests only change the manifest."""
    return shutil.copytree(embedded, tmp_path_factory.mktemp("manifest") / "bundle")


class TestManifest:
    @pytest.fixture
    def attempt(self, shared, embedded):
        def attempt(change, *words):
            raw = read_manifest(embedded)
            change(raw)
            reseal(shared, raw)
            return refused(shared, *words)

        return attempt

    @pytest.mark.parametrize("kind", BAD_MANIFESTS)
    def test_wrong_content(self, attempt, kind):
        change, words = BAD_MANIFESTS[kind]
        assert "does not match" not in attempt(change, words)

    @pytest.mark.parametrize(
        "name",
        ["../x.onnx", "/etc/x.onnx", "a/b.onnx", "a\\b.onnx", "..", ".hidden.onnx", "", "-rf.onnx", "a\nb.onnx",
         "\x1b[2J.onnx", "a b.onnx", "ü.onnx", "x" * 140 + ".onnx", "x.ort", "x.onnx.ort", "x.ONNX", "x.onnx\n"],
    )  # fmt: skip
    def test_names_are_plain(self, attempt, name):
        """Among them .ort: onnxruntime would read another format, which the audit of ONNX files does not know."""
        attempt(renamed(name), "manifest.json is wrong at")

    @pytest.mark.parametrize("name", ["../x.data", "/etc/passwd", ".hidden", "a/b", "..", "a\0b"])
    def test_names_of_weights_are_plain(self, attempt, name):
        attempt(changed([*HEAD, "files"], [name]), "components.egre.0.files")

    @pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.0, [1], {"a": 1}, 10**400, "\x1b[31m"])
    def test_other_schema_versions(self, attempt, version):
        attempt(changed(["schema_version"], version), "manifest schema version", "install the lare2-rt that built")

    @pytest.mark.parametrize(
        "content",
        [b"", b"\0", b"hello", b"[]", b"1", b"null", b'"x"', b"{", b"\xff\xfe{}", b"[" * 400_000, b'{"a":' * 150_000,
         b'{"schema_version": 1}', b'{"schema_version": 1' + b"0" * 5000 + b"}",
         b'{"schema_version": 1, "method": ' + b"[" * 900 + b"]" * 900 + b"}",
         b'{"schema_version": 1, "\\ud800": 1}', b'{"schema_version": NaN}'],
        ids=lambda content: repr(content[:24]),
    )  # fmt: skip
    def test_other_content(self, shared, content):
        (shared / "manifest.json").write_bytes(content)
        refused(shared, "manifest")

    @pytest.mark.parametrize("depth", [100, 700, 100_000])
    def test_nested_schema_version(self, depth):
        content = b'{"schema_version": ' + b"[" * depth + b"]" * depth + b"}"
        with pytest.raises(BundleError, match=r"manifest schema version|not valid JSON") as caught:
            parse(content, "x")
        assert len(str(caught.value)) < 400

    def test_large(self, shared, embedded):
        content = (embedded / "manifest.json").read_bytes()
        (shared / "manifest.json").write_bytes(content.ljust(1_000_000))
        open_bundle(shared)
        (shared / "manifest.json").write_bytes(content.ljust(1_000_001))
        refused(shared, "larger than 1 MB")

    def test_changed_without_its_id(self, shared, embedded):
        for place, value in ((["method", "timestep"], 201), (["id"], "0" * 64), (["lare_id"], "0" * 64)):
            raw = read_manifest(embedded)
            changed(place, value)(raw)
            (shared / "manifest.json").write_text(json.dumps(raw))
            refused(shared, "changed after the build")

    @pytest.mark.parametrize(
        ("place", "shape", "words"),
        [
            (["vae_encoder", 0, "inputs", 0], [1, 256, 256, 4], "image"),
            (["vae_encoder", 0, "outputs", 0], [1, 4, 16, 16], "latent"),
            (["unet_step", 1, "inputs", 1], [3, 4, 32, 32], "noise"),
            (["unet_step", 1, "outputs", 0], [1, 4, 32, 32], "lare"),
            (["clip_backbone", 0, "inputs", 0], [1, 288, 288, 3], "crop"),
            (["egre", 0, "inputs", 0], [1, 4, 64, 64], "lare"),
            (["egre", 0, "inputs", 1], [1, 191], "gives embedding as [1, 192] and egre takes [1, 191]"),
            (["egre", 1, "inputs", 2], [4, 192, 7, 7], "(batch 4) gives layer3"),
            (["clip_backbone", 1, "outputs", 1], [4, 96, 14, 14], "(batch 4) gives layer3"),
            (["egre", 0, "outputs", 0], [1, 3], "logits"),
            (["egre", 0, "outputs", 1], [8, 196], "attention"),
        ],
    )
    def test_shapes_that_do_not_fit(self, attempt, place, shape, words):
        attempt(changed(["components", *place, "shape"], shape), words, "build the bundle again")

    def test_tensors_that_do_not_fit(self, attempt):
        attempt(changed(["components", "vae_encoder", 0, "inputs", 0, "dtype"], "float32"), "image", "uint8")
        attempt(changed(["components", "egre", 0, "outputs", 1, "name"], "weights"), "attention")
        attempt(changed(["components", "egre", 0, "inputs"], lambda v: v[:2]), "does not take exactly")
        extra = {"name": "more", "dtype": "float32", "shape": [1]}
        attempt(changed(["components", "egre", 0, "inputs"], lambda v: [*v, extra]), "does not take exactly")

    def test_a_graph_that_is_not_what_the_manifest_says(self, bundle_copy):
        """Consistent on paper: the head's graph at batch 1 in the place of the one at batch 4."""
        shutil.copyfile(bundle_copy / GRAPH, bundle_copy / "egre.b4.fp32.portable.onnx")
        reseal(bundle_copy)
        open_bundle(bundle_copy)
        with pytest.raises(Exception, match="other inputs or outputs than its manifest says; build the bundle again"):
            Detector.load(bundle_copy, batch=4)
