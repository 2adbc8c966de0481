"""The registry: one line an engine, which agrees with pyproject.toml, imports nothing, and suffices for a new one."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

import lare2_rt
from lare2_rt.engines.registry import ENGINES
from tests.conftest import ROOT
from tests.fakes.engine import need_engine

PACKAGE = Path(lare2_rt.__file__).parent
HEAVY = {"onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda", "torch"}

SAMPLE = '''
from dataclasses import replace

from .cache.build import compile_chain
from .chain import ComponentChain
from .onnxruntime.engine import OnnxRuntimeEngine


class SampleEngine(OnnxRuntimeEngine):
    """Computes like ONNX Runtime, and compiles a file for each component."""

    name, compiled = "sample", True

    def open(self, bundle, options):
        info, variants = self.describe(bundle, options), self.variants(bundle, options)
        build = lambda variant, folder: (folder / "made").write_text(variant.graph)
        chain = compile_chain(bundle, variants, options, info=info, facts=self.facts(), build=build)
        plain = super().open(bundle, options)
        opened = replace(info, compiled=chain.digest)
        return ComponentChain(opened, plain.components, noise=bundle.noise, close=chain.close)
'''
LINE = 'EngineEntry("sample", "sample:SampleEngine", "cpu", "cpu", ("numpy",), ("numpy>=1.26",)),'


def copied(folder):
    """Copy the package, without its models, which are linked to."""
    shutil.copytree(PACKAGE, folder / "lare2_rt", ignore=shutil.ignore_patterns("models", "__pycache__"))
    (folder / "lare2_rt/models").symlink_to(PACKAGE / "models")
    return folder / "lare2_rt"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the command, or code, of a copy of the package that has one engine more."""
    folder = tmp_path_factory.mktemp("new")
    package = copied(folder)
    (package / "engines/sample.py").write_text(SAMPLE)
    registry = package / "engines/registry.py"
    head, equals, rest = registry.read_text().partition("ENGINES: tuple[EngineEntry, ...] = (\n")
    assert equals
    registry.write_text(f"{head}{equals}    {LINE}\n{rest}")
    variables = {**os.environ, "PYTHONPATH": str(folder), "LARE2_CACHE": str(folder / "cache")}

    def run(*arguments, code="from lare2_rt.cli import main; main()"):
        command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, cwd=folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


class TestANewEngine:
    """One file and one line of the registry are all that it takes."""

    def test_by_name_and_by_auto(self, run, rocket):
        for choice in (["--engine", "sample"], []):
            (record,) = json.loads(run("infer", rocket, "--format", "json", "--threads", "1", *choice))
            assert record["engine"]["name"] == "sample"

    def test_bench_and_cache(self, run):
        bench = run("bench", "--engine", "sample", "--rounds", "1", "--threads", "1", "--format", "json")
        (row,) = json.loads(bench)["engines"]
        assert row["name"] == "sample"
        assert row["check"]["passed"]

        def kept():
            return [
                entry["engine"] for entry in json.loads(run("cache", "ls", "--engine", "sample", "--json"))["entries"]
            ]

        assert kept() == ["sample"] * 4
        run("cache", "clear", "--engine", "sample")
        assert kept() == []

    def test_doctor(self, run):
        """Opened in a process of its own; the others are left out, as they take long."""
        code = (
            "from lare2_rt.engines import registry; registry.ENGINES = registry.ENGINES[:1]\n"
            "from lare2_rt.tools.doctor.engine_checks import check_engines\n"
            "print([(f.name, f.status) for f in check_engines(limit=60, progress=lambda line: None)])"
        )
        assert run(code=code) == "[('sample', 'ok')]\n"


def extra(name, extras):
    """The requirements of an extra, those of extras that it names included."""
    for requirement in extras[name]:
        reference = re.fullmatch(r"lare2-rt\[(.+)\]", requirement)
        yield from extra(reference[1], extras) if reference else [requirement]


@pytest.mark.parametrize("entry", ENGINES, ids=lambda entry: entry.name)
def test_requirements_are_those_of_the_extra(entry):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert sorted(entry.requirements) == sorted(extra(entry.extra, extras))
    assert shlex.split(entry.install) == ["pip", "install", *entry.requirements]
    distributions = {re.split(r"[\[<>=]", requirement)[0] for requirement in entry.requirements}
    for library in (*entry.libraries, *entry.tools):
        assert library.partition("|")[0] in distributions


def test_what_is_imported():
    """Who asks what there is imports no engine, and who loads an engine none of its libraries."""
    code = (
        "import json, sys\n"
        "from lare2_rt.engines import contract, registry, selection\n"
        "before = list(sys.modules)\n"
        "for entry in registry.ENGINES:\n"
        "    engine = entry.load()\n"
        "    assert engine.name == entry.name\n"
        "    engine.version, engine.machine_lacks, engine.position_stable, engine.compiled\n"
        "print(json.dumps([before, list(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(set, json.loads(done.stdout))
    targets = {f"lare2_rt.engines.{entry.target.partition(':')[0]}" for entry in ENGINES}
    assert targets <= after
    shared = {f"lare2_rt.engines.{path.stem}" for path in (PACKAGE / "engines").glob("*.py")}
    assert {name for name in before if name.startswith("lare2_rt.engines.")} <= shared
    assert not HEAVY & {name.partition(".")[0] for name in after}


def test_what_compiles_need_not_be_installed(embedded, tmp_path):
    """With the package on the path of this process alone, as in a checkout, its children find it all the same."""
    need_engine("onnx")
    package = copied(tmp_path / "checkout")
    venv.EnvBuilder(symlinks=True).create(tmp_path / "env")
    python = tmp_path / "env/bin/python"
    show = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(subprocess.run([python, "-c", show], capture_output=True, text=True, check=True).stdout.strip())
    # A folder that a .pth file names is searched, but its own .pth files, by which this package is installed, are not.
    (own / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (tmp_path / "out").mkdir()
    code = (
        "import sys; from importlib.util import find_spec; from pathlib import Path\n"
        "assert find_spec('lare2_rt') is None, 'it is installed'\n"
        "sys.path.append(sys.argv[1])\n"
        "from lare2_rt.bundle.opening import open_bundle\n"
        "from lare2_rt.engines.winograd.engine import WinogradEngine\n"
        "bundle = open_bundle(sys.argv[2])\n"
        "variant = bundle.variant('egre', batch=1, precision='fp32', profile='portable')\n"
        "WinogradEngine().make(bundle, variant, Path(sys.argv[3]))"
    )
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-c", code, package.parent, embedded, tmp_path / "out"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/model.onnx").exists()
