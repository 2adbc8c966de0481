"""What can go wrong with results: they are whole or not there, and what stood there before is not lost."""

import errno
import os
import resource
import signal
from pathlib import Path

import pytest

from lare2_rt.errors import OutputError
from lare2_rt.host.atomic import atomic_text, draft_text, write_bytes
from tests.helpers.commands import FORMATS, listing, records, sentences


class TestOut:
    @pytest.mark.parametrize("arguments", [(), ("--force",)])
    def test_folder(self, command, fake, small, arguments):
        Path("r.json").mkdir()
        code, out, err = command("infer", *small, "--out", "r.json", *arguments)
        assert (code, out) == (2, "")
        (sentence,) = sentences(err)
        assert "r.json/results.jsonl" in sentence
        assert fake.calls == 0
        assert listing(Path()) == ["r.json"]
        assert listing(Path("r.json")) == []

    @pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")])
    def test_existing(self, command, fake, small, make):
        make(Path("r.json"))
        code, out, err = command("infer", *small, "--out", "r.json")
        assert (code, out) == (2, "")
        (sentence,) = sentences(err)
        assert "--force" in sentence
        assert fake.calls == 0
        assert listing(Path()) == ["r.json"]

    def test_device(self, command, fake, small):
        """As a rename onto it would put a file in its place, even in that of /dev/null."""
        os.mkfifo("r.json")
        code, out, err = command("infer", *small, "--out", "r.json", "--force")
        assert (code, out) == (2, "")
        assert len(sentences(err)) == 1
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
        (sentence,) = sentences(err)
        assert f"the results are in {ours}," in sentence
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
        (sentence,) = sentences(done.stderr)
        assert "choose another place for r.json" in sentence
        assert listing(folder / "locked") == []


class TestDisk:
    def test_file_size_limit(self, lare2_rt, small, tmp_path):
        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

        (tmp_path / "r.jsonl").write_text("precious")
        # Python would keep what it compiles cut off at the limit, for every later process.
        environment = {**os.environ, "LARE2_CACHE": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
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
    def test_full_standard_output(self, command, fake, small, arguments):
        """Buffered, as users have it: the disk may be full as late as when the command flushes the stream."""
        arguments = [argument.format(image=small[0]) for argument in arguments]
        with Path("/dev/full").open("w") as full:
            code, _, err = command(*arguments, stdout=full)
        assert code == (1 if arguments[0] == "infer" else 2)
        (sentence,) = sentences(err)
        assert "no space left on device; free some space" in sentence


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
