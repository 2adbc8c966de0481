"""What tests of the command share: its sentences and results, and its run without root's rights."""

import csv
import ctypes
import io
import json
import os
import re
import signal
import sys
from types import SimpleNamespace

import pytest

from lare2_rt.cli import main

FORMATS = ("json", "jsonl", "csv", "txt")
# What ends a run: the word in the sentence and the exit code.
ENDING = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}


SUMMARY = re.compile(r"\d+ images in \d+\.\d s: ")


def call(*arguments, folder=None, stdin=None, stdout=None, stderr=None, encoding="utf-8"):
    """Run the command in this process, with the answers of a process: returncode, stdout and stderr.

    ``stdin`` is bytes; open text streams may stand in the place of the two outputs, which are empty then.
    """
    out, err = (
        io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="", errors=errors)
        for errors in ("strict", "backslashreplace")  # as Python opens them
    )
    before = {number: signal.getsignal(number) for number in ENDING}
    with pytest.MonkeyPatch.context() as patch:
        if folder is not None:
            patch.chdir(folder)
        patch.setattr(sys, "argv", ["lare2-rt", *map(os.fspath, arguments)])
        patch.setattr(sys, "stdout", stdout or out)
        patch.setattr(sys, "stderr", stderr or err)
        if stdin is not None:
            content = io.BytesIO(stdin)
            content.name = "<stdin>"
            patch.setattr(sys, "stdin", io.TextIOWrapper(content))
        with pytest.raises(SystemExit) as left:
            main()
    assert before == {number: signal.getsignal(number) for number in ENDING}
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(encoding))
    return SimpleNamespace(returncode=left.value.code, stdout=texts[0], stderr=texts[1])


def sentences(stderr):
    """The lines of standard error, which are all ours; what each run says first and last is left out."""
    lines = stderr.splitlines()
    assert all(line.startswith("lare2-rt: ") for line in lines), stderr
    ours = [line.removeprefix("lare2-rt: ") for line in lines]
    return [line for line in ours if not line.startswith(("bundle mini (", "note: ")) and not SUMMARY.match(line)]


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def records(path):
    """The records of a results file, whose text must be a complete document."""
    text = path.read_text()
    form = path.name.split(".")[1]
    if form == "json":
        return json.loads(text)
    if form == "jsonl":
        assert text == "" or text.endswith("\n")
        return [json.loads(line) for line in text.splitlines()]
    if form == "csv":
        return list(csv.DictReader(io.StringIO(text)))
    return [line for line in text.splitlines() if ".png" in line or ".jpg" in line]


NOBODY = 65534


def without_privileges():
    """Before exec: root loses the right to read and write what modes forbid; others have no such right."""
    if os.geteuid() == 0:
        drop, libc = 24, ctypes.CDLL(None)
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            libc.prctl(drop, capability, 0, 0, 0)


# Python may live where other users cannot go: by scoring an image it imports all that is needed while it can, and
# it starts no other Python to decode.
AS_NOBODY = f"""
import os, sys
from lare2_rt import Detector
from lare2_rt.cli import evidence_output, infer_targets, main
from lare2_rt.tools import inputs
with Detector.load() as detector:
    detector.detect(sys.argv[1])
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
sys.argv = ["lare2-rt", *sys.argv[2:], "--no-isolate"]
main()
"""
