"""``lare2-rt doctor``: planted faults, each of which it must find and give the right remedy for."""

import errno
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lare2_rt import UsageError
from lare2_rt.engines import registry
from lare2_rt.engines.cache.cache import CompiledCache
from lare2_rt.engines.cache.entry import Recipe
from lare2_rt.engines.registry import EngineEntry
from lare2_rt.tools import doctor
from lare2_rt.tools.doctor import decoding, engine_checks, machine, packages, storage
from lare2_rt.tools.doctor.finding import Finding, broken
from tests.conftest import ROOT
from tests.fakes.engine import need_engine, use_engines
from tests.helpers.processes import environment


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Put distributions and modules before all that is installed, here and in every process that is started."""
    folder = tmp_path / "planted"
    folder.mkdir()

    def planting(distribution=None, version="1", **modules):
        if distribution:
            info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        for name, code in modules.items():
            (folder / f"{name}.py").write_text(code)

    monkeypatch.syspath_prepend(folder)
    for name, value in environment(folder).items():
        monkeypatch.setenv(name, value)
    return planting


def only(findings, name):
    (finding,) = [finding for finding in findings if finding.name == name]
    return finding


def bad(findings):
    return {finding.name for finding in findings if finding.status == "bad"}


def opened(monkeypatch, name, limit=60.0):
    use_engines(monkeypatch, registry.entry_of(name))
    return list(engine_checks.check_engines(limit=limit, progress=lambda words: None))


def test_minimum_versions_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {line.split(">=")[0]: packages.numbers(line.split(">=")[1]) for line in project} == packages.MINIMUM


def test_what_engines_need_comes_from_the_registry(monkeypatch):
    assert {"onnxruntime", "onnxruntime-gpu", "openvino", "onnx", "cuda-bindings"} <= set(packages.of_engines())
    assert set(packages.of_engines("cuda")) == {
        *("tensorrt-cu13", "tensorrt-cu12", "tensorrt", "tensorrt-rtx", "onnxruntime-gpu")
    }
    one = EngineEntry("new", "new:New", "cuda", "new", ("numpy|numpy-gpu",), ("numpy[x]>=1",), tools=("rich",))
    use_engines(monkeypatch, one)
    assert packages.of_engines("cuda") == ("numpy", "numpy-gpu")
    assert packages.of_engines() == ("numpy", "numpy-gpu", "rich")


def test_packages_are_looked_at_with_the_standard_library_alone():
    code = (
        "import sys; sys.path.append(sys.argv[1]); from lare2_rt.tools.doctor.packages import check_packages\n"
        "assert any(finding.status == 'bad' for finding in check_packages())\n"
        "files = [str(getattr(module, '__file__', '')) for module in sys.modules.values()]\n"
        "assert not [file for file in files if 'site-packages' in file]"
    )
    run = subprocess.run(
        [sys.executable, "-S", "-c", code, ROOT / "runtime"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


class TestPackages:
    def test_nothing_is_wrong(self):
        findings = list(packages.check_packages())
        assert bad(findings) == set()
        assert only(findings, "imports").status == "ok"

    def test_both_onnxruntimes(self, plant, monkeypatch):
        plant("onnxruntime-gpu", "1.31.0")
        finding = only(packages.check_packages(), "onnxruntime twice")
        assert finding.status == "bad"
        assert finding.remedy.startswith("pip uninstall -y onnxruntime onnxruntime-gpu, then")
        engine, none = opened(monkeypatch, "onnxruntime")
        assert (engine.status, none.name) == ("bad", "any")
        assert "pip uninstall -y onnxruntime onnxruntime-gpu" in engine.remedy

    @pytest.mark.parametrize(("name", "version"), [("numpy", "1.21.6"), ("pillow", "10.4.0")])
    def test_too_old(self, plant, name, version):
        plant(name, version)
        finding = only(packages.check_packages(), name)
        least = {"numpy": "1.26", "pillow": "11.3"}[name]
        assert finding.status == "bad"
        assert finding.remedy == f"pip install --upgrade '{name}>={least}'"

    def test_cannot_be_imported(self, plant):
        plant(pydantic="raise ImportError('libfoo.so: cannot open shared object file')")
        finding = only(packages.check_packages(), "imports")
        assert finding.status == "bad"
        assert "libfoo.so" in finding.text
        assert finding.remedy == "pip install --force-reinstall pydantic"

    def test_missing(self, monkeypatch):
        monkeypatch.setattr(packages, "installed_version", lambda name: None if name == "rich" else "99")
        assert only(packages.check_packages(), "rich").remedy == "pip install 'rich>=13'"

    def test_two_tensorrts(self, plant):
        plant("tensorrt-cu12", "10.16.1")
        plant("tensorrt-cu13", "11.0.0")
        plant("onnxruntime-gpu", "1.31.0")
        findings = list(packages.check_packages())
        assert "pip uninstall -y tensorrt-cu12 tensorrt-cu13" in only(findings, "tensorrt twice").remedy
        assert "two environments" in only(findings, "tensorrt and onnxruntime-gpu").remedy

    def test_libraries_of_onnxruntime_gpu(self, monkeypatch):
        """The extra [cuda] without [cudnn]: ONNX Runtime would compute on the CPU without a word."""
        there = {"onnxruntime-gpu": "1.31.1", **dict.fromkeys(packages._ONNXRUNTIME_GPU, "13.0")}
        monkeypatch.setattr(packages, "installed_version", there.get)
        assert "libraries of onnxruntime-gpu" not in [finding.name for finding in packages._clashes()]
        del there["nvidia-cudnn-cu13"], there["nvidia-cublas"]
        finding = only(packages._clashes(), "libraries of onnxruntime-gpu")
        assert finding.status == "warn"
        assert finding.text.startswith("nvidia-cublas, nvidia-cudnn-cu13 not installed")
        assert finding.remedy.startswith("pip install 'onnxruntime-gpu[cuda,cudnn]'")


class TestEngines:
    def test_opens(self, monkeypatch):
        (finding,) = opened(monkeypatch, "onnxruntime")
        assert finding.status == "ok"
        assert finding.facts["lare_difference"] < 1e-3

    @pytest.mark.parametrize(
        ("code", "limit", "words"),
        [
            ("raise ImportError('libtbb.so.12 is not there')", 60, "libtbb.so.12 is not there"),
            ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 60, "stopped by SIGSEGV"),
            ("import os; os._exit(3)", 60, "ended with code 3"),
            ("import time; time.sleep(60)", 2, "was not open after 2 seconds"),
        ],
    )
    def test_broken(self, plant, monkeypatch, code, limit, words):
        plant("openvino", "2026.1", openvino=code)
        finding, none = opened(monkeypatch, "openvino", limit)
        assert finding.status == "bad"
        assert words in finding.text
        assert finding.remedy.startswith("pip install ")
        assert "--force-reinstall" in finding.remedy
        assert "openvino" in finding.remedy
        assert none.remedy == "pip install onnxruntime"

    @pytest.mark.parametrize("missing", ["openvino", "onnx"])
    def test_an_engine_of_two_libraries_and_one_of_them(self, monkeypatch, tmp_path, missing):
        """Who has installed one for another engine has broken nothing."""
        for name in ("openvino", "onnx"):
            need_engine(name)
        real = importlib.metadata.version

        def version(name):
            if name == missing:
                raise importlib.metadata.PackageNotFoundError(name)
            return real(name)

        monkeypatch.setattr(importlib.metadata, "version", version)
        answer = engine_checks._examine("winograd", tmp_path)
        assert answer["state"] == "absent"
        assert f"{missing} is not installed" in answer["problem"]

    @pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
    def test_a_gpu_engine_that_is_installed_is_not_broken(self, monkeypatch, tmp_path, name):
        """The embedded bundle has no graphs for GPUs, which is no fault of the installation."""
        there = {"onnxruntime-gpu": "1.31.1", "onnx": "1.23.2", "tensorrt-cu13": "10.16.1.11"}
        monkeypatch.setattr(registry, "installed_version", there.get)
        answer = engine_checks._examine(name, tmp_path)
        assert answer["state"] == "unfit"
        assert "has no fp16 graphs for GPUs" in answer["problem"]
        assert engine_checks._finding(name, answer).status == "note"

    def test_another_result(self, plant, monkeypatch):
        """An engine that opens and computes something else."""
        plant(
            sitecustomize=(
                "import os, sys\n"
                "if 'lare2_rt.tools.doctor.engine_checks' in ' '.join(sys.orig_argv):\n"
                "    sys.path.append(sys.argv[1] if len(sys.argv) > 1 else '')\n"
                f"    sys.path.append({os.fspath(ROOT / 'runtime')!r})\n"
                "    import lare2_rt.engines.self_check as selfcheck\n"
                "    selfcheck.TOLERANCES = {'lare': (0.0, ''), 'probability': (0.0, '')}\n"
            )
        )
        findings = opened(monkeypatch, "onnxruntime")
        assert findings[0].status == "bad"
        assert "away from the reference" in findings[0].text
        assert findings[0].remedy == "use another engine, or update this one"


class TestHost:
    def test_one_core_of_many(self):
        """Really, in a process that may use one processor only."""
        if (os.cpu_count() or 1) < 2:
            pytest.skip("there is one processor only")
        code = (
            "from lare2_rt.tools.doctor.machine import check_host; "
            "print([f.remedy for f in check_host() if f.name == 'cores'])"
        )
        one = {min(os.sched_getaffinity(0))}
        run = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=lambda: os.sched_setaffinity(0, one),
        )
        assert "start it without taskset" in run.stdout

    def test_a_quota_of_one(self, monkeypatch):
        monkeypatch.setattr(machine, "available_threads", lambda: 1)
        monkeypatch.setattr(machine, "processors", lambda: 8)
        monkeypatch.setattr(os, "cpu_count", lambda: 8)
        finding = only(machine.check_host(), "cores")
        assert finding.status == "warn"
        assert "docker run --cpus" in finding.remedy

    def test_little_memory(self, monkeypatch):
        monkeypatch.setattr(machine, "available_memory", lambda: 200_000_000)
        finding = only(machine.check_host(), "memory")
        assert finding.status == "bad"
        assert "close other programs" in finding.remedy

    def test_old_processor(self, monkeypatch, tmp_path):
        (tmp_path / "cpuinfo").write_text("model name\t: Old\nflags\t\t: fpu sse4_2 f16c\n")
        monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
        finding = only(machine.check_host(), "processor")
        assert finding.status == "warn"
        assert "pass its host's processor through" in finding.remedy

    def test_no_temporary_files(self, monkeypatch):
        def full(*_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(machine.tempfile, "TemporaryFile", full)
        finding = only(machine.check_host(), "temporary files")
        assert finding.status == "bad"
        assert "TMPDIR" in finding.remedy


class TestGpu:
    @pytest.fixture(autouse=True)
    def bus(self, monkeypatch, tmp_path):
        """An empty machine: no device on the bus, no program of the driver, none of the packages."""
        (tmp_path / "pci").mkdir()
        monkeypatch.setattr(machine, "_PCI", tmp_path / "pci")
        monkeypatch.setenv("PATH", str(tmp_path))
        self.packages = {}
        monkeypatch.setattr(machine, "installed_version", lambda name: self.packages.get(name))
        return tmp_path

    def smi(self, folder, answer, code=0):
        script = folder / "nvidia-smi"
        script.write_text(f"#!/bin/sh\necho '{answer}'\nexit {code}\n")
        script.chmod(0o755)

    def test_nothing(self):
        (finding,) = machine.check_gpu()
        assert finding.status == "note"

    def test_packages_without_a_gpu(self):
        self.packages["tensorrt-rtx"] = "1.7"
        (finding,) = machine.check_gpu()
        assert finding.status == "warn"
        assert "install the NVIDIA driver" in finding.remedy
        assert "pip uninstall tensorrt-rtx" in finding.remedy

    @pytest.mark.parametrize("answers", [True, False])
    def test_a_gpu_without_a_driver(self, bus, answers):
        device = bus / "pci/0000:01:00.0"
        device.mkdir()
        (device / "vendor").write_text("0x10de\n")
        (device / "class").write_text("0x030200\n")
        if answers:
            self.smi(bus, "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver", 9)
        (finding,) = machine.check_gpu()
        assert finding.status == "bad"
        assert finding.remedy.startswith("install the NVIDIA driver")

    def test_an_old_driver(self, bus):
        self.packages["cuda-bindings"] = "13.0.3"
        self.smi(bus, "NVIDIA L4, 550.54.14, 23034 MiB")
        found, age = machine.check_gpu()
        assert found.facts["driver"] == "550.54.14"
        assert age.status == "bad"
        assert age.remedy == "update the NVIDIA driver to 580 or newer"
        self.smi(bus, "NVIDIA L4, 580.65.06, 23034 MiB")
        assert [finding.status for finding in machine.check_gpu()] == ["ok"]

    def test_hidden(self, bus, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        self.smi(bus, "NVIDIA L4, 580.65.06, 23034 MiB")
        assert only(machine.check_gpu(), "CUDA_VISIBLE_DEVICES").remedy == "unset CUDA_VISIBLE_DEVICES"


class TestBundle:
    def test_in_use(self):
        findings = list(storage.check_bundle(None))
        assert bad(findings) == set()
        assert "export/build_engines.py" in only(findings, "verdicts").remedy  # the embedded one judges nothing

    def test_tampered(self, bundle_copy):
        graph = next(bundle_copy.glob("*.onnx"))
        graph.write_bytes(graph.read_bytes()[:-1] + b"x")
        finding = only(storage.check_bundle(str(bundle_copy)), "in use")
        assert finding.status == "bad"
        assert "build" in finding.remedy or "copy" in finding.remedy

    def test_embedded_tampered(self, bundle_copy, monkeypatch):
        (bundle_copy / "noise.npy").unlink()
        monkeypatch.setattr("lare2_rt.bundle.locate.embedded_bundle", lambda: bundle_copy)
        finding = only(storage.check_bundle(None), "in use")
        assert finding.status == "bad"
        assert finding.remedy == "pip install --force-reinstall --no-deps lare2-rt"

    def test_variable_that_points_nowhere(self, monkeypatch, tmp_path):
        monkeypatch.setenv("LARE2_BUNDLE", str(tmp_path / "nowhere"))
        findings = list(storage.check_bundle(None))
        assert only(findings, "in use").status == "bad"
        assert "set LARE2_BUNDLE to another bundle, or unset it" in only(findings, "in use").remedy
        assert only(findings, "embedded").status == "ok"


class TestCache:
    @pytest.fixture(autouse=True)
    def folder(self, monkeypatch, tmp_path):
        monkeypatch.setenv("LARE2_CACHE", str(tmp_path / "cache"))
        return tmp_path / "cache"

    def test_not_there_yet(self, folder):
        findings = list(storage.check_cache())
        assert bad(findings) == set()
        assert not folder.exists()

    def test_cannot_be_written(self, folder):
        folder.write_text("a file")
        finding = only(storage.check_cache(), "folder")
        assert finding.status == "bad"
        assert "set LARE2_CACHE to a folder that you can write" in finding.remedy

    def test_full_disk(self, folder, monkeypatch):
        usage = shutil.disk_usage(folder.parent)
        monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
        finding = only(storage.check_cache(), "folder")
        assert finding.status == "bad"
        assert "free some space" in finding.remedy
        assert "lare2-rt cache clear" in finding.remedy

    def test_limit_that_is_none(self, monkeypatch):
        monkeypatch.setenv("LARE2_CACHE_LIMIT", "much")
        finding = only(storage.check_cache(), "limit")
        assert finding.status == "bad"
        assert "2G" in finding.remedy

    def test_stale_and_damaged(self, folder):
        recipe = Recipe("openvino", "0.0.1", "mini", {}, 100)
        CompiledCache().open(recipe, lambda place: (place / "x").write_bytes(b"x")).close()
        (folder / "compiled" / ("0" * 64)).mkdir()
        findings = list(storage.check_cache())
        assert only(findings, "stale").remedy == "lare2-rt cache clear --engine openvino"
        assert only(findings, "damaged").remedy == "lare2-rt cache clear"

    def test_what_an_installed_engine_compiled_is_not_stale(self, folder):
        for engine in registry.ENGINES:
            if engine.version is not None:
                recipe = Recipe(engine.name, engine.version, "mini", {}, 100)
                CompiledCache().open(recipe, lambda place: (place / "x").write_bytes(b"x")).close()
        findings = list(storage.check_cache())
        assert only(findings, "compiled").facts["entries"] > 0
        assert [finding.name for finding in findings if finding.name == "stale"] == []

    def test_others_may_write(self, folder):
        (folder / "compiled").mkdir(parents=True)
        (folder / "compiled").chmod(0o777)
        finding = only(storage.check_cache(), "owner")
        assert finding.status == "bad"
        assert "chmod 700" in finding.remedy

    def test_damaged_hashes(self, folder):
        folder.mkdir()
        (folder / "hashes.json").write_text("{")
        assert only(storage.check_cache(), "hashes").remedy == f"remove {folder / 'hashes.json'}"


class TestDecoding:
    def test_formats(self):
        findings = list(decoding.check_decoding())
        assert bad(findings) == set()
        assert only(findings, "formats").facts.keys() == {"JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP"}

    def test_no_processes(self, monkeypatch):
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        finding = only(decoding.check_decoding(), "processes")
        assert finding.status == "bad"
        assert "--no-isolate" in finding.remedy

    def test_a_format_that_is_missing(self, monkeypatch):
        monkeypatch.setattr(decoding, "FORMATS", ("PNG", "AVIF9"))
        assert "pillow" in only(decoding.check_decoding(), "AVIF9").remedy

    def test_broken_heic(self, plant, monkeypatch):
        plant("pillow-heif", "0.1", pillow_heif="raise ImportError('libheif.so.1')")
        monkeypatch.delitem(sys.modules, "pillow_heif", raising=False)
        finding = only(decoding.check_decoding(), "HEIC")
        assert finding.status == "bad"
        assert "pip install --force-reinstall pillow-heif" in finding.remedy

    def test_no_heic(self, monkeypatch):
        monkeypatch.setattr(decoding, "installed_version", lambda name: None)
        finding = only(decoding.check_decoding(), "HEIC")
        assert (finding.status, finding.remedy) == ("note", "pip install pillow-heif")


class TestCommand:
    @pytest.fixture(autouse=True)
    def one_engine(self, monkeypatch):
        use_engines(monkeypatch, registry.ENGINES[0])

    @pytest.fixture
    def no_process(self, monkeypatch):
        """The answer of the engine's process without the process, which other tests start."""
        answer = {"state": "broken", "problem": "it does not open", "remedy": "use another engine"}
        monkeypatch.setattr(engine_checks, "run_child", lambda *_, **__: (0, json.dumps(answer), ""))

    def test_healthy(self, command):
        code, out, said = command("doctor")
        assert (code, said) == (0, "")
        assert out.splitlines()[-1].endswith(" 0 bad")

    def test_broken_and_json(self, command, monkeypatch, tmp_path, no_process):
        home = tmp_path / "someone"
        home.mkdir()
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("LARE2_BUNDLE", str(home / "nowhere"))
        monkeypatch.setenv("LARE2_CACHE", str(home / "cache"))
        code, out, _ = command("doctor", "--json")
        assert code == 1
        document = json.loads(out)
        assert document["schema"] == "lare2-rt/doctor/1"
        assert document["ok"] is False
        assert "someone" not in out
        assert str(Path.cwd()) not in out
        assert {finding["area"] for finding in document["findings"]} == {
            "packages",
            "machine",
            "gpu",
            "bundle",
            "cache",
            "decoding",
            "engines",
        }
        for finding in document["findings"]:
            assert finding.keys() == {"area", "name", "status", "text", "remedy", "facts"}
            if finding["status"] in ("warn", "bad"):
                assert finding["remedy"]

    def test_what_cannot_work_is_not_looked_at(self, command, plant):
        plant("numpy", "1.21.6")
        code, out, _ = command("doctor")
        assert code == 1
        assert "pip install --upgrade 'numpy>=1.26'" in out
        assert "was not looked at" in out

    def test_a_check_that_fails_itself(self, monkeypatch, no_process):
        def check():
            raise RuntimeError("oh")
            yield

        monkeypatch.setattr(machine, "check_host", check)
        finding = only([f for f in doctor.examine() if f.area == "machine"], "check")
        assert finding.status == "bad"
        assert "report it" in finding.remedy


def test_every_fault_has_a_remedy():
    with pytest.raises(ValueError, match="has no remedy"):
        Finding("a", "b", "bad", "it is broken")
    assert broken("a", "b", UsageError("x is broken", remedy="do y")) == Finding("a", "b", "bad", "x is broken", "do y")
