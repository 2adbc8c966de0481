"""A build that is killed and run again, and a build in another place, give the same bundle."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from lare2_rt.bundle import open_bundle

SCRIPT = ROOT / "export/build_engines.py"
SEEDED = random.Random(20240617)


def build(out, **options):
    return subprocess.Popen([sys.executable, SCRIPT, "--out", out], stderr=subprocess.PIPE, text=True, **options)


def killed_at(out, line, delay):
    """Kill a build ``delay`` seconds after its progress line number ``line``; returns whether it was still running.

    Lines, not seconds: a kill then falls into the same phase on a fast machine and on a busy one.
    """
    process = build(out)
    for _ in range(line):
        process.stderr.readline()
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def check_rebuild(tmp_path, unbroken, points):
    out = tmp_path / "engines"
    kills = 0
    for line, delay in points:
        kills += killed_at(out, line, delay)
        if out.exists():
            open_bundle(out)  # whatever stands under the final name is whole
    process = build(out)
    _, lines = process.communicate()
    assert process.returncode == 0, lines
    assert open_bundle(out, verify=True).manifest.id == open_bundle(unbroken).manifest.id
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engines"]
    return kills, lines


def test_killed_three_times(tmp_path, built_mini):
    """At three points on the way, after the first component at the latest; later runs reuse what is finished."""
    points = [(3, SEEDED.uniform(0, 2)), (6, SEEDED.uniform(0, 2)), (5, SEEDED.uniform(0, 2))]
    kills, lines = check_rebuild(tmp_path, built_mini, points)
    assert kills == 3
    assert "already exported by an earlier run" in lines


def test_interrupted_build_says_so_and_ends_at_once(tmp_path):
    process = build(tmp_path / "engines")
    for _ in range(3):
        process.stderr.readline()
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, lines = process.communicate()
    assert process.returncode == 130
    assert time.monotonic() - begin < 5
    assert lines.splitlines()[-1].startswith("build_engines: interrupted; finished components are kept")
    assert "Traceback" not in lines
    assert not (tmp_path / "engines").exists()


def test_full_disk_is_a_sentence(tmp_path):
    """No file may grow over 200 kB: the first weights do not fit."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    process = build(tmp_path / "engines", preexec_fn=limit)
    _, lines = process.communicate()
    assert process.returncode == 2
    assert "Traceback" not in lines
    assert lines.splitlines()[-1].startswith("build_engines: cannot write the bundle: file too large; free some space")
    assert not (tmp_path / "engines").exists()


@pytest.mark.slow
@pytest.mark.parametrize("row", range(4))
def test_killed_at_twenty_points(row, tmp_path, built_mini):
    """Four builds, each killed five times at seeded points anywhere between its start and its end."""
    seeded = random.Random(row)
    points = [(seeded.randint(1, 19), seeded.uniform(0, 3)) for _ in range(5)]
    kills, _ = check_rebuild(tmp_path, built_mini, points)
    assert kills >= 3  # a late point can fall behind the end of a build that had little left to do


@pytest.mark.slow
def test_two_environments_give_equal_component_bytes(tmp_path, built_mini):
    """The same packages reached through another path, and a copy of the project: not one byte differs."""
    copy = tmp_path / "elsewhere" / "project"
    for package in ("lare2_ref", "export", "runtime"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--symlinks", environment], check=True)
    site = next((environment / "lib").glob("python*/site-packages"))
    original = next(path for path in sys.path if path.endswith("site-packages"))
    for entry in os.scandir(original):
        if not entry.name.endswith(".pth") and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry.path)
    (site / "copy.pth").write_text("".join(f"{path}\n" for path in (copy, copy / "export", copy / "runtime")))
    out = tmp_path / "engines"
    command = [environment / "bin/python", copy / "export/build_engines.py", "--out", out]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    ours, theirs = open_bundle(built_mini).manifest, open_bundle(out).manifest
    assert ours.files.keys() == theirs.files.keys()
    assert {n: f.sha256 for n, f in ours.files.items()} == {n: f.sha256 for n, f in theirs.files.items()}
    assert ours.id == theirs.id
