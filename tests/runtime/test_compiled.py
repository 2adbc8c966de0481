"""The cache of compiled engines: one maker at a time, nothing damaged or half written, nothing lost that is in use."""

import errno
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import threading
import time

import pytest

from lare2_rt import Detector
from lare2_rt.cli.cache import ClearOptions, ListOptions, clear, list_entries
from lare2_rt.engines.cache import cache as compiled
from lare2_rt.engines.cache.build import run_script
from lare2_rt.engines.cache.cache import CompiledCache, cache_limit
from lare2_rt.engines.cache.entry import ENTRY, Recipe
from lare2_rt.errors import EngineError, UsageError
from lare2_rt.host.locks import acquire, try_acquire
from tests.conftest import ROOT
from tests.fakes.engine import need_engine
from tests.helpers.commands import call, without_privileges
from tests.helpers.processes import environment

NOBODY = 65534


def recipe(name="a", *, size=100, **facts):
    return Recipe("fake", "1", f"mini {name}", {"onnx": name, **facts}, size)


def content(folder):
    (folder / "model.bin").write_bytes(b"m" * 60_000)
    (folder / "weights.bin").write_bytes(b"w" * 40_000)


def made(folder):
    """What lies in the folder of compiled engines, locks left out."""
    return sorted(path.name for path in folder.iterdir() if path.suffix not in (".use", ".build"))


class Builder:
    """Counts its calls."""

    def __init__(self, work=content):
        self.work, self.calls = work, 0

    def __call__(self, folder):
        self.calls += 1
        self.work(folder)


@pytest.fixture
def cache(tmp_path):
    return CompiledCache(tmp_path / "cache")


@pytest.fixture
def entry_folder(cache):
    """The folder of a made entry that nobody uses."""
    entry = cache.open(recipe(), content)
    entry.close()
    return entry.folder


def test_made_once_and_found_again(cache):
    build, lines = Builder(), []
    first = cache.open(recipe(), build, notify=lines.append)
    first.close()
    again = cache.open(recipe(), build, notify=lines.append)
    assert build.calls == 1
    assert (again.folder, again.digest) == (first.folder, first.digest)
    assert (again.folder / "model.bin").stat().st_size == 60_000
    (line,) = lines
    assert line.startswith("compiling mini a for fake 1 (0 MB), once: it is kept in ")
    again.close()
    again.close()


def test_only_the_owner_can_look_inside(cache, entry_folder):
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    cache.folder.chmod(0o777)
    cache.open(recipe(), content).close()
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_a_folder_of_somebody_else_is_refused(cache, entry_folder):
    os.chown(cache.folder, NOBODY, NOBODY)
    with pytest.raises(EngineError, match=r"other users can write to .* set LARE2_CACHE to a folder of your own"):
        cache.open(recipe(), content)


def test_everything_that_decides_the_result_is_in_the_key():
    keys = {
        recipe().key,
        recipe("b").key,
        recipe(device="gpu").key,
        recipe(device="cpu").key,
        Recipe("other", "1", "mini a", {"onnx": "a"}, 100).key,
        Recipe("fake", "2", "mini a", {"onnx": "a"}, 100).key,
    }
    assert len(keys) == 6
    assert Recipe("fake", "1", "another name", {"onnx": "a"}, 7).key == recipe().key


def flip(path):
    """One bit, with the size and the time of change put back."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def link(path):
    elsewhere = path.parent.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


DAMAGES = {
    "truncated": lambda folder: os.truncate(folder / "weights.bin", 39_999),
    "flipped": lambda folder: flip(folder / "model.bin"),
    "missing": lambda folder: (folder / "model.bin").unlink(),
    "added": lambda folder: (folder / "more.bin").touch(),
    "linked": lambda folder: link(folder / "model.bin"),
    "no list": lambda folder: (folder / ENTRY).unlink(),
    "bad list": lambda folder: (folder / ENTRY).write_text('{"files": 3}'),
    "list of another": lambda folder: (folder / ENTRY).write_text(
        (folder / ENTRY).read_text().replace(folder.name, "0" * 64)
    ),
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_again(cache, entry_folder, damage):
    DAMAGES[damage](entry_folder)
    build, lines = Builder(), []
    entry = cache.open(recipe(), build, notify=lines.append)
    entry.close()
    assert build.calls == 1
    assert lines[0] == "the compiled mini a of fake is damaged; it is compiled again"
    assert len(lines) == 2
    assert (entry.folder / "weights.bin").read_bytes() == b"w" * 40_000
    assert made(cache.folder) in ([entry.folder.name], [entry.folder.name, "elsewhere"])


def test_the_damaged_is_replaced_while_somebody_uses_it(cache, entry_folder):
    """Whoever opened it keeps it; nobody waits for him, he may be this very program."""
    user = cache.open(recipe(), content)
    with (user.folder / "model.bin").open("rb") as kept:
        os.truncate(user.folder / "weights.bin", 0)
        other = cache.open(recipe(), content)
        assert (other.folder / "weights.bin").stat().st_size == 40_000
        assert len(kept.read()) == 60_000
    user.close()
    other.close()


CODE = """
import sys, time
from pathlib import Path
from lare2_rt.engines.cache.cache import CompiledCache
from lare2_rt.engines.cache.entry import Recipe
root, log, others = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

def tell(line):
    with log.open("a") as stream:
        stream.write(line + "\\n")

def build(folder):
    (folder / "model.bin").write_bytes(b"half")
    while log.read_text().count("waiting for another process, which compiles mini a for fake") < others:
        time.sleep(0.01)
    (folder / "model.bin").write_bytes(b"whole")

recipe = Recipe("fake", "1", "mini a", {"onnx": "a"}, 10)
entry = CompiledCache(root).open(recipe, build, notify=tell)
print("opened", (entry.folder / "model.bin").read_text(), entry.digest)
"""


def start(*arguments):
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once_make_it_once(cache, tmp_path):
    """The maker goes on when the two others have said that they wait."""
    running = [start(cache.root, tmp_path / "log", 2) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in running]
    assert [error for _, error in outputs] == [""] * 3
    (line,) = {out for out, _ in outputs}
    assert line.startswith("opened whole ")
    told = [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(told) == ["compiling", "waiting", "waiting"]


def test_what_a_killed_process_left_is_swept(cache, tmp_path):
    process = start(cache.root, tmp_path / "log", 1)  # waits for somebody who never comes
    while not list(cache.folder.glob(".*.tmp/model.bin")):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert cache.entries() == []
    entry = cache.open(recipe(), content)
    assert made(cache.folder) == [entry.folder.name]
    entry.close()


@pytest.mark.parametrize(
    "error",
    [
        EngineError("it does not compile", remedy="update it"),
        KeyboardInterrupt(),
        OSError(errno.ENOSPC, "No space left"),
    ],
)
def test_failing_leaves_nothing(cache, error):
    def build(folder):
        content(folder)
        raise error

    if isinstance(error, OSError):
        expected = pytest.raises(EngineError, match=r"mini a of fake cannot be kept in .*: no space left; free some")
    else:
        expected = pytest.raises(type(error))
    with expected:
        cache.open(recipe(), build)
    assert list(cache.folder.iterdir()) == []


def test_a_disk_that_is_full_when_the_list_is_written(cache, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EngineError, match=r"cannot be kept in .*: no space left on device; free some space or set"):
        cache.open(recipe(), content)
    assert list(cache.folder.iterdir()) == []


def test_too_little_space_is_told_before(cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 3_000_000))
    build = Builder()
    with pytest.raises(EngineError, match=r"needs 5 MB in .* where 3 MB are free; free some space or set LARE2_CACHE"):
        cache.open(recipe(size=5_000_000), build)
    assert build.calls == 0


@pytest.mark.parametrize("engine", ["openvino", "winograd"])
def test_a_full_disk_in_a_real_compiler(engine, embedded, tmp_path):
    """What a library writes and what a script of ours writes: both end in the sentence, and in nothing else."""
    for name in ("openvino", "onnx"):
        need_engine(name)
    code = (
        "import sys; from lare2_rt import Detector\n"
        "Detector.load(sys.argv[1], engine=sys.argv[2], threads=1, cache=sys.argv[3])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, embedded, engine, tmp_path / "cache"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(PYTHONDONTWRITEBYTECODE=1),  # else what Python compiles is kept, cut off at the limit
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert f"vae_encoder batch 1 of {engine} cannot be kept in" in run.stderr
    assert "file too large; free some space or set LARE2_CACHE to another folder" in run.stderr
    assert list((tmp_path / "cache/compiled").iterdir()) == []


@pytest.mark.parametrize(("raised", "number"), [(errno.ENOSPC, errno.ENOSPC), (None, errno.EIO)])
@pytest.mark.parametrize("said", ["", "loading\n", "loading", "28\n"])
def test_what_a_library_prints_hides_no_error_number(raised, number, said, tmp_path, monkeypatch):
    (tmp_path / "printing.py").write_text(
        "import sys; from lare2_rt.host.child import written_or_said\n"
        "def fail(): raise OSError(*eval(sys.argv[-1]))\n"
        "def main(said, error): sys.stdout.write(said); written_or_said(fail)"
    )
    monkeypatch.setenv("PYTHONPATH", environment(tmp_path)["PYTHONPATH"])
    error = repr(("no number",) if raised is None else (raised, "full"))
    with pytest.raises(OSError, match=os.strerror(number)) as told:
        run_script("printing", [said, error], cwd=tmp_path, doing="fail", remedy="none")
    assert told.value.errno == number


def test_read_only_cache(cache, entry_folder):
    """What is there is used; what is not cannot be made, and one sentence says so."""
    code = (
        "import sys; from pathlib import Path\n"
        "from lare2_rt.engines.cache.cache import CompiledCache; from lare2_rt.engines.cache.entry import Recipe\n"
        "from tests.runtime.test_compiled import recipe, content\n"
        "cache = CompiledCache(Path(sys.argv[1]))\n"
        "print(cache.open(recipe(), None).folder.name)\n"
        "cache.open(recipe('b'), content)"
    )
    folders = [cache.root, cache.folder, entry_folder]
    for folder in folders:
        folder.chmod(0o500)
    try:
        run = subprocess.run(
            [sys.executable, "-c", code, cache.root],
            capture_output=True,
            text=True,
            check=False,
            env=environment(ROOT),
            preexec_fn=without_privileges,
        )
    finally:
        for folder in folders:
            folder.chmod(0o700)
    assert run.stdout.strip() == entry_folder.name, run.stderr
    assert "the compiled mini b of fake cannot be kept in" in run.stderr
    assert "permission denied; free some space or set LARE2_CACHE to another folder" in run.stderr


class TestClear:
    def test_in_use_stays(self, cache):
        used, idle = cache.open(recipe("a"), content), cache.open(recipe("b"), content)
        idle.close()
        gone, kept = cache.clear()
        assert [entry.label for entry in gone] == ["mini b"]
        assert [(entry.label, entry.in_use) for entry in kept] == [("mini a", True)]
        assert (used.folder / "model.bin").exists()
        used.close()
        gone, kept = cache.clear()
        assert ([entry.label for entry in gone], kept) == (["mini a"], [])
        assert list(cache.folder.iterdir()) == []

    def test_by_engine(self, cache):
        for engine in ("one", "two"):
            cache.open(Recipe(engine, "1", "mini", {}, 1), content).close()
        gone, kept = cache.clear("one")
        assert ([entry.engine for entry in gone], kept) == (["one"], [])
        assert [entry.engine for entry in cache.entries()] == ["two"]

    def test_damaged_entries_go_too(self, cache, entry_folder):
        (entry_folder / ENTRY).write_text("garbage")
        assert [entry.engine for entry in cache.entries()] == [""]
        cache.clear()
        assert made(cache.folder) == []

    def test_a_discarded_entry_is_made_again(self, cache):
        build = Builder()
        cache.open(recipe(), build).discard()
        assert made(cache.folder) == []
        cache.open(recipe(), build).close()
        assert build.calls == 2


class TestLimit:
    @pytest.fixture
    def small(self, cache, monkeypatch):
        """A cache that holds two and a half entries, with three in it that were used in the order b, c, a."""
        made = CompiledCache(cache.root, limit=10**9)
        for age, name in enumerate("acb"):
            entry = made.open(recipe(name, size=100_000), content)
            entry.close()
            os.utime(entry.folder / ENTRY, (1_000_000 - age, 1_000_000 - age))
        return CompiledCache(cache.root, limit=250_000)

    def names(self, cache):
        return sorted(entry.label[-1] for entry in cache.entries())

    def test_what_was_not_used_for_longest_goes(self, small):
        lines = []
        small.open(recipe("d", size=100_000), content, notify=lines.append).close()
        assert self.names(small) == ["a", "d"]
        removed = [line for line in lines if line.startswith("removed")]
        assert [line.split(":")[0] for line in removed] == ["removed mini b of fake", "removed mini c of fake"]
        assert "LARE2_CACHE_LIMIT" in removed[0]

    def test_use_counts(self, small):
        small.open(recipe("b"), content).close()
        small.open(recipe("d", size=100_000), content).close()
        assert self.names(small) == ["b", "d"]

    def test_what_is_in_use_stays(self, small):
        entries = [small.open(recipe(name), content) for name in "bc"]
        small.open(recipe("d", size=100_000), content).close()
        assert self.names(small) == ["b", "c", "d"]
        for entry in entries:
            entry.close()

    @pytest.mark.parametrize(
        ("text", "size"), [("", 20e9), ("500", 500), ("500MB", 5e8), ("1.5g", 1.5e9), (" 2 TB ", 2e12), ("0", 0)]
    )
    def test_sizes(self, monkeypatch, text, size):
        monkeypatch.setenv("LARE2_CACHE_LIMIT", text)
        assert cache_limit() == size

    @pytest.mark.parametrize("text", ["much", "-1", "5 XB", "1e9", "٣", "nan"])
    def test_no_sizes(self, monkeypatch, text):
        monkeypatch.setenv("LARE2_CACHE_LIMIT", text)
        with pytest.raises(UsageError) as told:
            CompiledCache()
        assert told.value.problem.startswith(f"LARE2_CACHE_LIMIT is {text!r}")
        assert "2G" in told.value.remedy


class TestLocks:
    def test_kinds(self, tmp_path):
        path = tmp_path / "lock"
        one, two = acquire(path, "shared"), acquire(path, "shared")
        assert try_acquire(path, "exclusive") is None
        one.release()
        assert try_acquire(path, "exclusive") is None
        two.release()
        alone = try_acquire(path, "exclusive")
        assert try_acquire(path, "shared") is None
        alone.release()

    def test_a_lock_whose_file_was_removed_guards_nothing(self, tmp_path):
        """Whoever waited for it takes the new file's, as the next one will."""
        path = tmp_path / "lock"
        first, told, got = acquire(path, "exclusive"), threading.Event(), []
        waiting = threading.Thread(target=lambda: got.append(acquire(path, "exclusive", waiting=told.set)))
        waiting.start()
        assert told.wait(10)
        time.sleep(0.3)  # until it waits for the lock itself
        first.release(remove=True)
        waiting.join(10)
        assert path.exists()
        assert try_acquire(path, "exclusive") is None
        got[0].release()


class TestCommand:
    @pytest.fixture
    def filled(self, tmp_path, monkeypatch):
        monkeypatch.setenv("LARE2_CACHE", str(tmp_path / "cache"))
        cache = CompiledCache()
        for engine in ("openvino", "winograd"):
            cache.open(Recipe(engine, "1", "mini [bold]\x1b", {}, 1), content).close()
        return cache

    def test_ls(self, filled, capsys):
        run = call("cache", "ls")
        assert run.returncode == 0
        assert run.stdout.count("mini [bold]\\x1b   0.1 MB") == 2
        assert f"2 compiled, 0.2 MB, in {filled.folder}, which may hold 20 GB" in run.stderr
        list_entries(ListOptions(engine="winograd", as_json=True))
        document = json.loads(capsys.readouterr().out)
        (entry,) = document["entries"]
        assert (entry["engine"], entry["in_use"], document["folder"]) == ("winograd", False, str(filled.folder))
        assert entry["size"] == sum(path.stat().st_size for path in (filled.folder / entry["key"]).iterdir())

    def test_clear(self, filled, capsys):
        held = filled.open(Recipe("winograd", "1", "", {}, 1), content)
        run = call("cache", "clear", "--engine", "openvino")
        assert (run.returncode, run.stdout) == (0, "")
        assert "removed 1 compiled engines (0.1 MB) and 0 measurements" in run.stderr
        clear(ClearOptions())
        told = capsys.readouterr().err
        assert "removed 0 compiled engines" in told
        assert "1 stay because they are in use" in told
        held.close()
        clear(ClearOptions())
        assert filled.entries() == []

    def test_empty(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setenv("LARE2_CACHE", str(tmp_path / "nowhere"))
        list_entries(ListOptions(as_json=True))
        assert json.loads(capsys.readouterr().out)["entries"] == []
        clear(ClearOptions())
        assert not (tmp_path / "nowhere").exists()

    def test_wrong_requests(self, monkeypatch):
        run = call("cache", "clear", "--engine", "cuda")
        assert (run.returncode, run.stdout) == (2, "")
        assert "there is no engine 'cuda'" in run.stderr
        monkeypatch.setenv("LARE2_CACHE_LIMIT", "much")
        with pytest.raises(UsageError, match="LARE2_CACHE_LIMIT is 'much'"):
            list_entries(ListOptions())


def test_the_detector_takes_the_folder(embedded, tmp_path):
    need_engine("openvino")
    lines = []
    with Detector.load(embedded, engine="openvino", threads=1, cache=tmp_path / "mine", notify=lines.append):
        assert [entry.in_use for entry in CompiledCache(tmp_path / "mine").entries()] == [True] * 4
    assert [entry.in_use for entry in CompiledCache(tmp_path / "mine").entries()] == [False] * 4
    assert [line.split()[0] for line in lines] == ["compiling"] * 4 + ["checking"]
    assert len(list((tmp_path / "mine/checks").iterdir())) == 1
    assert compiled.cache_folder() != tmp_path / "mine"
