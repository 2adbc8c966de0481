"""The process that decodes one file after the other for ``IsolatedDecoder``; whatever a decoder does, it does here.

Orders come in on standard input, answers go out on what was standard output. Both begin with one byte for the kind and
eight for the length of what follows.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import sys
import warnings
from dataclasses import asdict
from typing import IO

from PIL import Image

from ..errors import ImageError, PassingImageError, no_memory
from .limits import MAX_PIXELS, Limits
from .packing import pack, pack_picture
from .picture import read_picture, read_properties
from .policy import Preprocessing
from .preprocess import DecodeTask

HEAD = struct.Struct("<BQ")
# Orders: pixels of a file, or of encoded bytes; the whole picture, or the properties, of a file.
PATH, CONTENT, PICTURE, PROPERTIES = 0, 1, 2, 3
READY, DONE, REFUSED = 0, 1, 2  # answers
_GRACE = 5.0  # seconds after which a process ends itself whose parent should have ended it, and cannot


def encode_task(task: DecodeTask) -> str:
    """Return a task as JSON, for the command line of the process."""
    return json.dumps(asdict(task))


def _decode_task(text: str) -> DecodeTask:
    fields = json.loads(text)
    policy, limits = Preprocessing(**fields.pop("policy")), Limits(**fields.pop("limits"))
    return DecodeTask(policy, limits=limits, **fields)


def main(encoded: str) -> None:
    """Serve orders until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes standard input
    answers = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    task = _decode_task(encoded)
    Image.MAX_IMAGE_PIXELS = max(task.limits.max_pixels, MAX_PIXELS)  # a smaller limit is kept with a better sentence
    warnings.simplefilter("ignore")
    _no_core_dump()
    _send(answers, READY, b"")
    os.dup2(null, 2)  # decoders written in C complain there
    with contextlib.suppress(BrokenPipeError):
        _serve(task, sys.stdin.buffer, answers)


def _serve(task: DecodeTask, orders: IO[bytes], answers: IO[bytes]) -> None:
    while len(head := orders.read(HEAD.size)) == HEAD.size:
        kind, size = HEAD.unpack(head)
        content = orders.read(size)
        if len(content) < size:
            return
        _alarm(task.limits.max_seconds + _GRACE)
        answer = _answer(task, kind, content)
        del content
        _alarm(0)
        _send(answers, *answer)


def _answer(task: DecodeTask, kind: int, content: bytes) -> tuple[int, bytes]:
    try:
        if kind == PROPERTIES:
            return DONE, json.dumps(asdict(read_properties(os.fsdecode(content), limits=task.limits))).encode()
        if kind == PICTURE:
            return DONE, pack_picture(read_picture(os.fsdecode(content), task.policy, limits=task.limits))
        return DONE, pack(task.decode(os.fsdecode(content) if kind == PATH else content))
    except ImageError as error:
        return REFUSED, _refusal(error)
    except MemoryError:
        return REFUSED, _refusal(no_memory())


def _refusal(error: ImageError) -> bytes:
    return json.dumps([error.problem, error.remedy, isinstance(error, PassingImageError)]).encode()


def _send(answers: IO[bytes], kind: int, content: bytes) -> None:
    answers.write(HEAD.pack(kind, len(content)) + content)
    answers.flush()


def _alarm(seconds: float) -> None:
    """Let the system end this process after so many seconds, whatever it does then; 0 calls that off."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _no_core_dump() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
