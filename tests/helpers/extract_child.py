"""The command with an instant engine, for tests of extraction.

With the command's arguments it is the command. With a JSON list of [arguments, step] it runs each in a process of its
own, one after the other, and prints a JSON list of [exit code, steps, calls of the engine]: the process is killed at
its n-th step of writing, 0 for never. A step is a call that makes something durable or visible: fsync, rename, removal.
Odd steps are killed before they happen, even ones after.
"""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from lare2_rt.cli import (
    extract as extract_command,  # loaded once for all processes
    main,
)
from lare2_rt.engines import registry
from tests.fakes.engine import FakeEngine, entry


class MapEngine(FakeEngine):
    """Gives each picture maps and embeddings of its own, of the shapes that the bundle promises."""

    def __init__(self, *, pause=0.0, **options):
        super().__init__(**options)
        self.pause = pause

    def open(self, bundle, options):
        head = next(iter(bundle.manifest.components["clip_backbone"]))
        self.width = next(output.shape[1] for output in head.outputs if output.name == "embedding")
        self.shape = bundle.manifest.method.latent_shape
        return super().open(bundle, options)

    def run(self, image, crop, *, noise=None):
        time.sleep(self.pause)
        script, self.script = self.script, None
        output = super().run(image, crop)
        self.script = script
        means = image.reshape(len(image), -1, 3).mean(1).astype(np.float32)  # [B,3]
        steps = np.arange(np.prod(self.shape), dtype=np.float32).reshape(self.shape)
        output = replace(
            output,
            lare=means[:, 0, None, None, None] + steps * means[:, 1, None, None, None],
            embedding=means[:, 2, None] + np.arange(self.width, dtype=np.float32),
        )
        if script is not None:
            script(self.calls, output)
        return output


def watch(step):
    """Count the steps of writing and let this process kill itself at one; returns the function that gives the count."""
    count = 0

    def watched(original):
        def call(*arguments, **options):
            nonlocal count
            count += 1
            here = count
            if here == step and step % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments, **options)
            if here == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    os.fsync = watched(os.fsync)
    Path.replace = watched(Path.replace)
    Path.unlink = watched(Path.unlink)
    return lambda: count


def one_of_many(arguments, step, report):
    """Run the command in a new process; returns its exit code, negative for a signal."""
    child = os.fork()
    if not child:
        engine = use()
        steps = watch(step)
        sys.argv = ["lare2-rt", *arguments]
        try:
            main()
        except SystemExit as left:
            os.write(report, json.dumps([steps(), engine.calls]).encode())
            os._exit(left.code or 0)
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def use():
    engine = MapEngine(pause=float(os.environ.get("PAUSE", "0")))
    registry.ENGINES = (entry(engine),)
    return engine


def run_all(plan):
    answers = []
    for arguments, step in plan:
        reader, writer = os.pipe()
        code = one_of_many(arguments, step, writer)
        os.close(writer)
        answers.append([code, *json.loads(os.read(reader, 1000) or b"[0, 0]")])
        os.close(reader)
    return answers


if __name__ == "__main__":
    assert extract_command.run
    if sys.argv[1].startswith("["):
        print(json.dumps(run_all(json.loads(sys.argv[1]))))
    else:
        use()
        sys.argv[0] = "lare2-rt"
        main()
