"""Renames that replace nothing, folders that are swapped, and what a kill in between leaves."""

import contextlib
import errno
import fcntl
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lare2_export.build.staging import BuildError, Staging
from lare2_rt import Detector
from lare2_rt.bundle.locate import locate_bundle
from lare2_rt.cli import main
from lare2_rt.errors import BundleError
from lare2_rt.host import atomic as rename, locks, replace_folder as swap
from tests.fakes.engine import FakeEngine, use_engines

KNOWN = ("renameat2", "links", "neither")
OLD = ".engines.old-0123abcd"


@pytest.fixture(params=KNOWN)
def system(request, monkeypatch):
    """What the file system can do."""
    if request.param != "renameat2":
        monkeypatch.setattr(rename, "_renameat2", lambda source, target, flag: False)
    if request.param == "neither":

        def refuse(self, target):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(Path, "hardlink_to", refuse)
    return request.param


def folder(path, content):
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(content)
    return path


def names(path):
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run the command in this process and folder; returns (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lare2-rt", *map(os.fspath, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return (left.value.code, *capsys.readouterr())

    return run


class TestRename:
    def test_a_free_name(self, system, tmp_path):
        (tmp_path / "a").write_text("a")
        rename.rename_new(tmp_path / "a", tmp_path / "b")
        folder(tmp_path / "c", "c")
        rename.rename_new(tmp_path / "c", tmp_path / "d")
        assert names(tmp_path) == ["b", "d"]
        assert (tmp_path / "b").read_text() == "a"

    @pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere")])
    def test_a_taken_name(self, system, tmp_path, make):
        make(tmp_path / "b")
        (tmp_path / "a").write_text("a")
        folder(tmp_path / "c", "c")
        for source in ("a", "c"):
            with pytest.raises(FileExistsError):
                rename.rename_new(tmp_path / source, tmp_path / "b")
        assert names(tmp_path) == ["a", "b", "c"]
        assert (tmp_path / "a").read_text() == "a"

    def test_nothing_to_rename(self, system, tmp_path):
        with pytest.raises(FileNotFoundError):
            rename.rename_new(tmp_path / "a", tmp_path / "b")

    def test_exchange(self, tmp_path):
        one, other = folder(tmp_path / "one", "1"), folder(tmp_path / "other", "2")
        if not rename.exchange(one, other):
            pytest.skip("this file system cannot exchange two names")
        assert [(path / "manifest.json").read_text() for path in (one, other)] == ["2", "1"]
        with pytest.raises(FileNotFoundError):
            rename.exchange(one, tmp_path / "absent")

    @pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM])
    def test_systems_that_do_not_know_the_call(self, tmp_path, monkeypatch, number):
        def renameat2(*arguments):
            rename.ctypes.set_errno(number)
            return -1

        monkeypatch.setattr(
            rename.ctypes, "CDLL", lambda *a, **k: type("C", (), {"renameat2": staticmethod(renameat2)})
        )
        (tmp_path / "a").touch()
        assert not rename.exchange(tmp_path / "a", tmp_path / "b")
        rename.rename_new(tmp_path / "a", tmp_path / "b")
        assert names(tmp_path) == ["b"]

    def test_a_c_library_without_the_call(self, tmp_path, monkeypatch):
        monkeypatch.setattr(rename.ctypes, "CDLL", lambda *a, **k: object())
        (tmp_path / "a").touch()
        rename.rename_new(tmp_path / "a", tmp_path / "b")
        assert names(tmp_path) == ["b"]


class TestSwap:
    @pytest.mark.parametrize("existing", [True, False])
    def test_in(self, system, tmp_path, existing):
        new, out = folder(tmp_path / ".engines.building", "new"), tmp_path / "engines"
        if existing:
            folder(out, "old")
        folder(tmp_path / OLD, "of an earlier kill")
        folder(tmp_path / ".engines.old-mine", "somebody's own")
        swap.swap_in(new, out)
        assert names(tmp_path) == [".engines.old-mine", "engines"]
        assert (out / "manifest.json").read_text() == "new"

    def test_there_is_always_one(self, tmp_path, monkeypatch):
        """After each step of a swap a bundle stands under the name; the kernel does each in one go."""
        if not rename.exchange(folder(tmp_path / "one", ""), folder(tmp_path / "other", "")):
            pytest.skip("this file system cannot exchange two names")
        new, out = folder(tmp_path / ".engines.building", "new"), folder(tmp_path / "engines", "old")
        seen = []

        def watched(step):
            def watch(*arguments):
                result = step(*arguments)
                seen.append((out / "manifest.json").read_text() if out.exists() else "nothing")
                return result

            return watch

        monkeypatch.setattr(swap, "exchange", watched(swap.exchange))
        monkeypatch.setattr(Path, "rename", watched(Path.rename))
        swap.swap_in(new, out)
        assert seen == ["new", "new"]

    @pytest.mark.parametrize("step", [1, 2])
    def test_in_two_steps_that_fail(self, tmp_path, monkeypatch, step):
        """A disk that is full at either rename leaves the old bundle where it was."""
        monkeypatch.setattr(rename, "_renameat2", lambda source, target, flag: False)
        new, out = folder(tmp_path / ".engines.building", "new"), folder(tmp_path / "engines", "old")
        original, calls = Path.rename, []

        def renamed(self, target):
            calls.append(target)
            if len(calls) == step:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", renamed)
            with pytest.raises(OSError, match="No space left"):
                swap.swap_in(new, out)
        assert len(calls) == (1 if step == 1 else 3)
        assert names(tmp_path) == [".engines.building", "engines"]
        assert (out / "manifest.json").read_text() == "old"

    def test_nobody_builds_in_the_old_bundle(self, tmp_path, monkeypatch):
        """For a moment it stands where bundles are made."""
        original, calls, locked = swap.exchange, [], []

        def exchange(one, other):
            done = original(one, other)
            calls.append(one)
            handle = os.open(one, os.O_RDONLY)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked.append(handle)
            os.close(handle)
            return done

        monkeypatch.setattr(swap, "exchange", exchange)
        swap.swap_in(folder(tmp_path / ".engines.building", "new"), folder(tmp_path / "engines", "old"))
        assert len(calls) == 1
        assert locked == []


@pytest.fixture
def no_patience(monkeypatch):
    clock = SimpleNamespace(monotonic=itertools.count(0, 5).__next__, sleep=lambda seconds: None)
    monkeypatch.setattr(locks, "time", clock)


class TestLock:
    def test_another_build_is_named(self, tmp_path, no_patience):
        with Staging(tmp_path / "engines").locked(), pytest.raises(BuildError, match="another build is writing"):
            Staging(tmp_path / "engines").locked().__enter__()

    def test_a_build_that_waited_gets_a_folder_of_its_own(self, tmp_path):
        """Not the one of the build before, which was published in the meantime."""
        first, second = Staging(tmp_path / "engines"), Staging(tmp_path / "engines")
        inside, entered = threading.Event(), []

        def wait_for_it():
            inside.set()
            with second.locked() as handle:
                entered.append(os.path.samestat(os.fstat(handle), second.folder.stat()))

        waiting = threading.Thread(target=wait_for_it)
        with first.locked():
            folder(first.folder / "bundle", "new")
            waiting.start()
            inside.wait()
            time.sleep(0.2)
            first.publish()
        waiting.join()
        assert entered == [True]
        assert names(tmp_path) == [".engines.building", "engines"]
        assert names(second.folder) == []


class TestRestore:
    """A kill between the two renames, as it is where folders cannot be exchanged."""

    @pytest.fixture
    def killed(self, tmp_path, bundle_copy):
        bundle_copy.rename(tmp_path / OLD)
        folder(tmp_path / ".engines.building", "not read")
        return tmp_path / "engines"

    def test_a_real_kill(self, tmp_path, bundle_copy, command):
        out = tmp_path / "engines"
        bundle_copy.rename(out)
        code = (
            "import os, signal, sys\nfrom pathlib import Path\nfrom lare2_rt.host import atomic, replace_folder\n"
            "atomic._renameat2 = lambda *arguments: False\n"
            "original = Path.rename\n"
            "def rename_and_die(self, target):\n"
            "    original(self, target)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "Path.rename = rename_and_die\n"
            "replace_folder.swap_in(Path('.engines.building'), Path('engines'))\n"
        )
        (tmp_path / ".engines.building").mkdir()
        run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
        assert run.returncode == -signal.SIGKILL
        assert not out.exists()
        status, _, err = command("inspect", "engines")
        assert status == 0
        (aside,) = [line for line in err.splitlines() if "was missing" in line]
        assert aside.startswith("lare2-rt: engines was missing after a killed build: put back from .engines.old-")
        assert names(tmp_path) == [".engines.building", "engines"]

    @pytest.mark.parametrize("way", ["named", "LARE2_BUNDLE", "./engines"])
    def test_the_next_run_puts_it_back_and_says_so(self, killed, command, rocket, monkeypatch, way):
        use_engines(monkeypatch, FakeEngine())
        if way == "LARE2_BUNDLE":
            monkeypatch.setenv("LARE2_BUNDLE", str(killed))
        arguments = ["--bundle", killed] if way == "named" else []
        for told in (1, 0):
            code, out, err = command("infer", rocket, "--format", "jsonl", *arguments)
            assert code == 0
            assert str(killed) in out
            assert err.count(f"was missing after a killed build: put back from {OLD}\n") == told

    def test_the_library_puts_it_back_too(self, killed):
        with Detector.load(killed) as detector:
            assert detector.info.provenance.bundle_path == str(killed)

    def test_not_while_a_build_is_at_work(self, killed, no_patience):
        with Staging(killed).locked():
            assert locate_bundle(killed).restored is None
        assert not killed.exists()
        assert locate_bundle(killed).restored == killed.with_name(OLD)

    def test_only_where_one_alone_can_be_meant(self, killed):
        second = folder(killed.with_name(".engines.old-ffffffff"), "another")
        with pytest.raises(BundleError, match="is not a bundle folder"):
            Detector.load(killed)
        (second / "manifest.json").unlink()  # what is left is no bundle
        assert swap.restore(killed, marker="manifest.json") == killed.with_name(OLD)

    def test_nothing_that_exists_is_touched(self, killed):
        for make in (Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere")):
            make(killed)
            assert swap.restore(killed, marker="manifest.json") is None
            killed.rmdir() if killed.is_dir() else killed.unlink()
        assert swap.restore(killed.with_name("other"), marker="manifest.json") is None

    @pytest.mark.parametrize("name", ["", ".", "a\0b", "x" * 300, "no/such/folder", "/"])
    def test_names_that_mean_nothing(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert swap.restore(Path(name), marker="manifest.json") is None
