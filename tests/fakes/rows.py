"""Techniques of a few lines for the throughput benchmark's workers, well behaved and otherwise."""

import os
import signal
import threading
import time

import numpy as np

from benchmarks.common.kept import keep_images
from benchmarks.throughput.runner import Runner
from benchmarks.throughput.setup import TRUTH
from lare2_rt.errors import Lare2Error

SECONDS = 0.04


def arrays(picture):
    mean = np.float32(picture.image.mean() / 255)
    return {
        "latent": np.full((1, 4, 2, 2), mean),
        "lare": np.full((1, 4, 2, 2), mean * 2),
        "logits": np.array([[mean, -mean]], np.float32),
    }


def prepare(setup):
    truth = [arrays(picture) for picture in setup.pictures()]
    keep_images(setup.folder("reference") / TRUTH, truth)
    margins = [entry["logits"][0, 1] - entry["logits"][0, 0] for entry in truth]
    layouts = {"unet": {"contiguous": [0.02, 0.01], "channels_last": [0.03]}}
    return {
        "flop": {"unet_step": 2_000_000},
        "layout": {"unet": "contiguous"},
        "layout_s": layouts,
        "logit_standard_deviation": float(np.std(margins)),
    }


class Good(Runner):
    def __init__(self):
        super().__init__({"engine": "fake"})
        self.runs = 0

    def run(self, picture):
        self.runs += 1
        with self.laps("unet_step"):
            time.sleep(SECONDS)
        return arrays(picture)


def good(setup, argument):
    return Good()


class Dies(Good):
    """Ends its process in the middle of the rounds."""

    def __init__(self, end):
        super().__init__()
        self.end = end

    def run(self, picture):
        if self.runs == 4:
            self.end()
        return super().run(picture)


def exits(setup, argument):
    def end():
        print("the library says goodbye", flush=True)
        os._exit(7)

    return Dies(end)


def killed(setup, argument):
    return Dies(lambda: os.kill(os.getpid(), signal.SIGKILL))


def raises(setup, argument):
    raise ValueError("no such operator\nand a long trace")


def refuses(setup, argument):
    raise Lare2Error("the fake engine is not installed", remedy="pip install fake")


def spins(setup, argument):
    """A library whose threads never sleep."""

    def spin():
        while True:
            pass

    threading.Thread(target=spin, daemon=True).start()
    return Good()


class Wrong(Good):
    def run(self, picture):
        with self.laps("unet_step"):
            time.sleep(SECONDS / 4)
        return {"lare": arrays(picture)["lare"] * np.float32(np.nan), "logits": arrays(picture)["logits"] + 1}


def wrong(setup, argument):
    return Wrong()


class Hungry(Good):
    def run(self, picture):
        if self.runs == 3:
            self.hoard = np.ones(40_000_000)  # 320 MB
            time.sleep(1)
        return super().run(picture)


def hungry(setup, argument):
    return Hungry()


def count(setup, name):
    """A build that leaves one line for every time that it is made."""
    with (setup.folder(name).parent / f"{name}.count").open("a") as stream:
        stream.write("made\n")
    (setup.folder(name) / "file").write_text("content")
    return {"name": name}


def fail(setup):
    raise RuntimeError("the exporter gave up")
