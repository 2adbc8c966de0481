"""Bundles come from anywhere: whatever is wrong with one is a sentence with the remedy, before any engine sees it."""

import io
import json
import os
import pickle
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from lare2_rt import BundleError, Detector
from lare2_rt.bundle import onnx_audit
from lare2_rt.bundle.locate import embedded_bundle
from lare2_rt.bundle.manifest import COMPONENTS
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.cli import main
from lare2_rt.host import integrity
from tests.helpers.tampering import GRAPH, flip, read_manifest, refused, reseal

FILES = sorted(path.name for path in embedded_bundle().iterdir())


def test_the_untouched_copy_and_a_resealed_one_open(bundle_copy):
    """Without this, every refusal below could have another reason."""
    before = open_bundle(bundle_copy).manifest
    reseal(bundle_copy)
    assert open_bundle(bundle_copy, verify=True).manifest == before


class TestFolder:
    def test_no_bundle(self, tmp_path):
        refused(tmp_path / "nowhere", "not a bundle folder")
        refused(tmp_path, "no manifest.json")
        (tmp_path / "file").write_bytes(b"")
        refused(tmp_path / "file", "not a bundle folder")
        refused(tmp_path / "file" / "below", "not a bundle folder")

    @pytest.mark.parametrize("name", FILES)
    def test_missing_file(self, bundle_copy, name):
        (bundle_copy / name).unlink()
        refused(bundle_copy, name)

    @pytest.mark.parametrize("name", FILES)
    def test_flipped_byte(self, bundle_copy, name):
        flip(bundle_copy / name)
        sentence = refused(bundle_copy)
        assert name in sentence

    @pytest.mark.parametrize("name", ["manifest.json", GRAPH, "noise.npy"])
    def test_truncated_file(self, bundle_copy, name):
        os.truncate(bundle_copy / name, (bundle_copy / name).stat().st_size - 2)
        refused(bundle_copy, name)

    @pytest.mark.parametrize("name", ["extra.bin", ".hidden", "lib.so", "\x1b[31mred\n", "engine.plan"])
    def test_unlisted_file(self, bundle_copy, name):
        (bundle_copy / name).write_bytes(b"x")
        refused(bundle_copy, "is not listed in the manifest")

    def test_unlisted_file_with_an_undecodable_name(self, bundle_copy):
        with open(os.fsencode(bundle_copy) + b"/\xff\xfe", "wb"):  # noqa: PTH123 - a name that is no text
            pass
        refused(bundle_copy, "is not listed in the manifest")

    @pytest.mark.parametrize("name", FILES)
    def test_symlink(self, bundle_copy, tmp_path, name):
        (bundle_copy / name).rename(tmp_path / name)
        (bundle_copy / name).symlink_to(tmp_path / name)
        refused(bundle_copy, name, "not a regular file")

    def test_folder_and_pipe_inside(self, bundle_copy):
        (bundle_copy / "sub").mkdir()
        refused(bundle_copy, "sub is not listed")
        (bundle_copy / "sub").rename(bundle_copy.parent / "sub")
        for make in (os.mkdir, os.mkfifo):
            for name in ("noise.npy", "manifest.json"):
                kept = (bundle_copy / name).rename(bundle_copy.parent / name)
                make(bundle_copy / name)
                refused(bundle_copy, f"{name} is not a regular file")
                (bundle_copy / name).rmdir() if make is os.mkdir else (bundle_copy / name).unlink()
                kept.rename(bundle_copy / name)
        open_bundle(bundle_copy)


class TestHashCache:
    @pytest.fixture(autouse=True)
    def _settled(self, monkeypatch, tmp_path):
        """Files count as settled at once, so that the cache takes the copies of these tests."""
        monkeypatch.setattr(integrity, "_SETTLED", -1)
        monkeypatch.setenv("LARE2_CACHE", str(tmp_path / "cache"))

    @staticmethod
    def hashed(folder, **options):
        """Names of the files that opening really reads for their hash."""
        seen = []
        original = integrity.sha256_of
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(integrity, "sha256_of", lambda path, progress: seen.append(path.name) or original(path))
            open_bundle(folder, **options)
        return sorted(seen)

    def test_files_are_read_once_unless_asked_for(self, bundle_copy):
        listed = sorted(set(FILES) - {"manifest.json"})
        assert self.hashed(bundle_copy) == listed
        assert self.hashed(bundle_copy) == []
        assert self.hashed(bundle_copy, verify=True) == listed

    @pytest.mark.parametrize("name", sorted(set(FILES) - {"manifest.json"}))
    def test_same_size_and_time_do_not_hide_a_change(self, bundle_copy, name):
        open_bundle(bundle_copy)
        path = bundle_copy / name
        before = path.stat()
        while path.stat().st_ctime_ns == before.st_ctime_ns:  # at most one tick of the clock
            flip(path, 100)
            flip(path, 100)
        flip(path, 100)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        refused(bundle_copy, name, "damaged")
        refused(bundle_copy, name, "damaged", verify=True)

    def test_verify_catches_what_a_poisoned_cache_hides(self, bundle_copy, tmp_path):
        """A disk that loses a bit changes no time at all; the cache cannot know."""
        flip(bundle_copy / "noise.npy", -1 + (bundle_copy / "noise.npy").stat().st_size)
        store = integrity.HashCache(tmp_path / "cache")
        for name, entry in read_manifest(bundle_copy)["files"].items():
            store._entries[store._key(bundle_copy / name)] = entry["sha256"]
        store._dirty = True
        store.save()
        open_bundle(bundle_copy)
        refused(bundle_copy, "noise.npy", "damaged", verify=True)

    def test_fresh_files_are_not_cached(self, bundle_copy, monkeypatch):
        monkeypatch.setattr(integrity, "_SETTLED", 2.0)
        open_bundle(bundle_copy)
        assert self.hashed(bundle_copy) == sorted(set(FILES) - {"manifest.json"})

    @pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"a": 1}', b"[" * 100_000])
    def test_damaged_cache_is_rebuilt(self, bundle_copy, tmp_path, content):
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "hashes.json").write_bytes(content)
        open_bundle(bundle_copy)
        assert self.hashed(bundle_copy) == []

    def test_entries_that_are_no_hashes_are_dropped(self, bundle_copy, tmp_path):
        open_bundle(bundle_copy)
        store = tmp_path / "cache" / "hashes.json"
        store.write_text(json.dumps(dict.fromkeys(json.loads(store.read_text()), "abc")))
        open_bundle(bundle_copy)

    def test_unusable_cache_folder_is_harmless(self, bundle_copy, tmp_path, monkeypatch):
        (tmp_path / "file").write_bytes(b"")
        for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "cache"):
            monkeypatch.setenv("LARE2_CACHE", str(folder))
            (tmp_path / "cache" / "hashes.json").mkdir(parents=True, exist_ok=True)
            open_bundle(bundle_copy)
        assert (tmp_path / "file").read_bytes() == b""

    def test_cache_is_private_and_may_be_shared(self, bundle_copy, tmp_path):
        errors = []

        def work():
            try:
                open_bundle(bundle_copy)
            except Exception as error:
                errors.append(error)

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert errors == []
        assert (tmp_path / "cache").stat().st_mode & 0o077 == 0
        assert [path.name for path in (tmp_path / "cache").iterdir()] == ["hashes.json"]


class TestRememberedAudits:
    """A graph is walked once; what passed is remembered by its content, the rules and the weights that it may name."""

    @pytest.fixture(autouse=True)
    def _own_cache_folder(self, monkeypatch, tmp_path):
        monkeypatch.setenv("LARE2_CACHE", str(tmp_path / "cache"))

    @staticmethod
    def walked(folder, **options):
        """Names of the graphs that opening walks through."""
        seen = []
        original = onnx_audit.read_facts
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                onnx_audit,
                "read_facts",
                lambda content, where: seen.append(Path(where).name) or original(content, where),
            )
            open_bundle(folder, **options)
        return sorted(seen)

    def test_walked_once_unless_asked_for(self, bundle_copy):
        graphs = [name for name in FILES if name.endswith(".onnx")]
        assert self.walked(bundle_copy) == graphs
        assert self.walked(bundle_copy) == []
        assert self.walked(bundle_copy, verify=True) == graphs
        assert self.walked(bundle_copy) == []

    def test_a_changed_graph_is_audited(self, bundle_copy):
        open_bundle(bundle_copy)
        TestGraphs.edit(bundle_copy, lambda model: setattr(model.graph, "doc_string", "changed"))
        assert self.walked(bundle_copy) == [GRAPH]
        TestGraphs.edit(bundle_copy, lambda model: setattr(model.graph.node[3], "domain", "com.evil"))
        for _ in range(2):  # a refusal is not remembered, let alone as a pass
            refused(bundle_copy, "needs operators of 'com.evil'")

    def test_other_rules_or_weights_are_another_audit(self, bundle_copy, monkeypatch):
        cache = integrity.HashCache()
        (files,) = {v.files for v in open_bundle(bundle_copy).manifest.components["egre"] if v.graph == GRAPH}
        onnx_audit.audit_onnx(bundle_copy / GRAPH, files=files, cache=cache)
        with pytest.raises(BundleError, match="names weights"):
            onnx_audit.audit_onnx(bundle_copy / GRAPH, files=(), cache=cache)
        monkeypatch.setattr(onnx_audit, "_RULES", "others")
        assert self.walked(bundle_copy) == [name for name in FILES if name.endswith(".onnx")]

    @pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"a": 1}'])
    def test_damaged_and_unwritable_caches_are_not_used(self, bundle_copy, tmp_path, monkeypatch, content):
        graphs = [name for name in FILES if name.endswith(".onnx")]
        open_bundle(bundle_copy)
        store = tmp_path / "cache/hashes.json"
        digests = [key for key in json.loads(store.read_text()) if "\0" not in key]
        assert len(digests) == len(graphs)
        for stored in (content, json.dumps(dict.fromkeys(digests, "f" * 64)).encode()):
            store.write_bytes(stored)
            assert self.walked(bundle_copy) == graphs
        (tmp_path / "file").touch()
        monkeypatch.setenv("LARE2_CACHE", str(tmp_path / "file"))
        for _ in range(2):
            assert self.walked(bundle_copy) == graphs


class TestNoise:
    @pytest.mark.parametrize(
        "array",
        [
            np.array([{"a": 1}], dtype=object),
            np.zeros((5, 4, 32, 32), np.float64),
            np.zeros((5, 4, 32, 32), ">f4"),
            np.zeros((5, 4, 32, 32), [("x", np.float32)]),
            np.zeros((5, 4, 32, 31), np.float32),
            np.zeros((4, 4, 32, 32), np.float32),
            np.zeros((5, 4 * 32 * 32), np.float32),
            np.asfortranarray(np.zeros((5, 4, 32, 32), np.float32)),
            np.full((5, 4, 32, 32), np.nan, np.float32),
            np.zeros((), np.float32),
        ],
        ids=lambda array: f"{array.dtype} {array.shape}",
    )
    def test_other_arrays(self, bundle_copy, array):
        np.save(bundle_copy / "noise.npy", array, allow_pickle=True)
        reseal(bundle_copy)
        refused(bundle_copy, "noise.npy")

    def test_no_array(self, bundle_copy, tmp_path):
        good = (bundle_copy / "noise.npy").read_bytes()
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("noise.npy", good)
        header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
        shapes = ["(9" + "9" * 30 + ",)", "(0x" + "f" * 60 + ",)", "(" * 40, "1", "(-1,)"]
        bad = [header + f"{{'descr': '<f4', 'fortran_order': False, 'shape': {s}}}".encode().ljust(118) for s in shapes]
        bomb = pickle.dumps(_Bomb(tmp_path / "fired"))
        for content in (b"", b"\x93NUMPY", b"hello", bomb, archive.getvalue(), good[:-4], good + b"\0\0\0\0", *bad):
            (bundle_copy / "noise.npy").write_bytes(content)
            reseal(bundle_copy)
            refused(bundle_copy, "noise.npy")
        assert not (tmp_path / "fired").exists()


class _Bomb:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


class TestGraphs:
    """Graphs that their manifest vouches for, since whoever changes the one can change the other."""

    @staticmethod
    def edit(folder, change, name=GRAPH):
        model = onnx.load(folder / name, load_external_data=False)
        change(model)
        (folder / name).write_bytes(model.SerializeToString())
        reseal(folder)

    @staticmethod
    def point(location):
        def change(model):
            tensors = [t for t in model.graph.initializer if t.external_data]
            entry = next(entry for entry in tensors[-1].external_data if entry.key == "location")
            entry.value = location

        return change

    @pytest.mark.parametrize(
        ("name", "location"),
        [
            *((name, "../x") for name in FILES if name.endswith(".onnx")),
            *((GRAPH, location) for location in ("{tmp}/x", "noise.npy", "*/_ORT_MEM_ADDR_/*")),
        ],
    )
    def test_weights_outside_the_variant(self, bundle_copy, tmp_path, name, location):
        (tmp_path / "x").write_bytes(b"\0" * 10_000_000)
        location = location.format(tmp=tmp_path)
        self.edit(bundle_copy, self.point(location), name)
        refused(bundle_copy, f"{name} names weights in {location!r}")

    def test_the_weights_of_another_component(self, bundle_copy):
        self.edit(bundle_copy, self.point("unet_step.fp32.portable.data"))
        refused(bundle_copy, "unet_step.fp32.portable.data")

    def test_operators_of_others(self, bundle_copy):
        self.edit(bundle_copy, lambda model: setattr(model.graph.node[3], "domain", "com.evil"))
        refused(bundle_copy, "needs operators of 'com.evil'")

    def test_functions(self, bundle_copy):
        self.edit(bundle_copy, lambda model: model.functions.add(name="f", domain="x"))
        refused(bundle_copy, "field 25")

    @pytest.mark.parametrize("content", [pickle.dumps({"weights": [1, 2, 3]}), b"\x7fELF" + b"\0" * 60, b"ORTM" * 20])
    def test_something_else_under_a_graphs_name(self, bundle_copy, content):
        (bundle_copy / GRAPH).write_bytes(content)
        reseal(bundle_copy)
        refused(bundle_copy, GRAPH)

    def test_an_empty_graph_gets_no_further_than_the_engine(self, bundle_copy):
        (bundle_copy / GRAPH).write_bytes(b"")
        reseal(bundle_copy)
        with pytest.raises(Exception, match=r"cannot load egre.*build the bundle again"):
            Detector.load(bundle_copy)


def _pickle_beside(folder):
    (folder / "model.pkl").write_bytes(pickle.dumps({}))
    raw = read_manifest(folder)
    raw["files"]["model.pkl"] = {"size": 0, "sha256": ""}
    reseal(folder, raw)


DAMAGES = {
    "missing": lambda folder: (folder / "noise.npy").unlink(),
    "flipped": lambda folder: flip(folder / GRAPH),
    "pickle": _pickle_beside,
    "outside": lambda folder: TestGraphs.edit(folder, TestGraphs.point("../x")),
    "domain": lambda folder: TestGraphs.edit(folder, lambda m: setattr(m.graph.node[0], "domain", "x")),
    "manifest": lambda folder: (folder / "manifest.json").write_bytes(b"{"),
}


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("command", ["infer", "inspect"])
def test_the_command_says_it_in_one_line_with_code_2(bundle_copy, capsys, monkeypatch, photos, kind, command):
    DAMAGES[kind](bundle_copy)
    before = sorted(path.name for path in bundle_copy.iterdir())
    arguments = ["infer", str(photos[0]), "--bundle"] if command == "infer" else ["inspect"]
    monkeypatch.setattr(sys, "argv", ["lare2-rt", *arguments, str(bundle_copy)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"lare2-rt: {bundle_copy}")
    assert sorted(path.name for path in bundle_copy.iterdir()) == before


def test_every_component_is_there(embedded):
    assert set(open_bundle(embedded).manifest.components) == set(COMPONENTS)
