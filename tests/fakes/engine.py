"""An engine of a few lines: instant, and made to fail where a test wants it to; and whether a real one is here."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from lare2_rt import EngineError
from lare2_rt.engines import registry
from lare2_rt.engines.base import RegisteredEngine
from lare2_rt.engines.contract import ChainOutput, EngineInfo
from lare2_rt.engines.registry import EngineEntry, installed_version


def need_engine(name):
    """Skip the test where an engine is not installed; it is not imported for that, as importing may print or report."""
    if installed_version(name) is None:
        pytest.skip(f"{name} is not installed: pip install 'lare2-rt[{name}]'")


def facts_of_the_cache(module, monkeypatch, load):
    """Return what decides an engine's cached entries; nothing is compiled. ``module`` calls ``compile_chain``."""
    found = {}

    def stop(*arguments, facts, **rest):
        found.update(facts)
        raise EngineError("stopped by the test", remedy="none")

    with monkeypatch.context() as patch:
        patch.setattr(module, "compile_chain", stop)
        with pytest.raises(EngineError, match="stopped by the test"):
            load()
    return found


def entry(engine):
    """The line of an engine in the registry, whose engine is this very one; a line is itself."""
    if isinstance(engine, EngineEntry):
        return engine
    if isinstance(engine, RegisteredEngine):
        return replace(registry.entry_of(engine.name), target=lambda: engine)
    return EngineEntry(engine.name, lambda: engine, "cpu", "cpu", (), ())


def use_engines(patch, *engines):
    """Let the registry hold these engines, or lines of it, and no others."""
    patch.setattr(registry, "ENGINES", tuple(map(entry, engines)))


class FakeEngine:
    """Engine and open engine in one; ``script`` is called with the number of the call and the images of the batch."""

    def __init__(
        self,
        script=None,
        *,
        name="fake",
        position_stable=True,
        compiled=False,
        why_not=None,
        batch=None,
        digest=None,
        version="1",
    ):
        self.name, self.position_stable, self.compiled, self.digest = name, position_stable, compiled, digest
        self.script, self.reason, self.batch, self.version = script, why_not, batch, version
        self.calls = self.closed = 0
        self.seen = []

    def machine_lacks(self):
        return None

    @property
    def refusal(self):
        return None if self.reason is None else EngineError(self.reason, remedy="choose another engine")

    def why_not(self, bundle, options):
        self.seen.append(options.batch)
        return self.refusal

    def describe(self, bundle, options):
        batch = self.batch or options.batch or 1
        key = hashlib.sha256(f"{self.name} {batch} {options.threads}".encode()).hexdigest()
        return EngineInfo(self.name, "1", "cpu", "fp32", batch, options.threads, key)

    def open(self, bundle, options):
        self.seen.append(options.batch)
        self.info = replace(self.describe(bundle, options), compiled=self.digest)
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
