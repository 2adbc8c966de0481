"""What can go wrong around a run: a sentence with the remedy, the documented exit code, nothing half there."""

import csv
import ctypes
import errno
import importlib.metadata
import io
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from fake_engine import FakeEngine

import lare2_rt
from lare2_rt import Detector, EngineError, engines
from lare2_rt.atomic import atomic_text, draft_text, write_bytes
from lare2_rt.cli import main
from lare2_rt.cli.console import Terminated, answer_sigterm, uninterrupted
from lare2_rt.engines import ENGINES
from lare2_rt.errors import OutputError

FORMATS = ("json", "jsonl", "csv", "txt")
# What ends a run: the word in the sentence and the exit code.
ENDING = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}


SUMMARY = re.compile(r"\d+ images in \d+\.\d s: ")


def sentences(stderr):
    """The lines of standard error, which are all ours; what each run says first and last is left out."""
    lines = stderr.splitlines()
    assert all(line.startswith("lare2-rt: ") for line in lines), stderr
    ours = [line.removeprefix("lare2-rt: ") for line in lines]
    return [line for line in ours if not line.startswith(("bundle mini (", "note: ")) and not SUMMARY.match(line)]


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def records(path):
    """The records of a results file, whose text must be a complete document."""
    text = path.read_text()
    form = path.name.split(".")[1]
    if form == "json":
        return json.loads(text)
    if form == "jsonl":
        assert text == "" or text.endswith("\n")
        return [json.loads(line) for line in text.splitlines()]
    if form == "csv":
        return list(csv.DictReader(io.StringIO(text)))
    return [line for line in text.splitlines() if ".png" in line or ".jpg" in line]


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """Run the command in this process, in an empty folder; returns (exit code, standard output, standard error)."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lare2-rt", *map(os.fspath, arguments)])
        before = [signal.getsignal(number) for number in ENDING]
        with pytest.raises(SystemExit) as left:
            main()
        assert before == [signal.getsignal(number) for number in ENDING]
        return (left.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def fake(monkeypatch):
    """An instant engine in the place of all others."""
    engine = FakeEngine()
    monkeypatch.setattr(engines, "ENGINES", (engine,))
    return engine


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Six pictures of different brightness."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("small")
    for i in range(6):
        Image.new("RGB", (16, 16), (40 * i,) * 3).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


NOBODY = 65534


def without_privileges():
    """Before exec: root loses the right to read and write what modes forbid; others have no such right."""
    if os.geteuid() == 0:
        drop, libc = 24, ctypes.CDLL(None)
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            libc.prctl(drop, capability, 0, 0, 0)


# Python may live where other users cannot go: by scoring an image it imports all that is needed while it can, and
# it starts no other Python to decode.
AS_NOBODY = f"""
import os, sys
from lare2_rt.cli import infer, main
from lare2_rt import Detector
with Detector.load() as detector:
    detector.detect(sys.argv[1])
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
sys.argv = ["lare2-rt", *sys.argv[2:], "--no-isolate"]
main()
"""


@pytest.fixture(scope="module")
def open_project():
    """A copy of the runtime that every user may read and, inside it, a folder that only NOBODY may write."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    for folder in Path(onnxruntime.__file__).parents:
        if folder.stat().st_mode & 0o005 != 0o005:
            pytest.skip(f"other users cannot use this environment: {folder} is closed to them")
    # Folders made by pytest are closed to others.
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        here.chmod(0o755)
        shutil.copytree(Path(lare2_rt.__file__).parent, here / "lare2_rt", ignore=shutil.ignore_patterns("__pycache__"))
        (here / "in").mkdir()
        os.chown(here / "in", NOBODY, NOBODY)
        yield here


@pytest.fixture(params=["capabilities", "another user"])
def unprivileged(request, tmp_path, small):
    """(folder, run): run the command there without root's rights, in two ways."""
    folder, command, options = tmp_path, ["-m", "lare2_rt"], {"preexec_fn": without_privileges}
    if request.param == "another user":
        project = request.getfixturevalue("open_project")
        folder = Path(tempfile.mkdtemp(dir=project / "in"))
        os.chown(folder, NOBODY, NOBODY)
        command, options = ["-c", AS_NOBODY, small[0]], {"env": {**os.environ, "PYTHONPATH": str(project)}}

    def run(*arguments):
        line = [sys.executable, *map(os.fspath, command), *map(os.fspath, arguments)]
        return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False, timeout=60, **options)

    return folder, run


class TestInputs:
    def test_empty_folder(self, command, tmp_path):
        (tmp_path / "empty").mkdir()
        code, out, err = command("infer", tmp_path / "empty", "--out", "r.json")
        assert (code, out) == (2, "")
        (sentence,) = sentences(err)
        assert "no images in" in sentence
        assert "image files end in" in sentence
        assert listing(Path()) == []

    def test_empty_folder_and_pattern_leave_the_others_intact(self, command, small, tmp_path):
        (tmp_path / "empty").mkdir()
        code, out, err = command("infer", small[0], tmp_path / "empty", "*.none", small[1], "--format", "jsonl")
        assert code == 1
        records = [json.loads(line) for line in out.splitlines()]
        assert [bool(record["error"]) for record in records] == [False, True, True, False]
        assert len(sentences(err)) == 2

    def test_unreadable_and_empty_files_leave_the_others_intact(self, unprivileged, small):
        folder, run = unprivileged
        content = small[1].read_bytes()
        for name in ("ok.png", "empty.png", "secret.png", "last.png"):
            (folder / name).write_bytes(b"" if name == "empty.png" else content)
        (folder / "secret.png").chmod(0)
        before = listing(folder)
        names = ["ok.png", "empty.png", "secret.png", "last.png"]
        done = run("infer", *names, "--out", "r.jsonl")
        assert done.returncode == 1, done.stderr
        empty, secret = sentences(done.stderr)
        assert empty == "empty.png: the file is empty; copy or download it again"
        assert secret == "secret.png: no permission to read it; change its access rights"
        found = records(folder / "r.jsonl")
        assert [record["source"] for record in found] == names
        assert [record["verdict"] is None for record in found] == [False, True, True, False]
        assert listing(folder) == sorted([*before, "r.jsonl"])

    def test_a_folder_that_may_not_be_entered(self, unprivileged, small):
        folder, run = unprivileged
        (folder / "ok.png").write_bytes(small[1].read_bytes())
        (folder / "closed").mkdir()
        (folder / "closed").chmod(0)
        done = run("infer", "ok.png", "closed", "--format", "jsonl")
        assert done.returncode == 1, done.stderr
        (sentence,) = sentences(done.stderr)
        assert sentence == "closed: no permission to read it; change its access rights"
        assert [bool(json.loads(line)["error"]) for line in done.stdout.splitlines()] == [False, True]


class TestOut:
    @pytest.mark.parametrize("arguments", [(), ("--force",)])
    def test_folder(self, command, fake, small, arguments):
        Path("r.json").mkdir()
        code, out, err = command("infer", *small, "--out", "r.json", *arguments)
        assert (code, out) == (2, "")
        assert sentences(err) == ["r.json is a folder; name a file, for instance r.json/results.jsonl"]
        assert fake.calls == 0
        assert listing(Path()) == ["r.json"]
        assert listing(Path("r.json")) == []

    @pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")])
    def test_existing(self, command, fake, small, make):
        make(Path("r.json"))
        code, out, err = command("infer", *small, "--out", "r.json")
        assert (code, out) == (2, "")
        assert sentences(err) == ["r.json exists already; choose another name or pass --force to replace it"]
        assert fake.calls == 0
        assert listing(Path()) == ["r.json"]

    def test_device(self, command, fake, small):
        """As a rename onto it would put a file in its place, even in that of /dev/null."""
        os.mkfifo("r.json")
        code, out, err = command("infer", *small, "--out", "r.json", "--force")
        assert (code, out) == (2, "")
        assert sentences(err) == ["r.json is not a regular file; name another one"]
        assert Path("r.json").is_fifo()

    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("taken", [["r"], ["r", "r.1"]])
    def test_a_target_that_appears_during_the_run(self, command, fake, small, form, taken):
        names = [name.replace("r", f"r.{form}") for name in taken]

        def script(call, output):
            for name in names if call == 3 else ():
                Path(name).write_text("theirs")

        fake.script = script
        code, out, err = command("infer", *small, "--out", f"r.{form}")
        ours = f"r.{form}.{len(taken)}"
        assert (code, out) == (1, "")
        assert sentences(err) == [
            f"r.{form} appeared in the meantime and was not replaced; the results are in {ours}, rename it as you like"
        ]
        assert all(Path(name).read_text() == "theirs" for name in names)
        assert len(records(Path(ours))) == 6
        assert listing(Path()) == [*names, ours]

    @pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere"), Path.touch])
    @pytest.mark.parametrize("force", [False, True])
    def test_whatever_appears_during_the_run(self, command, fake, small, make, force):
        """--force is meant for files; a folder in the way must not cost the results."""
        fake.script = lambda call, output: make(Path("r.json")) if call == 3 else None
        code, _, err = command("infer", *small, "--out", "r.json", *["--force"] * force)
        replaced = force and not Path("r.json").is_dir()
        assert code == (0 if replaced else 1)
        assert len(sentences(err)) == (0 if replaced else 1)
        assert listing(Path()) == (["r.json"] if replaced else ["r.json", "r.json.1"])
        assert len(records(Path("r.json" if replaced else "r.json.1"))) == 6
        assert not Path("r.json").is_symlink() or Path("r.json").readlink() == Path("nowhere")

    def test_library_files_that_lose_their_name(self, tmp_path):
        """Callers that promise a name hear of it, and nothing is lost."""
        path = tmp_path / "r.txt"

        def write():
            with atomic_text(path, overwrite=False) as stream:
                stream.write("ours")
                path.write_text("theirs")

        with pytest.raises(OutputError, match=r"r\.txt appeared .* not replaced; the results are in .*r\.txt\.1,"):
            write()
        assert (path.read_text(), (tmp_path / "r.txt.1").read_text()) == ("theirs", "ours")
        assert listing(tmp_path) == ["r.txt", "r.txt.1"]

    def test_name_too_long(self, command, fake, small):
        """Also where only the name for the meantime is too long."""
        for length in (250, 300):
            code, out, err = command("infer", *small, "--out", "r" * length + ".json")
            assert (code, out) == (2, "")
            (sentence,) = sentences(err)
            assert "file name too long; nothing was changed there" in sentence
        assert fake.calls == 0
        assert listing(Path()) == []

    def test_read_only_folder(self, unprivileged, small):
        folder, run = unprivileged
        (folder / "ok.png").write_bytes(small[1].read_bytes())
        (folder / "locked").mkdir(mode=0o555)
        done = run("infer", "ok.png", "--out", "locked/r.json")
        assert (done.returncode, done.stdout) == (2, "")
        assert sentences(done.stderr) == ["the folder locked is not writable; choose another place for r.json"]
        assert listing(folder / "locked") == []


class TestDisk:
    def test_file_size_limit(self, lare2_rt, small, tmp_path):
        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

        (tmp_path / "r.jsonl").write_text("precious")
        environment = {**os.environ, "LARE2_CACHE": str(tmp_path / "cache")}
        run = lare2_rt("infer", *small, "--out", "r.jsonl", "--force", preexec_fn=limit, env=environment)
        assert run.returncode == 1
        (sentence,) = sentences(run.stderr)
        assert sentence.startswith("stopped: cannot write r.jsonl: file too large; nothing was changed there")
        assert (tmp_path / "r.jsonl").read_text() == "precious"
        assert set(listing(tmp_path)) <= {"r.jsonl", "cache"}
        assert not (tmp_path / "cache").exists() or listing(tmp_path / "cache") == []

    @staticmethod
    def text(path, content):
        with atomic_text(path) as stream:
            stream.write(content)

    @staticmethod
    def draft(path, content):
        with draft_text(path) as draft:
            draft.stream.write(content)

    @staticmethod
    def raw(path, content):
        write_bytes(path, content.encode())

    @pytest.mark.parametrize("write", ["text", "draft", "raw"])
    @pytest.mark.parametrize("step", ["open", "write", "flush", "fsync", "replace"])
    @pytest.mark.parametrize("existing", [True, False])
    def test_full_at_each_step(self, tmp_path, monkeypatch, write, step, existing):
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path = tmp_path / "r.txt"
        if existing:
            path.write_text("precious")
        with monkeypatch.context() as patch:
            reached = _break(patch, step, full)
            with pytest.raises(OutputError, match=r"cannot write .*r\.txt: no space left on device; .*free some space"):
                getattr(self, write)(path, "x" * (1_000_000 if step == "write" else 10))
        assert reached
        assert listing(tmp_path) == (["r.txt"] if existing else [])
        assert not existing or path.read_text() == "precious"
        getattr(self, write)(path, "new")
        assert path.read_text() == "new"

    def test_a_folder_that_cannot_be_synced_loses_nothing(self, tmp_path, monkeypatch):
        original = os.fsync

        def fsync(handle):
            if os.path.isdir(f"/proc/self/fd/{handle}"):
                raise OSError(errno.EINVAL, "invalid")
            original(handle)

        monkeypatch.setattr(os, "fsync", fsync)
        for write in (self.text, self.draft, self.raw):
            write(tmp_path / "r.txt", write.__name__)
            assert (tmp_path / "r.txt").read_text() == write.__name__

    @pytest.mark.parametrize("form", FORMATS)
    def test_full_while_scoring(self, command, fake, small, monkeypatch, form):
        """The command's own road to the same failure."""
        with monkeypatch.context() as patch:
            reached = _break(patch, "fsync", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            code, out, err = command("infer", *small, "--out", f"r.{form}")
        assert reached
        assert (code, out) == (1, "")
        assert len(sentences(err)) == 1
        assert "no space left on device; nothing was changed there, free some space" in err
        assert listing(Path()) == []

    @pytest.mark.parametrize(
        "arguments",
        [("infer", "{image}", "--format", "jsonl"), ("infer", "{image}"), ("inspect", "--format", "json"), ("--help",)],
        ids=" ".join,
    )
    def test_full_standard_output(self, lare2_rt_full, small, arguments):
        run = lare2_rt_full(*(argument.format(image=small[0]) for argument in arguments))
        assert run.returncode == (1 if arguments[0] == "infer" else 2)
        (sentence,) = sentences(run.stderr)
        assert "no space left on device; free some space" in sentence

    @pytest.fixture
    def lare2_rt_full(self, tmp_path):
        """The command with a full disk as its standard output; buffered, as users have it."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}

        def run(*arguments):
            command = [sys.executable, "-m", "lare2_rt", *arguments]
            options = {"cwd": tmp_path, "env": environment, "text": True, "check": False, "stderr": subprocess.PIPE}
            with Path("/dev/full").open("w") as full:
                return subprocess.run(command, stdout=full, **options)

        return run


def _break(patch, step, error):
    """Let one step of writing a file fail with ``error``; the list that is returned is empty until it has."""
    reached = []

    def fail(*arguments, **options):
        reached.append(step)
        raise error

    if step == "fsync":
        patch.setattr(os, "fsync", fail)
    elif step == "replace":
        patch.setattr(Path, "replace", fail)
    elif step == "open":
        patch.setattr(Path, "open", fail)
    else:
        original = Path.open

        def opened(path, *arguments, **options):
            """A real file whose descriptor leads to a full disk: the kernel itself refuses."""
            handle = original(path, *arguments, **options)
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, handle.fileno())
            os.close(full)
            reached.append(step)
            return handle

        patch.setattr(Path, "open", opened)
    return reached


class TestEngines:
    @pytest.mark.parametrize("engine", ["auto", *(engine.name for engine in ENGINES)])
    def test_not_installed(self, command, small, monkeypatch, engine):
        """``auto`` gives every reason; a name finds nothing else, and an engine of another name is no way out."""

        def version(name):
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "version", version)
        for module in ("onnxruntime", "openvino", "MNN", "tensorrt", "cuda"):
            monkeypatch.setitem(sys.modules, module, None)
        code, out, err = command("infer", small[0], "--engine", engine, "--out", "r.json")
        assert (code, out) == (2, "")
        (sentence,) = sentences(err)
        assert sentence.startswith("no usable engine: ")
        for name in (each.name for each in ENGINES):
            told = re.search(rf"[:;] {re.escape(name)}: [^;]*is not installed[^;]*pip install", sentence)
            assert bool(told) == (engine in ("auto", name)), name
        assert listing(Path()) == []

    def test_a_named_engine_never_falls_back(self, embedded, monkeypatch):
        absent = FakeEngine(name="absent", why_not="it is not installed: pip install absent")
        present = FakeEngine(name="present")
        monkeypatch.setattr(engines, "ENGINES", (absent, present))
        with pytest.raises(EngineError, match="no usable engine: absent: it is not installed: pip install absent"):
            Detector.load(embedded, engine="absent")
        with Detector.load(embedded) as detector:
            assert detector.info.provenance.engine == "present"
            assert [(r.name, r.reason) for r in detector.info.rejected] == [("absent", absent.reason)]

    def test_installed_twice(self, embedded, tmp_path, monkeypatch):
        """onnxruntime and onnxruntime-gpu write into the same folder."""
        folder = tmp_path / "onnxruntime_gpu-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.0\n")
        monkeypatch.syspath_prepend(tmp_path)
        assert importlib.metadata.version("onnxruntime-gpu") == "1.0"
        monkeypatch.setattr(engines, "ENGINES", [each for each in ENGINES if each.name == "onnxruntime"])
        for engine in ("auto", "onnxruntime"):
            with pytest.raises(EngineError, match="both installed and overwrite each other: pip uninstall -y"):
                Detector.load(embedded, engine=engine)

    def test_broken_installation(self, embedded, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(EngineError, match=r"installed but cannot be imported .*pip install --force-reinstall"):
            Detector.load(embedded, engine="onnxruntime")

    def test_another_provider_than_asked_for(self, embedded, monkeypatch):
        """ONNX Runtime may fall back, or a build may bring a provider of its own: then the bits are not ours."""
        for found in (["CUDAExecutionProvider", "CPUExecutionProvider"], ["XnnpackExecutionProvider"], []):
            monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda self, found=found: found)
            with pytest.raises(EngineError, match=r"onnxruntime opened \S+\.onnx on .* instead of") as raised:
                Detector.load(embedded, engine="onnxruntime")
            assert str(found) in str(raised.value)

    def test_why_others_are_not_used(self, command, small, monkeypatch):
        absent = [FakeEngine(name="one", why_not="it is not installed: pip install one")]
        absent.append(FakeEngine(name="two", why_not="it needs \x1b[31ma GPU\n"))
        monkeypatch.setattr(engines, "ENGINES", (*absent, FakeEngine(name="three"), FakeEngine(name="four")))
        told = [
            "engine one is not used: it is not installed: pip install one",
            "engine two is not used: it needs \\x1b[31ma GPU\\n",
        ]
        for arguments, expected in (
            (["--verbose"], told),
            ([], []),
            (["--verbose", "--engine", "three"], []),
        ):
            code, out, err = command("infer", small[0], "--format", "jsonl", *arguments)
            assert code == 0
            assert sentences(err) == expected
            assert json.loads(out)["engine"]["name"] == "three"

    @pytest.mark.parametrize("form", FORMATS)
    def test_failing_in_the_middle_keeps_what_was_scored(self, command, fake, small, form):
        def script(call, output):
            if call == 3:
                raise EngineError("the device went away; restart")

        fake.script = script
        code, out, err = command("infer", *small, "--out", f"r.{form}")
        assert (code, out) == (1, "")
        (sentence,) = sentences(err)
        assert sentence.startswith(
            "stopped after 2 of 6 images: the device went away; restart; the results so far are in"
        )
        assert listing(Path()) == [f"r.{form}.partial"]
        assert len(records(Path(f"r.{form}.partial"))) == 2

    def test_failing_in_the_middle_of_standard_output(self, command, fake, small):
        def script(call, output):
            if call == 3:
                raise EngineError("the device went away; restart")

        for form in ("json", "jsonl"):
            fake.calls, fake.script = 0, script
            code, out, err = command("infer", *small, "--format", form)
            assert code == 1
            assert sentences(err) == ["stopped after 2 of 6 images: the device went away; restart"]
            found = json.loads(out) if form == "json" else [json.loads(line) for line in out.splitlines()]
            assert [record["source"] for record in found] == [str(path) for path in small[:2]]

    @pytest.mark.parametrize("field", ["logits", "lare", "attention"])
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_not_a_number(self, embedded, fake, small, field, value):
        def script(call, output):
            getattr(output, field)[1, ..., 0] = value

        with Detector.load(embedded) as detector, Detector.load(embedded, batch=4) as batched:
            fake.script = script
            results = list(batched.detect_many(small[:5]))
            assert [result.ok for result in results] == [True, False, True, True, True]
            assert "NaN or infinity" in results[1].error
            assert results[1].lare is None
            json.dumps([result.as_dict() for result in results], allow_nan=False)
            fake.script = lambda call, output: getattr(output, field).fill(value)
            with pytest.raises(EngineError, match="NaN or infinity for this image; report it"):
                detector.detect(small[0])

    def test_memory(self, embedded, fake, small, monkeypatch):
        """A picture too large for the machine is a bad file like any other."""
        from lare2_rt import decode_worker as module

        original = module.preprocess

        def preprocess(source, *arguments, **options):
            if source == small[1]:
                raise MemoryError
            return original(source, *arguments, **options)

        monkeypatch.setattr(module, "preprocess", preprocess)
        with Detector.load(embedded) as detector:
            results = list(detector.detect_many(small[:3]))
        assert [result.ok for result in results] == [True, False, True]
        assert "not enough memory" in results[1].error


class TestInterrupted:
    @pytest.fixture(params=ENDING)
    def number(self, request):
        return request.param

    @pytest.fixture
    def scoring(self, small, tmp_path):
        """Start the command on many images in a process of its own, with buffers as users have them."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        started = []

        def start(*arguments):
            command = [sys.executable, "-m", "lare2_rt", "infer", *map(str, small * 100), *arguments]
            options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, **options))
            return started[-1]

        yield start
        for process in started:
            process.kill()
            process.communicate()

    def test_standard_output_holds_complete_lines(self, scoring, number):
        process = scoring("--format", "jsonl")
        first = process.stdout.readline()
        process.send_signal(number)
        rest, err = process.communicate(timeout=30)
        word, code = ENDING[number]
        assert process.returncode == code
        found = [json.loads(line) for line in (first + rest).splitlines()]
        assert (first + rest).endswith("\n")
        assert 1 <= len(found) < 600
        assert sentences(err) == [f"{word} after {len(found)} of 600 images"]

    def test_a_results_file_gets_a_name_that_says_so(self, scoring, number, tmp_path):
        process = scoring("--out", "r.jsonl")
        while not any(path.stat().st_size for path in tmp_path.iterdir()):
            assert process.poll() is None
            time.sleep(0.02)
        assert not (tmp_path / "r.jsonl").exists()
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        word, code = ENDING[number]
        assert (process.returncode, out) == (code, "")
        assert listing(tmp_path) == ["r.jsonl.partial"]
        found = records(tmp_path / "r.jsonl.partial")
        assert 1 <= len(found) < 600
        sentence = f"{word} after {len(found)} of 600 images; the results so far are in r.jsonl.partial"
        assert sentences(err) == [sentence]

    @pytest.mark.parametrize("form", FORMATS)
    def test_partial_documents_are_complete(self, command, fake, small, form, number):
        fake.script = lambda call, output: signal.raise_signal(number) if call == 4 else None
        Path(f"r.{form}").write_text("precious")
        code, out, err = command("infer", *small, "--out", f"r.{form}", "--force")
        word, expected = ENDING[number]
        assert (code, out) == (expected, "")
        assert sentences(err) == [f"{word} after 3 of 6 images; the results so far are in r.{form}.partial"]
        assert len(records(Path(f"r.{form}.partial"))) == 3
        assert Path(f"r.{form}").read_text() == "precious"
        assert listing(Path()) == [f"r.{form}", f"r.{form}.partial"]

    def test_the_results_of_an_earlier_interruption_stay(self, command, fake, small):
        """Each run takes the next number; --force replaces, but no folder."""

        def interrupted(*arguments):
            fake.calls, fake.script = 0, lambda call, output: signal.raise_signal(signal.SIGINT) if call == 4 else None
            code, _, err = command("infer", *small, "--out", "r.json", *arguments)
            assert code == 130
            return sentences(err)[0].rsplit(" ", 1)[1]

        Path("r.json.partial").write_text("precious")
        assert interrupted() == "r.json.partial.1"
        assert interrupted() == "r.json.partial.2"
        assert Path("r.json.partial").read_text() == "precious"
        assert interrupted("--force") == "r.json.partial"
        assert len(records(Path("r.json.partial"))) == 3
        Path("r.json.partial").unlink()
        Path("r.json.partial").mkdir()
        assert interrupted("--force") == "r.json.partial.3"
        assert listing(Path()) == ["r.json.partial", *(f"r.json.partial.{n}" for n in (1, 2, 3))]

    @pytest.mark.parametrize("cut_short", [True, False])
    def test_a_second_time_while_the_results_are_put_away(self, command, fake, small, monkeypatch, number, cut_short):
        """Whatever is scored is kept, be it all or a part."""
        original = os.fsync

        def fsync(handle):
            for again in ENDING:
                signal.raise_signal(again)
            original(handle)

        if cut_short:
            fake.script = lambda call, output: signal.raise_signal(number) if call == 4 else None
        monkeypatch.setattr(os, "fsync", fsync)
        assert command("infer", *small, "--out", "r.json")[0] == (ENDING[number][1] if cut_short else 0)
        assert len(records(Path("r.json.partial" if cut_short else "r.json"))) == (3 if cut_short else 6)
        assert len(listing(Path())) == 1

    @pytest.mark.parametrize("where", ["lare2_rt.cli.infer.InferOptions", "lare2_rt.detector.Detector.load"])
    def test_while_loading(self, command, small, monkeypatch, number, where):
        """Also before our own code has begun, where typer would say 'Aborted' and exit with 1."""

        def strike(*arguments, **options):
            signal.raise_signal(number)

        monkeypatch.setattr(where, strike)
        code, out, err = command("infer", *small, "--out", "r.json")
        assert (code, out) == (ENDING[number][1], "")
        assert sentences(err) == [ENDING[number][0]]
        assert listing(Path()) == []

    def test_a_record_is_never_cut(self, number):
        done = []

        def write():
            with uninterrupted():
                signal.raise_signal(number)
                done.append(1)

        before = {each: signal.getsignal(each) for each in ENDING}
        try:
            answer_sigterm()
            ours = {each: signal.getsignal(each) for each in ENDING}
            with pytest.raises(Terminated if number == signal.SIGTERM else KeyboardInterrupt):
                write()
            assert done == [1]
            assert ours == {each: signal.getsignal(each) for each in ENDING}
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def test_a_process_that_ignores_a_signal_goes_on_ignoring_it(self, number):
        before = signal.signal(number, signal.SIG_IGN)
        try:
            answer_sigterm()
            with uninterrupted():
                signal.raise_signal(number)
            assert signal.getsignal(number) is signal.SIG_IGN
        finally:
            signal.signal(number, before)


class TestStandardStreams:
    """A real shell, since closed descriptors and pipes are its doing."""

    @pytest.fixture
    def shell(self, tmp_path):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}

        def shell(line, then=""):
            """Run a line of shell in which $run is the command; returns the line's exit code and the process."""
            line = line.replace("$run", f"{shlex.quote(sys.executable)} -m lare2_rt")
            line = f"{{ {line}; echo $? > code; }} {then}"
            options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 60}
            run = subprocess.run(["sh", "-c", line], check=False, **options)
            return int((tmp_path / "code").read_text()), run

        return shell

    @pytest.mark.parametrize("form", ["jsonl", "csv"])
    def test_a_reader_that_leaves(self, shell, small, form):
        """No complaint, and exit code 1, for the other images have no result."""
        images = shlex.join(map(str, small * 100))
        code, run = shell(f"$run infer {images} --format {form}", "| head -1")
        assert code == 1
        assert sentences(run.stderr) == []
        assert run.stdout.count("\n") == 1
        assert form == "csv" or json.loads(run.stdout)["source"] == str(small[0])

    @pytest.mark.parametrize("arguments", ["--help", "inspect --format json"])
    def test_a_reader_that_is_not_there(self, shell, arguments):
        code, run = shell(f"sleep 0.1; $run {arguments}", "| true")
        assert code == 1
        assert run.stderr == ""

    def test_closed_standard_output(self, shell, small):
        code, run = shell(f"$run infer {small[0]} >&-")
        assert code == 2
        assert sentences(run.stderr) == ["standard output is closed; send it to a file or to /dev/null"]

    @pytest.mark.parametrize("where", ["2>&-", "2>/dev/full"])
    def test_standard_error_that_takes_nothing(self, shell, small, where):
        code, run = shell(f"$run infer {small[0]} missing.png --format jsonl {where}")
        assert code == 1
        assert [bool(json.loads(line)["error"]) for line in run.stdout.splitlines()] == [False, True]


def test_the_fakes_stand_for_real_engines(embedded, small):
    """The tests above would prove nothing if the command met the fake in another way than the real ones."""
    assert all(hasattr(FakeEngine(), verb) for verb in ("why_not", "open", "run", "close", "position_stable"))
    with Detector.load(embedded, engine=ENGINES[0].name) as detector:
        assert detector.detect(small[0]).lare.shape == (4, 32, 32)
