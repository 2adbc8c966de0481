"""Steps for test_isolate.py; worker processes import this module."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

from lare2_ref.checkpoints import SourceError


def works(number, *, report):
    report("half way")
    return number + 1


def refuses(*, report):
    raise SourceError("weights.pth lacks a key", remedy="get it again")


def fails(*, report):
    raise ZeroDivisionError("no such luck")


def is_killed(*, report):
    os.kill(os.getpid(), signal.SIGKILL)


def is_terminated(*, report):
    os.kill(os.getpid(), signal.SIGTERM)


def waits(*, report):
    report(str(os.getpid()))
    time.sleep(60)


def leaves(*, report):
    os._exit(3)


def writes_for_ever(path, *, report):
    lock = multiprocessing.get_context("spawn").Lock()  # as libraries make them; nobody puts it away
    while lock:
        Path(path).write_text(str(time.time()))
        time.sleep(0.02)
