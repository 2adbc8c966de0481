"""Steps in processes of their own: results, refusals and deaths come back as they should."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lare2_export.build.isolate import SharedLock, run_isolated
from lare2_export.build.staging import BuildError, Staging
from lare2_ref.checkpoints import SourceError
from lare2_rt.host.console import Terminated, answer_sigterm
from tests.conftest import ROOT
from tests.helpers import isolated_steps as steps


@pytest.fixture
def lock(tmp_path):
    with Staging(tmp_path / "engines").locked() as descriptor:
        yield SharedLock(descriptor)


def run(step, *arguments, lock, report=lambda line: None):
    return run_isolated("the step", step, *arguments, lock=lock, report=report)


def test_result_and_reports(lock):
    lines = []
    assert run(steps.works, 41, lock=lock, report=lines.append) == 42
    assert lines[0] == "half way"
    assert "peak memory" in lines[1]


def test_a_refusal_keeps_its_sentence(lock):
    with pytest.raises(SourceError) as refused:
        run(steps.refuses, lock=lock)
    assert (refused.value.problem, refused.value.remedy) == ("weights.pth lacks a key", "get it again")


@pytest.mark.parametrize(
    ("step", "why", "remedy"),
    [
        (steps.fails, "ZeroDivisionError: no such luck", "report the trace"),
        (steps.is_killed, "memory", "--batch 1"),
        (steps.is_terminated, "SIGTERM", "run the build again"),
        (steps.leaves, "3", "run the build again"),
    ],
)
def test_deaths_are_explained(lock, step, why, remedy):
    with pytest.raises(BuildError) as died:
        run(step, lock=lock)
    assert died.value.problem.startswith("the step ")
    assert why in died.value.problem
    assert remedy in died.value.remedy
    assert "finished components are kept" in died.value.remedy


@pytest.fixture
def answered():
    """SIGTERM answered as the commands do, and the former answers afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    answer_sigterm()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)], ids=["int", "term"]
)
def test_a_signal_ends_the_worker_too(lock, answered, number, raised):
    workers = []

    def strike(pid):
        workers.append(int(pid))
        signal.raise_signal(number)

    begin = time.monotonic()
    with pytest.raises(raised):
        run(steps.waits, lock=lock, report=strike)
    with pytest.raises(ProcessLookupError):
        os.kill(workers[0], 0)
    assert time.monotonic() - begin < 30


def test_the_signal_of_a_whole_group_is_told_as_ours(lock, answered):
    """The worker dies of it a moment before it reaches us."""
    timer = []

    def strike_both(pid):
        os.kill(int(pid), signal.SIGTERM)
        timer.append(threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)))
        timer[0].start()

    with pytest.raises(Terminated):
        run(steps.waits, lock=lock, report=strike_both)


@pytest.mark.slow
def test_no_orphan_outlives_a_killed_parent(tmp_path):
    """The worker stops writing when its parent is killed, only then is the lock free, and all end in silence."""
    target, out = tmp_path / "file", tmp_path / "engines"
    code = (
        "from pathlib import Path\n"
        "from tests.helpers import isolated_steps as s; from tests.export.test_isolate import *\n"
        f"with Staging(Path({str(out)!r})).locked() as d:\n"
        f"    run(s.writes_for_ever, {str(target)!r}, lock=SharedLock(d))"
    )
    options = {"cwd": ROOT, "stderr": subprocess.PIPE, "text": True}
    parent = subprocess.Popen([sys.executable, "-c", code], **options)
    deadline = time.monotonic() + 300  # a busy machine takes minutes to import torch
    while not target.exists():
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.send_signal(signal.SIGKILL)
    _, err = parent.communicate()  # of the worker and of Python's own helpers too
    assert "resource_tracker" not in err, err
    with Staging(out).locked():
        last = target.read_text()
        time.sleep(0.3)
        assert target.read_text() == last
