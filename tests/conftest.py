"""Fixtures. Bundles are expensive: everything in a session shares three of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lare2_rt.locate import embedded_bundle

ROOT = Path(__file__).parents[1]
PHOTOS = sorted(
    p for p in (*(ROOT / "tests/photos").iterdir(), ROOT / "examples/photo.jpg") if p.suffix in (".jpg", ".png")
)


def pytest_configure():
    """A job in the background of a shell ignores Ctrl-C, and so would every process that a test interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    if shutil.which("nvidia-smi") is None:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and nvidia-smi is not here"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache, or sees a bundle that the user chose."""
    monkeypatch.setenv("LARE2_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("LARE2_BUNDLE", raising=False)


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    return PHOTOS


@pytest.fixture(scope="session")
def rocket() -> Path:
    """A 640×427 JPEG."""
    return ROOT / "tests/photos/rocket.jpg"


@pytest.fixture(scope="session")
def embedded() -> Path:
    return embedded_bundle()


@pytest.fixture
def bundle_copy(embedded, tmp_path) -> Path:
    """A copy of the embedded bundle that a test may damage."""
    return Path(shutil.copytree(embedded, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def built_mini(tmp_path_factory) -> Path:
    """The default model, built by the script without options, as the README says."""
    folder = tmp_path_factory.mktemp("build")
    script = ROOT / "export/build_engines.py"
    run = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (folder / "build.log").write_text(run.stderr)
    return folder / "engines"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """(sources, bundle) of the golden tiny pipeline, in both precisions."""
    from tiny import write_tiny

    from lare2_export.build import build_bundle
    from lare2_export.options import BuildOptions

    folder = tmp_path_factory.mktemp("tiny")
    sources = write_tiny(folder / "model", "epsilon")
    options = BuildOptions(batches=(1,), half=True)
    return sources, build_bundle(sources, folder / "bundle", options, report=lambda line: None)


@pytest.fixture
def lare2_rt(tmp_path):
    """Run the command in a process of its own and return the finished process."""

    def run(*arguments, cwd=tmp_path, **options):
        command = [sys.executable, "-m", "lare2_rt", *map(os.fspath, arguments)]
        options.setdefault("text", True)
        return subprocess.run(command, cwd=cwd, capture_output=True, check=False, timeout=120, **options)

    return run
