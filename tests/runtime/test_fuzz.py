"""Damaged pictures of every format: an answer or one clear sentence, within the limits of time and memory."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from lare2_rt import ImageError
from lare2_rt.pixels.preprocess import preprocess
from tests.helpers import damage
from tests.runtime.test_isolated import POLICY, isolated, same

SIDE = 1400
LIMIT = SIDE * SIDE  # pixels
SECONDS = 10.0
FAST = {"quality": 30, "enc_params": {"preset": "ultrafast"}}
MOST = 4 * 4 * LIMIT  # bytes: four times what the limit's pixels take in Pillow, which keeps a colour in four bytes


def memory(pid, name):
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


class Watched:
    """One decoding process: what it refused, how long it took, and what memory it needed beyond its idle state."""

    def __init__(self):
        self.decoder = isolated(max_pixels=LIMIT, max_seconds=SECONDS)
        self.refusals, self.slowest, self.answers = [], 0.0, 0
        for form in damage.FORMATS:
            self.decoder.decode(damage.encoded(form, np.zeros((40, 40, 3), np.uint8)))
        self.pid = self.decoder._workers[0]._child.process.pid
        self.idle = memory(self.pid, "VmRSS")
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # the peak counts from here

    def feed(self, content):
        begin = time.monotonic()
        try:
            self.decoder.decode(content)
            self.answers += 1
        except ImageError as error:
            self.refusals.append(str(error))
        self.slowest = max(self.slowest, time.monotonic() - begin)

    def check(self):
        assert self.decoder._workers[0]._child.process.pid == self.pid, "it never had to be replaced"
        assert self.slowest < SECONDS
        assert memory(self.pid, "VmHWM") - self.idle <= MOST
        for refusal in self.refusals:
            assert "\n" not in refusal
            assert "; " in refusal or ": pip" in refusal
            assert "crashed" not in refusal
            assert "took more than" not in refusal


@pytest.fixture(scope="module")
def originals():
    """(format, bytes): small ones in several modes, and one of each format at the limit of pixels."""
    small = np.random.default_rng(11).integers(0, 256, (60, 44, 3), np.uint8)
    rows, columns = np.ogrid[:SIDE, :SIDE]
    large = np.stack([(rows + columns) % 256, rows * columns % 251, (rows // 8) % 256 + 0 * columns], 2).astype(
        np.uint8
    )
    found = []
    for form in damage.FORMATS:
        options = {"AVIF": {"speed": 10}, "TIFF": {"compression": "tiff_lzw"}, "HEIF": FAST}.get(form, {})
        found.append((form, damage.encoded(form, small, **options)))
        whole = large[: SIDE * 3 // 4] if form == "WEBP" else large  # its decoder needs more, so its limit is lower
        found.append((form, damage.encoded(form, whole, **options)))
    for form, mode, options in (
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {"progressive": True}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {"transparency": bytes(range(256))}),
        ("PNG", "I;16", {}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("AVIF", "RGBA", {"speed": 10, "subsampling": "4:4:4"}),
        ("TIFF", "CMYK", {}),
        ("TIFF", "LA", {"compression": "tiff_adobe_deflate"}),
        ("GIF", "P", {}),
        ("BMP", "L", {}),
    ):
        found.append((form, damage.encoded(form, small, mode=mode, **options)))
        if mode in ("CMYK", "RGBA"):
            whole = large[: SIDE * 3 // 4] if form == "WEBP" else large
            found.append((form, damage.encoded(form, whole, mode=mode, **options)))
    return found


@pytest.mark.slow
def test_whole_pictures_at_the_limit_keep_to_the_memory(originals):
    watched = Watched()
    for _, content in originals:
        watched.feed(content)
    assert watched.refusals == []
    watched.check()
    watched.feed(damage.encoded("WEBP", np.zeros((SIDE, SIDE, 3), np.uint8)))
    assert ["the limit for WebP" in refusal for refusal in watched.refusals] == [True]
    watched.decoder.close()


def fuzz(originals, count, seed):
    watched, generator = Watched(), np.random.default_rng(seed)
    small = [content for _, content in originals if len(content) < 20_000]
    large = [content for _, content in originals if len(content) >= 20_000]
    for turn in range(count):
        # A large one takes a hundred times as long.
        group = large if turn % 25 == 24 else small
        watched.feed(damage.damaged(group[turn // 2 % len(group)], generator, turn))
    watched.check()
    watched.decoder.close()
    assert watched.answers + len(watched.refusals) == count
    assert len(watched.refusals) > count / 10
    assert watched.answers > count / 10


def test_three_hundred(originals):
    fuzz(originals, 300, 2026)


@pytest.mark.slow
def test_three_thousand(originals):
    fuzz(originals, 3000, 1)


@pytest.fixture(scope="module")
def decoder():
    decoder = isolated()
    yield decoder
    decoder.close()


SIZES = st.one_of(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.tuples(st.integers(1, 20_000), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 20_000)),
    st.sampled_from([(1, 1), (20_000, 3), (3, 20_000), (1, 20_000)]),
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(size=SIZES, form=st.sampled_from(damage.FORMATS), seed=st.integers(0, 1 << 16))
def test_any_shape(decoder, size, form, seed):
    """From 1×1 to 20,000×3: arrays of the right shape, the same as in this process, or a sentence."""
    width, height = size
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    try:
        content = damage.encoded(form, picture)
    except (ValueError, OSError, RuntimeError):  # no such shape in this format: WebP ends at 16383 pixels
        content = damage.encoded("PNG", picture)
    ours = decoder.decode(content)
    assert (ours.image.shape, ours.crop.shape) == ((64, 64, 3), (48, 48, 3))
    assert same(ours, preprocess(content, POLICY, image_size=64, crop_size=48))
