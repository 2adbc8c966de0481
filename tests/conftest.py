"""Fixtures. Bundles are expensive: everything in a run, all its workers together, shares three of them."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

from lare2_rt.bundle.locate import embedded_bundle

ROOT = Path(__file__).parents[1]
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
PHOTOS = sorted(
    p for p in (*(ROOT / "tests/photos").iterdir(), ROOT / "examples/photo.jpg") if p.suffix in (".jpg", ".png")
)


def pytest_configure():
    """Prepare the process: its core and its signals.

    Every worker gets a core of its own: threads of libraries wait for each other by spinning, so that two workers on
    the same cores would mostly wait. A job in the background of a shell ignores Ctrl-C, and so would every process that
    a test interrupts.
    """
    # Hundreds of tests start the command: each would compile the package anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(CORES)
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)  # after the tests that do not run were left out, or the middle would be elsewhere
def pytest_collection_modifyitems(items):
    if shutil.which("nvidia-smi") is None:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and nvidia-smi is not here"))
    items[:] = spread(items)


def pytest_collection_finish():
    """What is imported by now stays: without this, Python looks through torch's objects for garbage again and again."""
    gc.collect()
    gc.freeze()


def spread(items):
    """Order tests so that workers, each of which begins with a stretch of its own, begin with different builds.

    The tests that share the tiny bundle come first, the builds of the default model in the middle; the rest stays in
    its order around them. Otherwise one worker would wait for the other's build, or be left with one at the end.
    """
    tiny = [item for item in items if "tiny" in item.fixturenames]
    mini = [item for item in items if "built_mini" in item.fixturenames or "test_rebuild" in item.nodeid]
    mini = [item for item in mini if item not in tiny]
    rest = [item for item in items if item not in tiny and item not in mini]
    middle = max(0, len(items) // 2 - len(tiny))
    return [*tiny, *rest[:middle], *mini, *rest[middle:]]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """No test reads or writes the user's cache, or sees a bundle that the user chose."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LARE2_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.delenv("LARE2_BUNDLE", raising=False)
        yield


@pytest.fixture(scope="module")
def every_core():
    """Let what starts from here on use all cores that the run may use, for tests of more than one thread."""
    if not CORES:
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    yield
    os.sched_setaffinity(0, own)


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


@pytest.fixture(scope="session")
def untrained(embedded, tmp_path_factory) -> Path:
    """The embedded bundle as if its weights had never been trained: it never gives a verdict."""
    from lare2_rt.bundle.manifest import Decision
    from lare2_rt.bundle.opening import open_bundle
    from lare2_rt.bundle.rewrite import write_with_decision

    out = tmp_path_factory.mktemp("untrained") / "bundle"
    write_with_decision(open_bundle(embedded), out, Decision(calibration="untrained"))
    return out


@pytest.fixture
def bundle_copy(embedded, tmp_path) -> Path:
    """A copy of the embedded bundle that a test may damage."""
    return Path(shutil.copytree(embedded, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def once(tmp_path_factory, worker_id):
    """Make something expensive in a folder that all workers of the run share, the first time that one asks for it.

    Runs that have the same folder in LARE2_TEST_BUILDS share it too.
    """
    folder = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        folder = folder.parent
    folder = Path(os.environ.get("LARE2_TEST_BUILDS", folder))

    def once(name: str, make) -> Path:
        place = folder / name
        with FileLock(folder / f"{name}.lock"):
            if not (place / "made").exists():
                place.mkdir()  # exists after a failure: the next worker fails here and does not try again
                make(place)
                (place / "made").touch()
        return place

    return once


@pytest.fixture(scope="session")
def built_mini(once) -> Path:
    """The default model, built by the script without options, as the README says."""

    def make(folder):
        script = ROOT / "export/build_engines.py"
        run = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        (folder / "build.log").write_text(run.stderr)

    return once("build", make) / "engines"


@pytest.fixture(scope="session")
def tiny(once):
    """(sources, bundle) of the golden tiny pipeline, in both precisions."""
    from lare2_export.build.bundle import build_bundle
    from lare2_export.build.options import BuildOptions
    from lare2_rt.bundle.opening import open_bundle
    from tests.helpers.tiny import open_tiny, write_tiny

    def make(folder):
        sources = write_tiny(folder / "model", "epsilon")
        options = BuildOptions(batches=(1,), half=True)
        build_bundle(sources, folder / "bundle", options, report=lambda line: None)

    folder = once("tiny", make)
    return open_tiny(folder / "model"), open_bundle(folder / "bundle")


@pytest.fixture
def lare2_rt(tmp_path):
    """Run the command in a process of its own and return the finished process."""

    def run(*arguments, cwd=tmp_path, **options):
        command = [sys.executable, "-m", "lare2_rt", *map(os.fspath, arguments)]
        options.setdefault("text", True)
        return subprocess.run(command, cwd=cwd, capture_output=True, check=False, timeout=120, **options)

    return run


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run the command in this process, in an empty folder; returns (exit code, standard output, standard error)."""
    from tests.helpers.commands import call

    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*arguments, **options):
        done = call(*arguments, **options)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def fake(monkeypatch):
    """An instant engine in the place of all others: the brighter a picture, the more it is called generated."""
    from tests.fakes.engine import FakeEngine, use_engines

    engine = FakeEngine()
    use_engines(monkeypatch, engine)
    return engine


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Six pictures of different brightness."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("small")
    for i in range(6):
        Image.new("RGB", (16, 16), (40 * i,) * 3).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def open_project():
    """A copy of the runtime that every user may read and, inside it, a folder that only NOBODY may write."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    import onnxruntime

    import lare2_rt
    from tests.helpers.commands import NOBODY

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
    from tests.helpers.commands import AS_NOBODY, NOBODY, without_privileges

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
