"""What can go wrong with inputs and engines: a sentence with the remedy, the documented exit code."""

import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from lare2_rt import Detector, EngineError
from lare2_rt.engines import registry
from lare2_rt.engines.registry import ENGINES
from lare2_rt.host.text import printable
from lare2_rt.pixels.preprocess import DecodeTask
from tests.fakes.engine import FakeEngine, use_engines
from tests.helpers.commands import FORMATS, listing, records, sentences


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
        assert empty.startswith("empty.png: ")
        assert secret.startswith("secret.png: no permission")
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
        assert sentence.startswith("closed: no permission")
        assert [bool(json.loads(line)["error"]) for line in done.stdout.splitlines()] == [False, True]


class TestEngines:
    @pytest.mark.parametrize("engine", ["auto", *(engine.name for engine in ENGINES)])
    def test_not_installed(self, command, small, monkeypatch, engine):
        """``auto`` gives every reason; a name finds nothing else, and an engine of another name is no way out."""

        def version(name):
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "version", version)
        for module in ("onnxruntime", "openvino", "tensorrt", "cuda"):
            monkeypatch.setitem(sys.modules, module, None)
        code, out, err = command("infer", small[0], "--engine", engine, "--out", "r.json")
        assert (code, out) == (2, "")
        (sentence,) = sentences(err)
        for entry in ENGINES:
            told = f"{entry.name}: " in sentence or sentence.startswith(f"{entry.name} cannot be used")
            assert told == (engine in ("auto", entry.name)), entry.name
            assert not told or entry.install in sentence
        assert listing(Path()) == []

    def test_a_named_engine_never_falls_back(self, embedded, monkeypatch):
        absent = FakeEngine(name="absent", why_not="it is not installed")
        present = FakeEngine(name="present")
        use_engines(monkeypatch, absent, present)
        with pytest.raises(EngineError, match=r"^absent cannot be used: it is not installed") as raised:
            Detector.load(embedded, engine="absent")
        assert raised.value.remedy == absent.refusal.remedy
        with Detector.load(embedded) as detector:
            assert detector.info.provenance.engine == "present"
            assert [(r.name, r.reason) for r in detector.info.rejected] == [("absent", str(absent.refusal))]

    def test_installed_twice(self, embedded, tmp_path, monkeypatch):
        """onnxruntime and onnxruntime-gpu write into the same folder."""
        folder = tmp_path / "onnxruntime_gpu-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.0\n")
        monkeypatch.syspath_prepend(tmp_path)
        assert importlib.metadata.version("onnxruntime-gpu") == "1.0"
        monkeypatch.setattr(registry, "ENGINES", [each for each in ENGINES if each.name == "onnxruntime"])
        for engine in ("auto", "onnxruntime"):
            with pytest.raises(EngineError, match="both installed") as raised:
                Detector.load(embedded, engine=engine)
            assert "pip uninstall -y" in str(raised.value)

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
        absent = [FakeEngine(name="one", why_not="it is not installed")]
        absent.append(FakeEngine(name="two", why_not="it needs \x1b[31ma GPU\n"))
        use_engines(monkeypatch, *absent, FakeEngine(name="three"), FakeEngine(name="four"))
        told = [f"engine {engine.name} is not used: {printable(str(engine.refusal))}" for engine in absent]
        for arguments, expected in ((["--verbose"], told), ([], []), (["--verbose", "--engine", "three"], [])):
            code, out, err = command("infer", small[0], "--format", "jsonl", *arguments)
            assert code == 0
            assert sentences(err) == expected
            assert json.loads(out)["engine"]["name"] == "three"

    @pytest.mark.parametrize("form", FORMATS)
    def test_failing_in_the_middle_keeps_what_was_scored(self, command, fake, small, form):
        def script(call, output):
            if call == 3:
                raise EngineError("the device went away", remedy="restart")

        fake.script = script
        code, out, err = command("infer", *small, "--out", f"r.{form}")
        assert (code, out) == (1, "")
        (sentence,) = sentences(err)
        assert "2 of 6 images: the device went away; restart" in sentence
        assert listing(Path()) == [f"r.{form}.partial"]
        assert len(records(Path(f"r.{form}.partial"))) == 2

    def test_failing_in_the_middle_of_standard_output(self, command, fake, small):
        def script(call, output):
            if call == 3:
                raise EngineError("the device went away", remedy="restart")

        for form in ("json", "jsonl"):
            fake.calls, fake.script = 0, script
            code, out, err = command("infer", *small, "--format", form)
            assert code == 1
            (sentence,) = sentences(err)
            assert "2 of 6 images: the device went away; restart" in sentence
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
        original = DecodeTask.decode

        def decode(task, source):
            if source == small[1]:
                raise MemoryError
            return original(task, source)

        monkeypatch.setattr(DecodeTask, "decode", decode)
        with Detector.load(embedded) as detector:
            results = list(detector.detect_many(small[:3]))
        assert [result.ok for result in results] == [True, False, True]
        assert "not enough memory" in results[1].error


def test_the_fakes_stand_for_real_engines(embedded, small):
    """The tests above would prove nothing if the command met the fake in another way than the real ones."""
    assert all(hasattr(FakeEngine(), verb) for verb in ("why_not", "open", "run", "close", "position_stable"))
    with Detector.load(embedded, engine=ENGINES[0].name) as detector:
        assert detector.detect(small[0]).lare.shape == (4, 32, 32)
