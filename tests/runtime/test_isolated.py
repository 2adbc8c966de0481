"""Decoding in processes: the same bits, and a decoder that crashes, hangs or is killed costs one file."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lare2_rt import Detector, EngineError, ImageError, UsageError, build_index, open_bundle, open_features, write_index
from lare2_rt.pixels.ahead import Cancellation
from lare2_rt.pixels.limits import MAX_PIXELS, Limits
from lare2_rt.pixels.policy import Preprocessing
from lare2_rt.pixels.pool import IsolatedDecoder, Worker
from lare2_rt.pixels.preprocess import DecodeTask, preprocess
from tests.conftest import ROOT
from tests.helpers import damage
from tests.helpers.processes import environment
from tests.runtime.test_hostile import black_png

POLICY = Preprocessing(exif="official", alpha="white", icc="srgb")
# In the process that decodes, PNGs of some sizes do what broken decoders do. The endless one is stuck in C code and
# lets no other Python code run, nor any handler of a signal.
SITE = """
import os, re, signal
from PIL import PngImagePlugin
whole = PngImagePlugin.PngImageFile.load
def load(self):
    side = self.size[0]
    if side == 13: os.kill(os.getpid(), signal.SIGSEGV)
    if side == 17: re.match("(a+)+$", "a" * 60 + "b")
    if side == 19: os._exit(7)
    if side == 23: os.kill(os.getpid(), signal.SIGKILL)
    if side == 29: raise MemoryError
    return whole(self)
PngImagePlugin.PngImageFile.load = load
"""
REFUSED = {
    13: "its decoder crashed (SIGSEGV); the file is damaged or means harm: open and save it with another program",
    17: "decoding took more than 1 seconds and was stopped; convert it to another format, or allow more with 'lare2-rt "
    "infer --max-seconds'",
    19: "its decoder crashed (code 7); the file is damaged or means harm: open and save it with another program",
    23: "its decoder was killed, most likely for want of memory; scale it down or free some memory",
    29: "too little memory to decode it; scale it down first",
}


def task(policy=POLICY, **limits):
    return DecodeTask(policy, 64, 48, Limits(**limits))


def isolated(processes=1, **limits):
    return IsolatedDecoder(task(**limits), processes=processes)


def same(ours, theirs):
    return np.array_equal(ours.image, theirs.image) and np.array_equal(ours.crop, theirs.crop)


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """From the call on, decoders in other processes are broken; those in this one are not."""

    def planted():
        folder = tmp_path / "site"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(SITE)
        monkeypatch.setenv("PYTHONPATH", environment(folder)["PYTHONPATH"])

    return planted


@pytest.fixture
def site(plant):
    plant()


@pytest.fixture
def sized(tmp_path):
    """Paths of PNGs by their side."""

    def write(*sides):
        paths = []
        for number, side in enumerate(sides):
            paths.append(tmp_path / f"{number:02}-{side}.png")
            Image.new("RGB", (side, side), (side, 0, 0)).save(paths[-1])
        return paths

    return write


def test_same_bits_as_in_this_process(photos, tmp_path, monkeypatch):
    picture = np.random.default_rng(5).integers(0, 256, (90, 70, 3), np.uint8)
    contents = [damage.encoded(form, picture) for form in damage.FORMATS]
    contents.append(damage.encoded("PNG", picture, mode="RGBA"))
    decoder = isolated(2)
    try:
        for source in (*photos, *contents):
            here = preprocess(source, POLICY, image_size=64, crop_size=48)
            assert same(decoder.decode(source), here)
        assert same(decoder.decode(io.BytesIO(contents[0])), decoder.decode(contents[0]))
        # A relative path means what it means here and now.
        (tmp_path / "x.png").write_bytes(contents[1])
        monkeypatch.chdir(tmp_path)
        assert same(decoder.decode("x.png"), decoder.decode(contents[1]))
        for source, words in (("nowhere.png", "no such file"), (b"", "empty"), (io.StringIO("x"), "binary mode")):
            with pytest.raises(ImageError, match=words):
                decoder.decode(source)
    finally:
        decoder.close()


def test_strips_give_the_bits_of_the_whole(monkeypatch):
    """Large pictures are converted in strips; where a strip ends changes nothing."""
    picture = np.random.default_rng(6).integers(0, 256, (120, 90, 3), np.uint8)
    sources = [Image.fromarray(picture).convert(mode) for mode in ("RGBA", "LA", "P", "CMYK", "L", "1", "HSV", "YCbCr")]
    sources.append(Image.fromarray(picture[..., 0].astype(np.uint16) * 257))
    sources.append(Image.fromarray(picture[..., 0].astype(np.int32) * 257))
    sources[2].info["transparency"] = bytes(range(256))
    whole = [preprocess(source, POLICY, image_size=64, crop_size=48) for source in sources]
    for pixels in (1, 90, 1000):
        monkeypatch.setattr("lare2_rt.pixels.colour._STRIP", pixels)
        for source, expected in zip(sources, whole, strict=True):
            assert same(preprocess(source, POLICY, image_size=64, crop_size=48), expected), source.mode


def test_each_kind_of_death_costs_one_file(site, sized, fake, embedded):
    sides = [8, 13, 9, 17, 10, 19, 23, 11, 29, 12]
    files = sized(*sides)
    with Detector.load(embedded, isolate=True, limits=Limits(max_seconds=1)) as detector:
        begin = time.monotonic()
        results = list(detector.detect_many(files))
        assert time.monotonic() - begin < 10
        assert [result.source for result in results] == list(map(str, files))
        assert [result.error for result in results] == [REFUSED.get(side) for side in sides]
        alone = Detector.load(embedded)
        for result, side in zip(results, sides, strict=True):
            if side not in REFUSED:
                assert result.logits == alone.detect(files[sides.index(side)]).logits
        with pytest.raises(ImageError, match="SIGSEGV"):
            detector.detect(files[1])
        assert detector.detect(files[0]).ok


def test_the_parent_ends_a_stuck_decoder_itself(site, sized):
    """Before, and without, the alarm that the process has set for itself."""
    decoder, (path,) = isolated(max_seconds=90), sized(17)
    decoder._workers[0]._task = task(max_seconds=1)
    try:
        begin = time.monotonic()
        with pytest.raises(ImageError, match="more than 1 seconds"):
            decoder.decode(path)
        assert time.monotonic() - begin < 30
    finally:
        decoder.close()


def test_whole_command(site, sized, lare2_rt):
    files = sized(8, 13, 17, 9)
    run = lare2_rt("infer", *files, "--max-seconds", "1", "--format", "csv")
    assert run.returncode == 1
    told = [line for line in run.stderr.splitlines() if ".png: " in line]
    assert [line.rpartition(".png: ")[2] for line in told] == [REFUSED[13], REFUSED[17]]
    assert re.search(r": (2 \w+|1 \w+, 1 \w+), 2 failed$", run.stderr.splitlines()[-1])
    assert len(run.stdout.splitlines()) == 5


@pytest.fixture
def labelled(tmp_path):
    """A folder with 13 real and 13 generated pictures, one of which crashes a planted decoder, and its list."""
    folder = tmp_path / "set"
    folder.mkdir()
    lines = []
    for side in range(5, 31):
        if side not in (17, 19, 23, 29):
            Image.new("RGB", (side, side), (4 * side + 120 * (side % 2),) * 3).save(folder / f"{side}.png")
            lines.append(f"{side}.png {side % 2}\n")
    (folder / "list.txt").write_text("".join(lines))
    return folder


CRASHED = "its decoder crashed (SIGSEGV)"


def test_index_and_extraction_of_a_folder(plant, labelled, fake, command, tmp_path):
    plant()
    code, _, err = command("index", labelled / "list.txt", "--out", tmp_path / "index.parquet")
    assert f"13.png: {CRASHED}" in err
    code, _, err = command("extract", labelled, "--out", tmp_path / "features")
    assert code == 1
    assert f"13.png: {CRASHED}" in err
    assert len(open_features(tmp_path / "features")) == 21


@pytest.mark.parametrize("name", ["extract", "evaluate", "calibrate"])
def test_a_crash_costs_one_image_of_a_long_run(plant, labelled, fake, command, tmp_path, name):
    """The index was made where the file could be read, by another version of the decoder for instance."""
    write_index(tmp_path / "index.parquet", build_index(labelled / "list.txt").index)
    plant()
    options = {
        "extract": ["--out", "features"],
        "evaluate": ["--split", "all", "--resamples", "5", "--corrupt", "half"],
        "calibrate": ["--split", "all", "--out", "calibrated", "--fpr", "0.2"],
    }[name]
    code, _, err = command(name, tmp_path / "index.parquet", *options)
    told = [line for line in err.splitlines() if CRASHED in line]
    assert (code, len(told)) == (1, 2 if name == "evaluate" else 1), err
    assert all(f"13.png: {CRASHED}; " in line for line in told)
    if name == "extract":
        assert len(open_features(Path("features"))) == 21
    elif name == "evaluate":
        (model,) = json.loads(Path("evaluation/evaluation.json").read_text())["models"]
        assert [len(condition["failures"]) for condition in model["conditions"]] == [1, 1]
    else:
        assert open_bundle("calibrated").manifest.decision.calibration == "calibrated"


def test_an_interrupted_answer_is_not_taken_for_the_next(sized, monkeypatch):
    decoder, (first, second) = isolated(), sized(8, 9)
    try:
        expected = decoder.decode(second)
        with monkeypatch.context() as patch:
            patch.setattr(Worker, "_read", lambda self: _raise(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                decoder.decode(first)
        assert same(decoder.decode(second), expected)
    finally:
        decoder.close()


def _raise(error):
    raise error


def test_abandoning_a_stuck_decoder_takes_no_time(site, sized, fake, embedded):
    files = sized(8, 17, 17, 9)
    with Detector.load(embedded, isolate=True) as detector:
        stream = detector.detect_many(files)
        assert next(stream).ok
        begin = time.monotonic()
        stream.close()
        assert time.monotonic() - begin < 5
        assert detector.detect(files[3]).ok


def test_what_was_cancelled_is_not_begun(site, sized):
    """Also by a process that was not running then, and would be started by the file."""
    files, cancellation = sized(17, 8), Cancellation()
    decoder = IsolatedDecoder(task(), processes=2)
    try:
        cancellation.cancel()
        begin = time.monotonic()
        for _ in range(3):  # the second process as well
            with pytest.raises(ImageError, match="was cancelled"):
                decoder.decode(files[0], cancellation=cancellation)
        assert time.monotonic() - begin < 30  # the file keeps a decoder for its 60 seconds
        assert decoder.decode(files[1]).image.shape == (64, 64, 3)
    finally:
        decoder.close()


def test_closing_ends_the_processes(fake, embedded, sized):
    detector = Detector.load(embedded, isolate=True)
    assert [result.ok for result in detector.detect_many(sized(8, 9, 10))] == [True] * 3
    pids = [worker._child.process.pid for worker in detector._decoder._processes._workers if worker._child is not None]
    assert pids
    assert all(map(alive, pids))
    detector.close()
    detector.close()
    assert not any(map(alive, pids))


def test_a_process_that_was_ended_in_its_sleep_is_replaced(sized):
    decoder, (path,) = isolated(), sized(8)
    try:
        first = decoder.decode(path)
        pid = decoder._workers[0]._child.process.pid
        os.kill(pid, signal.SIGKILL)
        assert wait_for(lambda: decoder._workers[0]._child.process.poll() is not None)
        assert same(decoder.decode(path), first)
        assert decoder._workers[0]._child.process.pid != pid
    finally:
        decoder.close()


@pytest.mark.parametrize("side", [8, 17])
def test_no_process_survives_its_parent(site, sized, side):
    """Idle ones see that standard input ended; one that is stuck is ended by the alarm that it set."""
    (path,) = sized(side)
    code = (
        "import sys, threading, time\n"
        "from tests.runtime.test_isolated import isolated, task\n"
        "decoder = isolated(max_seconds=1)\n"
        "decoder._workers[0]._make_ready()\n"
        "decoder._workers[0]._task = task(max_seconds=90)  # this side has all the time in the world\n"
        "threading.Thread(target=decoder.decode, args=(sys.argv[1],), daemon=True).start()\n"
        "time.sleep(0.5)\n"
        "print(decoder._workers[0]._child.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])},
    )
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.communicate()
    assert wait_for(lambda: not alive(pid), 12)


def test_none_can_be_started(fake, embedded, monkeypatch, sized):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(EngineError, match="--no-isolate"):
            Detector.load(embedded, isolate=True)
    (Path(sized(8)[0]).parent / "sitecustomize.py").write_text("import os; os.write(2, b'no room\\n'); os._exit(4)")
    monkeypatch.setenv("PYTHONPATH", str(sized(8)[0].parent))
    with (
        Detector.load(embedded, isolate=True) as detector,
        pytest.raises(EngineError, match=r"can be started \(no room\); free"),
    ):
        detector.detect(sized(8)[0])


def test_limits(sized, fake, embedded):
    (path,) = sized(40)
    for limits, words in ((Limits(max_pixels=1599), "larger than 1599 pixels"), (Limits(max_bytes=50), "50 bytes")):
        for isolate in (False, True):
            with Detector.load(embedded, isolate=isolate, limits=limits) as detector:
                for source in (path, path.read_bytes()):
                    with pytest.raises(ImageError, match=words):
                        detector.detect(source)
    for limits in (Limits(max_pixels=MAX_PIXELS + 1), Limits(max_seconds=5)):
        with pytest.raises(UsageError) as refused:
            Detector.load(embedded, limits=limits)
        assert "isolate=True" in refused.value.remedy
        Detector.load(embedded, limits=limits, isolate=True).close()
    for wrong in ({"max_pixels": 0}, {"max_bytes": -1}, {"max_seconds": 0}, {"max_seconds": float("nan")}):
        with pytest.raises(UsageError, match="must lie between"):
            Limits(**wrong)


@pytest.mark.slow
def test_more_pixels_than_pillow_likes():
    content = black_png(14_000, 14_000)
    decoder = isolated(max_pixels=200_000_000)
    try:
        assert decoder.decode(content).image.max() == 0
    finally:
        decoder.close()
