"""docs/api.md: what it shows is there, all that is public is shown, and its Python is true."""

import re
from importlib import import_module

import pytest

import lare2_rt
from tests.conftest import ROOT
from tests.helpers.pages import blocks

PAGE = (ROOT / "docs/api.md").read_text(encoding="utf-8")
SHOWN = dict(re.findall(r"^::: (\S+)((?:\n {4}.*)*)", PAGE, re.MULTILINE))
# Users import these; a name may be added and none may go.
NAMES = """
    Detector DetectorInfo Detection Provenance DecisionRule Limits
    Lare2Error UsageError ImageError BundleError EngineError OutputError
    lare_map attention_map overlay run_scales render_panel Scale Scales
    preprocess Pixels Preprocessing open_bundle Bundle Manifest
    AuditReport Index IndexRow Indexed MatchedOptions SplitOptions
    arrange_splits audit_index build_index read_index write_index write_matched
    ExtractOptions Extraction Features ImageFile open_features sources_of
    Engine OpenEngine WindowEngine EngineOptions EngineInfo ChainOutput WindowOutput
"""


def test_it_shows_the_public_names():
    ours = {name.removeprefix("lare2_rt.") for name in SHOWN if name.startswith("lare2_rt.")}
    assert ours == {*lare2_rt.__all__} - {"__version__"}
    assert ours >= {*NAMES.split()}


@pytest.mark.parametrize("name", SHOWN)
def test_names_are_there(name):
    """Each can be imported as the page says, is what the module that defines it has, and is explained."""
    module, _, last = name.rpartition(".")
    shown = getattr(import_module(module), last)
    assert shown is getattr(import_module(shown.__module__), last)
    assert shown.__doc__
    listed = re.search(r"members: \[(.*)\]", SHOWN[name])
    for member in listed[1].split(", ") if listed else ():
        assert getattr(shown, member).__doc__


def test_python_runs(tmp_path, monkeypatch, capsys, embedded, rocket):
    (code,) = blocks(PAGE, "python")
    for name, target in (("engines", embedded), ("photo.jpg", rocket)):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "scan.tif").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "api.md", "exec"), {})
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("photo.jpg ")
    assert second.startswith("scan.tif None None not an image")
