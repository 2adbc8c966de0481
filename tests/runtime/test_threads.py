"""The number of threads is what this process may use, not what the machine has."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from lare2_rt.host import machine
from lare2_rt.host.machine import available_threads

ASK = "from lare2_rt.host.machine import available_threads; print(available_threads())"


def allowed():
    return sorted(os.sched_getaffinity(0))


def asked(command=(), **options):
    line = [*command, sys.executable, "-c", ASK]
    return int(subprocess.run(line, check=True, capture_output=True, text=True, **options).stdout)


@pytest.fixture
def no_quota(monkeypatch):
    monkeypatch.setattr(machine, "_cgroup_quota", lambda root: None)


@pytest.fixture
def cgroup(monkeypatch, tmp_path):
    """Write files of a control group; its root stands in the place of the system's."""
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: set(range(8)))

    def write(files):
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content)

    return write


def test_affinity_of_the_process():
    """Set by the system call, in a process of its own."""
    one = allowed()[0]
    assert asked(preexec_fn=lambda: os.sched_setaffinity(0, {one})) == 1
    assert 1 <= asked() <= len(allowed())


@pytest.mark.skipif(shutil.which("taskset") is None, reason="taskset is not installed")
def test_affinity_by_taskset():
    assert asked(["taskset", "-c", str(allowed()[-1])]) == 1


def test_the_command_uses_what_it_may(lare2_rt, rocket):
    """The number reaches the engine, and stands in the record."""
    one = allowed()[0]
    for options, arguments, expected in (
        ({"preexec_fn": lambda: os.sched_setaffinity(0, {one})}, [], 1),
        ({"preexec_fn": lambda: os.sched_setaffinity(0, {one})}, ["--threads", "2"], 2),
    ):
        run = lare2_rt("infer", rocket, "--format", "jsonl", *arguments, **options)
        assert json.loads(run.stdout)["engine"]["threads"] == expected
        assert f", {expected} threads" in run.stderr


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("max 100000\n", 8),
        ("100000 100000\n", 1),
        ("150000 100000\n", 2),  # a thread and a half are better used by two
        ("10000 100000\n", 1),
        ("300000 100000\n", 3),
        ("1600000 100000\n", 8),  # more than the affinity allows
        ("50000 50000\n", 1),
    ],
)
def test_quota_of_version_2(cgroup, content, expected):
    cgroup({"cpu.max": content})
    assert available_threads() == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [
        ("-1", "100000", 8),
        ("100000", "100000", 1),
        ("250000", "100000", 3),
        ("20000", "100000", 1),
        ("0", "100000", 8),
        ("100000", "0", 8),
    ],
)
def test_quota_of_version_1(cgroup, quota, period, expected):
    cgroup({"cpu/cpu.cfs_quota_us": quota + "\n", "cpu/cpu.cfs_period_us": period + "\n"})
    assert available_threads() == expected


@pytest.mark.parametrize("content", ["", "max", "\n", "many 100000\n", "1e5 100000\n"])
def test_a_quota_that_says_nothing(cgroup, content):
    cgroup({"cpu.max": content})
    assert available_threads() == 8


def test_no_control_groups(cgroup):
    assert available_threads() == 8


def test_half_of_version_1(cgroup):
    cgroup({"cpu/cpu.cfs_quota_us": "100000"})
    assert available_threads() == 8


def test_systems_without_affinity(no_quota, monkeypatch):
    monkeypatch.delattr(machine.os, "sched_getaffinity")
    for count, expected in ((6, 6), (None, 1)):
        monkeypatch.setattr(machine.os, "cpu_count", lambda count=count: count)
        assert available_threads() == expected
