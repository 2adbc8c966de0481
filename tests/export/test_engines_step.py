"""``build_engines.py --engine``: compiled engines behind a bundle, checked before anybody uses them."""

import dataclasses
import sys
import tomllib
from types import SimpleNamespace

import pytest

from lare2_export.build.engines_step import build_compiled, check_engines, plan_options
from lare2_rt.bundle.manifest import COMPONENTS
from lare2_rt.engines import registry
from lare2_rt.engines.tensorrt.engine import TensorRtEngine
from lare2_rt.engines.tensorrt.plan import PlanOptions, choose_plan_options, plan_options_of
from lare2_rt.errors import EngineError, UsageError
from tests.conftest import ROOT
from tests.fakes.engine import FakeEngine, use_engines
from tests.runtime.test_tensorrt_engine import bundle, world  # noqa: F401 - fixtures


def test_plans_are_built_with_the_options_and_judged(world, bundle, monkeypatch):  # noqa: F811
    use_engines(monkeypatch, TensorRtEngine(), FakeEngine(name="plain"))
    options = plan_options(5, 4096)
    assert options == PlanOptions(level=5, workspace=4096 << 20)
    assert check_engines(["tensorrt", "plain"])
    assert not check_engines(["plain"])
    lines = []
    build_compiled(bundle, ["tensorrt", "plain"], options, threads=1, report=lines.append)
    assert world.built == list(COMPONENTS)
    assert plan_options_of("tensorrt", bundle) == options
    told = next(line for line in lines if "relative L2" in line)
    assert told.startswith("  tensorrt: LaRE ")
    assert "ms an image (median of 3)" in told
    assert lines[-1] == "  plain compiles nothing, so there is nothing to build"


@pytest.mark.parametrize("level", [None, 1])
@pytest.mark.parametrize("failure", ["build", "parity", "interrupt"])
def test_what_fails_leaves_the_plans_of_the_last_build(world, bundle, monkeypatch, failure, level):  # noqa: F811
    """Else every run from then on would look for plans that were never made, and build them itself."""
    if level is not None:
        choose_plan_options("tensorrt", bundle, PlanOptions(level=level))
    before = plan_options_of("tensorrt", bundle)

    def build(*arguments):
        raise KeyboardInterrupt if failure == "interrupt" else EngineError("tensorrt cannot build unet_step: too large")

    judged = bundle
    if failure == "parity":
        judged = dataclasses.replace(bundle, selfcheck=bundle.selfcheck + 1)
    else:
        monkeypatch.setattr(TensorRtEngine, "_build", build)
    expected = {"build": "too large", "parity": "failed its self-check", "interrupt": None}[failure]
    with pytest.raises(KeyboardInterrupt if failure == "interrupt" else EngineError, match=expected):
        build_compiled(judged, ["tensorrt"], PlanOptions(level=5), threads=1, report=lambda line: None)
    assert plan_options_of("tensorrt", bundle) == before


class Absent(FakeEngine):
    def machine_lacks(self):
        return EngineError("absent is not installed", remedy="pip install absent")


def refused(kind, *arguments, **options):
    with pytest.raises(kind) as error:
        check_engines(*arguments, **options)
    return error.value


def test_contradictions_are_told_before_the_export(world, monkeypatch):  # noqa: F811
    use_engines(monkeypatch, TensorRtEngine(), FakeEngine(name="plain"), Absent(name="absent"))
    assert refused(EngineError, ["plain", "absent"]).remedy == "pip install absent"
    assert refused(UsageError, ["plain", "tensorrt"], half=False).remedy == "leave --no-half out, or --engine tensorrt"
    assert not check_engines(["plain"], half=False)
    assert refused(UsageError, ["auto"]).remedy.startswith("name one")
    for names in ([], ["plain"]):
        assert refused(UsageError, names, plans=True).remedy == "add --engine tensorrt, or leave them out"
    assert check_engines(["plain", "tensorrt"], half=True, plans=True)


def test_every_engine_has_its_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {engine.extra for engine in registry.ENGINES} <= set(project)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (["--engine", "tensorrt", "--no-half"], "leave --no-half out, or --engine tensorrt"),
        (["--engine", "auto"], "name one, such as --engine openvino"),
        (["--engine", "openvino", "--workspace", "9"], "add --engine tensorrt, or leave them out"),
        (["--optimization-level", "5"], "add --engine tensorrt, or leave them out"),
    ],
)
def test_the_script_tells_contradictions_at_once(monkeypatch, capsys, tmp_path, options, remedy):
    import lare2_export.cli as cli

    monkeypatch.setattr("lare2_export.build.isolate.start_server", lambda: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "export/build_engines.py"), *options])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("build_engines: ")
    assert last.endswith(f"; {remedy}")
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_told_before_the_export(world, monkeypatch):  # noqa: F811
    world.versions = {}
    assert refused(EngineError, ["tensorrt"]).remedy.startswith("pip install")
    assert "tensort" in refused(EngineError, ["tensort"]).problem
    with pytest.raises(UsageError, match="see --help"):
        plan_options(7, None)


def test_the_script_says_so_in_one_sentence(monkeypatch, capsys, tmp_path):
    """Without a GPU: exit code 2, and nothing was exported."""
    import lare2_export.cli as cli
    from lare2_export.build import bundle as building

    monkeypatch.setattr(registry, "installed_version", lambda name: None)
    monkeypatch.setattr("lare2_export.build.isolate.start_server", lambda: None)
    monkeypatch.setattr(building, "build_bundle", lambda *_, **__: SimpleNamespace())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "export/build_engines.py"), "--engine", "tensorrt"])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("build_engines: engines for tensorrt cannot be built here: ")
    assert list(tmp_path.iterdir()) == []
