"""An engine of a few lines: instant, and made to fail where a test wants it to."""

import numpy as np

from lare2_rt.engines import EngineInfo
from lare2_rt.engines.contract import ChainOutput


class FakeEngine:
    """Engine and open engine in one; ``script`` is called with the number of the call and the images of the batch."""

    def __init__(self, script=None, *, name="fake", position_stable=True, why_not=None, batch=None):
        self.name, self.position_stable = name, position_stable
        self.script, self.reason, self.batch = script, why_not, batch
        self.calls = self.closed = 0
        self.seen = []

    def why_not(self, bundle, options):
        self.seen.append(options.batch)
        return self.reason

    def open(self, bundle, options):
        self.seen.append(options.batch)
        batch = self.batch or options.batch or 1
        self.info = EngineInfo(self.name, "1", "cpu", "fp32", batch, options.threads, "0" * 64)
        return self

    def run(self, image, crop, *, noise=None):
        self.calls += 1
        batch = len(image)
        mean = image.reshape(batch, -1).mean(1).astype(np.float32)
        output = ChainOutput(
            lare=np.ones((batch, 4, 32, 32), np.float32) * mean[:, None, None, None],
            embedding=np.zeros((batch, 8), np.float32),
            logits=np.stack([-mean, mean], 1) / 255,
            attention=np.full((batch, 8, 196), 1 / 196, np.float32),
        )
        if self.script is not None:
            self.script(self.calls, output)
        return output

    def close(self):
        self.closed += 1
