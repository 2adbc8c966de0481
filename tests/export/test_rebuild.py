"""A build that is killed and run again, and a build in another place, give the same bundle."""

import functools
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import pytest

from lare2_rt.bundle.manifest import Decision
from lare2_rt.bundle.opening import open_bundle
from tests.conftest import ROOT
from tests.helpers.processes import environment
from tests.helpers.quick_build import PAUSE, build_quickly

pytestmark = pytest.mark.usefixtures("every_core")

SCRIPT = ROOT / "export/build_engines.py"
SEEDED = random.Random(20240617)
PACKAGED = [
    path for name in ("lare2_ref", "export/lare2_export", "runtime/lare2_rt") for path in (ROOT / name).rglob("*")
]
# Nothing may lead to the checkout.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def build(out, *, arguments=(), **options):
    command = [sys.executable, SCRIPT, "--out", out, *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


def start_quick_build(out):
    command = [sys.executable, "-m", "tests.helpers.quick_build", out]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(ROOT))


def killed_at(out, line, delay, start):
    """Kill a build ``delay`` seconds after its progress line number ``line``; returns whether it was still running.

    Lines, not seconds: a kill then falls into the same phase on a fast machine and on a busy one.
    """
    process = start(out)
    for _ in range(line):
        process.stderr.readline()
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def killed_and_built(tmp_path, points, start, kills):
    """Kill builds at ``points`` until so many kills have struck, then build; returns what that last run had to say.

    A point behind the end of a build that had little left to do kills nothing: the next build replaces its bundle.
    """
    out = tmp_path / "engines"
    for line, delay in points:
        kills -= killed_at(out, line, delay, start)
        if out.exists():
            open_bundle(out)  # whatever stands under the final name is whole
        if kills == 0:
            break
    assert kills == 0
    process = start(out)
    _, lines = process.communicate()
    assert process.returncode == 0, lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engines"]
    return lines


def seeded_points(seed, marks, *, lines, delay):
    """Yield points anywhere between the start of a build and its end, which is nearer the more is finished already.

    ``lines`` are what an unbroken build for one batch size reports; a component that is reused has one of its four.
    """
    seeded = random.Random(seed)
    while True:
        finished = len(list(marks.glob("*.done.json")))
        yield seeded.randint(1, lines - 3 * finished), seeded.uniform(0, delay)


def id_of_first_batch(manifest, decision):
    """Return the id that a bundle has with this decision and without its graphs for other batches than 1: weights are
    shared by all.
    """
    components = {name: several[:1] for name, several in manifest.components.items()}
    assert {variant.batch for (variant,) in components.values()} == {1}
    gone = {v.graph for several in manifest.components.values() for v in several[1:]}
    files = {name: entry for name, entry in manifest.files.items() if name not in gone}
    return manifest.model_copy(update={"components": components, "files": files, "decision": decision}).compute_id()


def test_killed_three_times(tmp_path):
    """At three points on the way, after the first component at the latest; later runs reuse what is finished."""
    points = [(line, SEEDED.uniform(0, PAUSE)) for line in (3, 6, 5)]
    lines = killed_and_built(tmp_path, points, start_quick_build, kills=3)
    assert "already exported by an earlier run" in lines
    assert_as_unbroken_quick_build(tmp_path)


def assert_as_unbroken_quick_build(tmp_path):
    unbroken = build_quickly(tmp_path / "unbroken")
    assert open_bundle(tmp_path / "engines", verify=True).manifest.id == unbroken.manifest.id


def keys(manifest):
    return {name: several[0].component_key for name, several in manifest.components.items()}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("whole_group", [False, True])
def test_interrupted_build_says_so_and_ends_at_once(tmp_path, embedded, number, whole_group):
    """Alone, or with all its workers as Ctrl-C in a terminal and 'timeout' do; the old bundle is back in its place."""
    out, aside = tmp_path / "engines", tmp_path / ".engines.old-0123abcd"
    shutil.copytree(embedded, aside)
    process, started = build(out, start_new_session=True), time.monotonic()
    lines = []
    while not lines or "exporting batch 1" not in lines[-1]:
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    begin = time.monotonic()
    # The server of the workers imports what the build has imported by now, and looks up only after that.
    patience = max(15, begin - started)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    lines += process.communicate()[1].splitlines()
    word, code = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}[number]
    assert process.returncode == code
    assert lines[-1] == f"build_engines: {word}; finished components are kept and reused by the next run"
    assert "Traceback" not in "".join(lines)
    while group_lives(process.pid):
        assert time.monotonic() - begin < patience
        time.sleep(0.05)
    (told,) = [line for line in lines if "killed build" in line]
    assert told.rstrip().endswith(f"note: {out} was missing after a killed build: put back from {aside.name}")
    assert open_bundle(out).manifest.id == open_bundle(embedded).manifest.id
    assert not aside.exists()


def group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_full_disk_is_a_sentence(tmp_path):
    """No file may grow over 200 kB: the first weights do not fit."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    # Python would leave what fits of a module's bytecode, and later runs would stumble over it.
    process = build(tmp_path / "engines", preexec_fn=limit, env=environment(PYTHONDONTWRITEBYTECODE=1))
    _, lines = process.communicate()
    assert process.returncode == 2
    assert "Traceback" not in lines
    assert lines.splitlines()[-1].startswith("build_engines: cannot write the bundle: file too large; free some space")
    assert not (tmp_path / "engines").exists()


@pytest.mark.slow
def test_killed_twelve_times(tmp_path):
    points = seeded_points(0, tmp_path / ".engines.finished", lines=17, delay=PAUSE)
    killed_and_built(tmp_path, itertools.islice(points, 30), start_quick_build, kills=12)
    assert_as_unbroken_quick_build(tmp_path)


@pytest.mark.slow
def test_real_build_killed_eight_times(tmp_path, built_mini):
    """With its workers and everything that they export."""
    points = seeded_points(1, tmp_path / ".engines.finished", lines=21, delay=2)
    start = functools.partial(build, arguments=("--batch", "1"))
    killed_and_built(tmp_path, itertools.islice(points, 20), start, kills=8)
    # One of this machine: constants that are folded in torch are rounded as its processor does.
    rebuilt, unbroken = (open_bundle(path, verify=True).manifest for path in (tmp_path / "engines", built_mini))
    assert keys(rebuilt) == keys(unbroken)
    assert rebuilt.decision == Decision(calibration="uncalibrated", demonstration=True)
    assert rebuilt.id == id_of_first_batch(unbroken, rebuilt.decision)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The project as it is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.iterdir()
    return path


def test_wheel_is_small_and_whole(wheel):
    """At most 24 MB of embedded bundle and reference weights, and as much for everything together."""
    models = [path for path in PACKAGED if path.is_file() and "models" in path.parts]
    assert sum(path.stat().st_size for path in models) <= 24e6
    assert wheel.stat().st_size <= 24e6
    with zipfile.ZipFile(wheel) as archive:
        held = {info.filename: info.file_size for info in archive.infolist()}
    for path in models:
        (name,) = [name for name in held if str(path).endswith("/" + name)]
        assert held[name] == path.stat().st_size
    assert {"lare2_export/__main__.py", "lare2_rt/cli/app.py", "lare2_ref/lare.py"} <= held.keys()
    assert {name.split("/")[0].split("-")[0] for name in held} == {"lare2_rt", "lare2_ref", "lare2_export"}
    hidden = [name for name in held if "/." in name or name.endswith(".pyc")]
    assert hidden == []


@pytest.mark.slow
def test_no_file_of_a_bundle_tells_where_it_was_built(built_mini, embedded):
    """Weight files and arrays too: nothing between the tensors, nothing after them."""
    names = {str(ROOT), str(built_mini), str(built_mini.parent), str(Path.home()), sys.prefix, "site-packages"}
    for folder in (built_mini, embedded):
        for path in folder.iterdir():
            content = path.read_bytes()
            assert [name for name in names if len(name) > 1 and name.encode() in content] == [], path.name


@pytest.mark.slow
def test_two_environments_give_equal_bytes(tmp_path, wheel):
    """The project's wheel, installed into two environments at different places: not one byte of their bundles differs.

    All packages stand in both environments, under each one's own paths; their files are shared by hard links, for a
    second torch would not fit into the disks on which these tests have to run. So no path of the project, of a package,
    of the environment, of the working folder or of the target gets into a bundle.
    """
    folders = [tmp_path / "one", tmp_path / "another/and/a/rather/longer/way/to/it"]
    bundles = []
    for folder in folders:
        python = installed(wheel, folder / "environment")
        run = in_environment(python, "-c", WHERE, cwd=folder)
        modules = run.stdout.splitlines()
        assert len(modules) > 500
        assert [name for name in modules if not Path(name).is_relative_to(folder / "environment/lib")] == []
        in_environment(python, "-m", "lare2_export", "--batch", "1", cwd=folder)
        bundles.append({path.name: path.read_bytes() for path in (folder / "engines").iterdir()})
    ours, theirs = bundles
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert [n for n, content in ours.items() for folder in folders if str(folder).encode() in content] == []


def installed(wheel, environment):
    """Make an environment with the wheel and the packages of this one in it; returns its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin/python"
    site = next((environment / "lib").glob("python*/site-packages"))
    # Without this project, and without what would lead back to where it is developed.
    left_out = shutil.ignore_patterns("lare2_*", "*.pth", "__editable__*")
    shutil.copytree(sysconfig.get_path("purelib"), site, copy_function=linked, ignore=left_out, dirs_exist_ok=True)
    command = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(command, env=ENVIRONMENT, check=True)
    return python


def linked(source, target):
    """Give a file a second name; on another disk a symbolic link, which Python does not follow to name a module."""
    try:
        os.link(source, target)
    except OSError:
        Path(target).symlink_to(source)


WHERE = """
import sys, lare2_ref, lare2_export, lare2_rt, torch, diffusers, transformers, open_clip, onnx_ir, onnxscript, numpy
modules = [m.__file__ for m in sys.modules.values() if getattr(m, "__file__", None)]
print(*[name for name in modules if "site-packages" in name or "lare2" in name], sep="\\n")
"""


def in_environment(python, *arguments, cwd):
    run = subprocess.run([python, *arguments], cwd=cwd, env=ENVIRONMENT, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run
