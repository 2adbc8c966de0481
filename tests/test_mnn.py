"""MNN: its converter's traps, a clean standard output, and exactness before speed."""

import contextlib
import ctypes
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from fake_engine import need_engine
from processes import environment

from lare2_rt import Detector, EngineError
from lare2_rt.bundle import open_bundle
from lare2_rt.compiled import CompiledCache
from lare2_rt.engines import EngineOptions, load_engine, mnn_library
from lare2_rt.engines import mnn as adapter
from lare2_rt.engines.mnn import MnnEngine
from lare2_rt.engines.onnxruntime import OnnxRuntimeEngine
from lare2_rt.engines.stdio import descriptor_turned_away, quiet_c_output, quiet_c_stream
from lare2_rt.metrics import difference
from lare2_rt.preprocess import preprocess

pytestmark = pytest.mark.usefixtures("every_core")

needs_mnn = pytest.mark.usefixtures("installed")


@pytest.fixture(scope="module")
def installed():
    need_engine("mnn")


@pytest.fixture(scope="module")
def bundle(embedded):
    return open_bundle(embedded)


@pytest.fixture(scope="module")
def pixels(bundle, rocket):
    pixels = preprocess(rocket, bundle.manifest.policy)
    return pixels.image[None], pixels.crop[None]


@pytest.fixture(scope="module")
def run(bundle, pixels):
    """Run the rocket through an engine as it is set; returns the output and what was opened."""
    import lare2_rt.engines

    def run(engine, *, threads=1, cache=None):
        opened = lare2_rt.engines.load_engine(engine, bundle, EngineOptions(threads=threads, cache=cache))
        output = opened.run(*pixels)
        opened.close()
        return output, opened.info

    return run


HOOK = """
import os, socket, sys

def tell(what):
    with open(os.environ["WATCHED"], "a") as log:
        log.write(what + "\\n")

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("MNN", "_tools", "aliyun", "pip"):
            tell(name)

def refuse(*arguments, **options):
    tell("network")
    raise OSError("no network in this test")

socket.socket.connect = socket.getaddrinfo = refuse
sys.meta_path.insert(0, Watch())
"""


@needs_mnn
def test_its_tools_are_never_imported_and_json_stays_json(embedded, rocket, tmp_path):
    """They install other packages and report over the network. Every Python process of a first run is watched."""
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    watched = environment(tmp_path, WATCHED=tmp_path / "log", LARE2_CACHE=tmp_path / "cache")
    command = ["infer", rocket, "--bundle", embedded, "--engine", "mnn", "--format", "json"]
    run = subprocess.run(
        [sys.executable, "-m", "lare2_rt", *command], env=watched, capture_output=True, text=True, check=True
    )
    (record,) = json.loads(run.stdout)  # the library and its converter both print to standard output
    assert record["engine"]["name"] == "mnn"
    assert record["probability"] is not None
    seen = (tmp_path / "log").read_text().split()
    assert seen.count("_tools") == 4  # one converter process for each component
    assert "MNN.nn" in seen
    assert not [name for name in seen if name.startswith(("MNN.tools", "aliyun", "pip", "network"))]


def test_no_source_names_the_tools():
    """Neither the module nor the command that goes with it; its name is in this file, which is left out."""
    forbidden = re.compile(r"MNN\.tools|MNN import tools|[\"']mnnconvert[\"']|[\"']mnnquant[\"']")
    sources = [
        path for folder in ("runtime", "export", "lare2_ref", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    ]
    assert ROOT / "runtime/lare2_rt/engines/mnn_convert.py" in sources
    for path in sources:
        assert not forbidden.search(path.read_text()), path


def printf(text):
    libc = ctypes.CDLL(None)
    libc.printf(text.encode())
    libc.fflush(None)


class TestStandardOutput:
    """In processes of their own, as pytest has its own ideas about descriptor 1."""

    def out(self, code):
        prologue = "import os, sys, threading\nfrom test_mnn import printf; from lare2_rt.engines.stdio import *\n"
        command = [sys.executable, "-c", prologue + code]
        tests = environment(Path(__file__).parent)
        return subprocess.run(command, capture_output=True, text=True, check=True, env=tests).stdout

    @pytest.mark.parametrize("block", [quiet_c_output, quiet_c_stream, descriptor_turned_away])
    def test_what_c_prints_goes_nowhere_meanwhile(self, block):
        code = (
            "printf('before ')\n"
            f"with {block.__name__}(): printf('hidden '); import ctypes; ctypes.CDLL(None).printf(b'pending ')\n"
            "printf('after')\n"
        )
        assert self.out(code) == "before after"

    def test_python_loses_nothing(self):
        """Only C's own stream is turned away: other threads and child processes write on."""
        code = (
            "import subprocess\n"
            "with quiet_c_output():\n"
            "    thread = threading.Thread(target=lambda: print('python', flush=True)); thread.start(); thread.join()\n"
            "    os.write(1, b'descriptor\\n')\n"
            "    subprocess.run(['echo', 'child'])\n"
        )
        assert self.out(code) == "python\ndescriptor\nchild\n"

    def test_an_error_puts_it_back(self):
        code = (
            "for block in (quiet_c_output, descriptor_turned_away):\n"
            "    try:\n        with block(): raise ValueError\n"
            "    except ValueError: printf('back ')\n"
        )
        assert self.out(code) == "back back "

    def test_threads_take_turns(self):
        code = (
            "def work():\n"
            "    for _ in range(200):\n"
            "        with quiet_c_output(): printf('hidden')\n"
            "threads = [threading.Thread(target=work) for _ in range(4)]\n"
            "for thread in threads: thread.start()\n"
            "for thread in threads: thread.join()\n"
            "printf('seen')\n"
        )
        assert self.out(code) == "seen"

    @needs_mnn
    def test_loading_while_others_print(self, embedded):
        """Two threads load, one prints: every one of its lines arrives, and nothing else."""
        code = (
            "from lare2_rt.bundle import open_bundle; from lare2_rt.engines import EngineOptions, load_engine\n"
            "from lare2_rt.engines.mnn import MnnEngine\n"
            f"bundle = open_bundle({str(embedded)!r})\n"
            "load = lambda: load_engine(MnnEngine(), bundle, EngineOptions(threads=1)).close()\n"
            "loaders = [threading.Thread(target=load) for _ in range(2)]\n"
            "for thread in loaders: thread.start()\n"
            "number = 0\n"
            "while any(thread.is_alive() for thread in loaders) or number < 100:\n"
            "    print(number, flush=True); number += 1\n"
        )
        lines = self.out(code).splitlines()
        assert lines == [str(number) for number in range(len(lines))]
        assert len(lines) >= 100


THREADS = """
import os, sys
from pathlib import Path
from lare2_rt.bundle import open_bundle
from lare2_rt.engines import EngineOptions, load_engine
from lare2_rt.engines.mnn import MnnEngine
from lare2_rt.engines.onnxruntime import OnnxRuntimeEngine
from lare2_rt.preprocess import preprocess

bundle = open_bundle(sys.argv[1])
pixels = preprocess(sys.argv[2], bundle.manifest.policy)

def work():
    return {task.name: int((task / "schedstat").read_text().split()[0]) for task in Path("/proc/self/task").iterdir()}

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
for threads in map(int, sys.argv[3:]):
    running = load_engine(MnnEngine(), bundle, EngineOptions(threads=threads))
    before = work()
    running.run(pixels.image[None], pixels.crop[None])
    spent = [after - before.get(task, 0) for task, after in work().items()]
    # Helpers of a pool that is larger than needed wait actively, with little effect.
    print(running.info.threads, sum(one > max(spent) / 3 for one in spent))
    running.close()
"""


@needs_mnn
def test_the_number_of_threads_is_used(embedded, rocket):
    """By the processor time of each thread, on a single processor: it does not depend on how many there are."""
    command = [sys.executable, "-c", THREADS, embedded, rocket, "3", "1"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["3", "3", "1", "1"]


POOL = """
import sys
from test_engine_contract import bits, digest
from lare2_rt.bundle import open_bundle
from lare2_rt.engines import EngineOptions, load_engine
from lare2_rt.engines.mnn import MnnEngine
from lare2_rt.engines.onnxruntime import OnnxRuntimeEngine
from lare2_rt.preprocess import preprocess
bundle = open_bundle(sys.argv[1])
pixels = preprocess(sys.argv[2], bundle.manifest.policy)
for threads in map(int, sys.argv[3:]):
    try:
        running = load_engine(MnnEngine(), bundle, EngineOptions(threads=threads))
        print(digest(bits(running.run(pixels.image[None], pixels.crop[None]))))
        running.close()
    except Exception as error:
        print(error)
"""


@pytest.mark.slow
@needs_mnn
def test_threads_do_not_depend_on_what_was_opened_before(embedded, rocket):
    """The same number gives the same bits, or is refused."""

    def outputs(*threads):
        command = [sys.executable, "-c", POOL, embedded, rocket, *map(str, threads)]
        tests = environment(Path(__file__).parent)
        return subprocess.run(command, capture_output=True, text=True, check=True, env=tests).stdout.splitlines()

    three, two, one = outputs(3, 2, 1)
    assert len({three, two, one}) == 3
    again = outputs(1, 2, 3)
    assert again[:2] == [one, two]
    assert again[2] == (
        "mnn has 2 threads in this process since it was first used and cannot have 3; ask for at most 2 threads, or "
        "start another process"
    )


@needs_mnn
class TestSettings:
    def test_winograd_level_is_in_the_key_and_decides_the_bits(self, run):
        exact, default, fast = (run(MnnEngine(winograd_level=level)) for level in (0, 1, 3))
        assert len({info.build_key for _, info in (exact, default, fast)}) == 3
        assert len({info.compiled for _, info in (exact, default, fast)}) == 1  # it is set when the model is loaded
        assert not np.array_equal(default[0].lare, fast[0].lare)
        assert run(MnnEngine())[1].build_key == default[1].build_key

    def test_what_others_set_in_between_changes_nothing(self, bundle, pixels, run):
        """Until a model has run, the last hint that anybody gave in the process would count."""
        import MNN.nn

        expected, _ = run(MnnEngine())
        ours = load_engine(MnnEngine(), bundle, EngineOptions(threads=1))
        other = MNN.nn.create_runtime_manager(({"backend": "CPU", "numThread": 1, "precision": "high"},))
        other.set_hint(3, 3)
        fast = load_engine(MnnEngine(winograd_level=3), bundle, EngineOptions(threads=1))
        for _ in range(2):
            assert np.array_equal(ours.run(*pixels).lare, expected.lare)
            assert not np.array_equal(fast.run(*pixels).lare, expected.lare)
        ours.close()
        fast.close()

    def test_weights_in_a_file_of_their_own(self, run, tmp_path):
        """As models of 2 GB need it; the bits are the same."""
        inside, _ = run(MnnEngine())
        outside, _ = run(MnnEngine(external_from=0), cache=tmp_path)
        for name in ("lare", "embedding", "logits", "attention"):
            assert np.array_equal(getattr(outside, name), getattr(inside, name))
        for entry in CompiledCache(tmp_path).entries():
            files = {path.name: path.stat().st_size for path in (tmp_path / "compiled" / entry.key).iterdir()}
            assert set(files) == {"entry.json", "model.mnn", "model.mnn.weight"}
            assert files["model.mnn.weight"] > files["model.mnn"]


@needs_mnn
def test_pixels_go_in_as_they_are(bundle):
    """MNN takes the uint8 inputs itself: every value from 0 to 255 arrives as what it is."""
    values = np.arange(256 * 256 * 3, dtype=np.uint32).reshape(1, 256, 256, 3) * 7 % 256
    image, crop = values.astype(np.uint8), values[:, :224, :224].astype(np.uint8)
    outputs = []
    for engine in (MnnEngine(), OnnxRuntimeEngine()):
        opened = load_engine(engine, bundle, EngineOptions(threads=1, batch=1))
        outputs.append(opened.run(image, crop))
        opened.close()
    assert difference(outputs[0].lare, outputs[1].lare).relative_l2 < 5e-4
    assert difference(outputs[0].embedding, outputs[1].embedding).relative_l2 < 1e-5


@needs_mnn
class TestConversion:
    @pytest.fixture
    def egre(self, bundle):
        return bundle.manifest.components["egre"][0]

    @pytest.fixture
    def convert(self, bundle, egre, tmp_path):
        def convert(source=bundle, **options):
            (tmp_path / "out").mkdir()
            adapter._convert(source, egre, tmp_path / "out", **{"external_from": 1 << 40, **options})
            return sorted(path.name for path in (tmp_path / "out").iterdir())

        return convert

    def test_only_the_result_remains(self, convert):
        assert convert() == ["model.mnn"]

    def test_a_graph_that_does_not_convert(self, convert, bundle, egre, bundle_copy):
        """The converter answers True to this as well."""
        (bundle_copy / egre.graph).write_bytes(b"garbage")
        with pytest.raises(EngineError, match=r"^mnn cannot convert egre\S*: .*rror.*; update mnn, or choose another"):
            convert(replace(bundle, path=bundle_copy))

    def test_a_result_that_is_too_small(self, convert, monkeypatch):
        real = mnn_library.run_script

        def half(*arguments, cwd, **options):
            printed = real(*arguments, cwd=cwd, **options)
            os.truncate(cwd / "model.mnn", (cwd / "model.mnn").stat().st_size // 2)
            return printed

        monkeypatch.setattr(mnn_library, "run_script", half)
        with pytest.raises(EngineError, match=r"mnn cannot convert egre\S*: its result is not complete; update mnn"):
            convert()

    def test_a_bundle_in_a_folder_with_a_strange_name(self, convert, bundle, bundle_copy, tmp_path):
        strange = tmp_path / os.fsdecode(b"caf\xe9 [1]\n*")
        bundle_copy.rename(strange)
        assert convert(replace(bundle, path=strange)) == ["model.mnn"]

    def test_without_links(self, convert, monkeypatch):
        def refuse(*arguments):
            raise OSError("no links here")

        monkeypatch.setattr(Path, "symlink_to", refuse)
        assert convert() == ["model.mnn"]

    def test_a_module_of_the_users_folder_is_not_taken_for_the_converter(self, convert, tmp_path, monkeypatch):
        (tmp_path / "_tools.py").write_text("raise SystemExit('mine')")
        monkeypatch.chdir(tmp_path)
        assert convert() == ["model.mnn"]

    def test_a_cached_model_that_cannot_be_loaded_is_removed(self, bundle, tmp_path, monkeypatch):
        monkeypatch.setattr(
            adapter, "_convert", lambda b, v, folder, external_from: (folder / "model.mnn").write_bytes(b"no model")
        )
        with pytest.raises(
            EngineError, match=r"cannot load what it converted from vae_encoder.*removed from the cache"
        ):
            load_engine(MnnEngine(), bundle, EngineOptions(threads=1, cache=tmp_path))
        names = {entry.label.split()[1] for entry in CompiledCache(tmp_path).entries()}
        assert names == {"unet_step", "clip_backbone", "egre"}

    def test_newer_onnx_is_refused(self, bundle):
        newer = tuple(variant.model_copy(update={"opset": 21}) for variant in bundle.manifest.components["egre"])
        components = {**bundle.manifest.components, "egre": newer}
        changed = replace(bundle, manifest=bundle.manifest.model_copy(update={"components": components}))
        assert "up to opset 20 and the bundle has 21" in MnnEngine().why_not(changed, EngineOptions(threads=1))


@needs_mnn
def test_a_failing_call_is_a_sentence(bundle, pixels, monkeypatch):
    running = load_engine(MnnEngine(), bundle, EngineOptions(threads=1))
    from MNN import expr

    def fail(*arguments):
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(expr, "const", fail)
    with pytest.raises(EngineError, match=r"^mnn failed in vae_encoder\S*: out of memory; close other programs"):
        running.run(*pixels)
    running.close()


def test_other_precisions_and_absence(bundle, monkeypatch):
    engine = MnnEngine()
    monkeypatch.setattr(adapter, "installed_version", lambda name: "3.6.1")
    assert "fp32 here, not in fp16" in engine.why_not(bundle, EngineOptions(threads=1, precision="fp16"))
    monkeypatch.setattr(adapter, "installed_version", lambda name: None)
    assert engine.why_not(bundle, EngineOptions(threads=1)) == "mnn is not installed: pip install 'lare2-rt[mnn]'"


@needs_mnn
def test_broken_installation(embedded, monkeypatch):
    for name in ("MNN", "MNN.nn"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError, match=r"installed but cannot be imported .*pip install --force-reinstall mnn"):
        Detector.load(embedded, engine="mnn", threads=1)


@needs_mnn
def test_opened_in_one_thread_and_run_in_another(bundle, pixels, run):
    expected, _ = run(MnnEngine())
    running, found = load_engine(MnnEngine(), bundle, EngineOptions(threads=1)), []
    thread = threading.Thread(target=lambda: found.append(running.run(*pixels)))
    thread.start()
    thread.join()
    with contextlib.closing(running):
        assert np.array_equal(found[0].lare, expected.lare)
