"""A build that is killed and run again, and a build in another place, give the same bundle."""

import os
import random
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from lare2_rt.bundle import open_bundle

SCRIPT = ROOT / "export/build_engines.py"
SEEDED = random.Random(20240617)


def build(out, **options):
    return subprocess.Popen([sys.executable, SCRIPT, "--out", out], stderr=subprocess.PIPE, text=True, **options)


def killed_after(out, seconds):
    """Kill a build after a time; returns its exit code (0 if it was quicker)."""
    process = build(out)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode


def check_rebuild(tmp_path, unbroken, points):
    out = tmp_path / "engines"
    kills = 0
    for seconds in points:
        kills += killed_after(out, seconds) == -signal.SIGKILL
        if out.exists():
            open_bundle(out)  # whatever stands under the final name is whole
    assert kills > 0, "every build was quicker than its kill, so nothing was tested"
    process = build(out)
    _, lines = process.communicate()
    assert process.returncode == 0, lines
    assert open_bundle(out, verify=True).manifest.id == open_bundle(unbroken).manifest.id
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engines"]
    return lines


def test_killed_three_times(tmp_path, built_mini):
    """Seeded points on the way; later runs reuse what earlier ones finished."""
    lines = check_rebuild(tmp_path, built_mini, [SEEDED.uniform(1, 8), SEEDED.uniform(14, 20), SEEDED.uniform(24, 30)])
    assert "already exported by an earlier run" in lines


@pytest.mark.slow
@pytest.mark.parametrize("row", range(4))
def test_killed_at_twenty_points(row, tmp_path, built_mini):
    """Four builds, each killed five times at seeded points anywhere between its start and its end."""
    seeded = random.Random(row)
    check_rebuild(tmp_path, built_mini, [seeded.uniform(0.5, 60) for _ in range(5)])


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
