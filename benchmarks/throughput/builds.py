"""Builds that are made once, each in its own process, and found again by the next run, also after a kill."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.throughput.process import FailedError, RefusedError, Resident
from benchmarks.throughput.rows import Build
from benchmarks.throughput.setup import Setup, code_digest, digest_of, packages
from lare2_rt.host.atomic import write_bytes
from lare2_rt.host.integrity import sha256_of

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Built:
    """A finished build: its key, what its function returned, wall seconds and the peak memory of its process."""

    key: str
    result: Any
    seconds: float
    peak_bytes: int


class Builder:
    """Makes builds on demand.

    A failure is remembered for the run, so that each row that needs the build gets the same reason without another
    attempt. With ``fresh`` every build is made again once.
    """

    def __init__(
        self, setup: Setup, builds: Mapping[str, Build], *, identity: object, report: Report, fresh: bool = False
    ) -> None:
        self._setup, self._builds, self._identity, self._report = setup, builds, identity, report
        self._stale = set(builds) if fresh else set()
        self._failures: dict[str, RefusedError | FailedError] = {}
        self._keys: dict[str, str] = {}

    def key(self, name: str) -> str:
        """Return what decides the content of a build: weights, options, versions, code, and the builds before it.

        Taken once a run, so that an edit in the middle of it does not throw away what the same run has built.
        """
        if name not in self._keys:
            self._keys[name] = self._key(self._builds[name])
        return self._keys[name]

    def _key(self, build: Build) -> str:
        return digest_of(
            {
                "identity": self._identity,
                "function": build.function,
                "arguments": list(build.arguments),
                "code": code_digest(build.function.partition(":")[0], "benchmarks.throughput.setup", *build.code),
                "packages": packages(),
                "threads": self._setup.threads,
                "images": [sha256_of(Path(path)) for path in self._setup.images] if build.reads_images else None,
                "needs": [self.key(need) for need in build.needs],
            }
        )

    def get(self, name: str) -> Built:
        """Return a build, made now if it is missing or stale; raises RefusedError or FailedError."""
        if name in self._failures:
            raise self._failures[name]
        try:
            for need in self._builds[name].needs:
                self.get(need)
            found = None if name in self._stale else self._finished(name)
            self._stale.discard(name)
            return found if found is not None else self._make(name)
        except (RefusedError, FailedError) as error:
            self._failures[name] = error
            raise

    def all_of(self, names: Iterable[str]) -> dict[str, Built]:
        """Return builds with all that they need, in the order in which they were made; raises as ``get``."""
        found: dict[str, Built] = {}
        for name in names:
            found |= self.all_of(self._builds[name].needs)
            found[name] = self.get(name)
        return found

    def _finished(self, name: str) -> Built | None:
        try:
            marker = json.loads(self._marker(name).read_bytes())
            built = Built(**marker)
        except (OSError, ValueError, TypeError):
            return None
        return built if built.key == self.key(name) and self._setup.folder(name).is_dir() else None

    def _make(self, name: str) -> Built:
        build, folder, key = self._builds[name], self._setup.folder(name), self.key(name)
        self._report(f"building {name}")
        self._marker(name).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # a half-made or stale one
        folder.mkdir(parents=True)
        environment = environment_of(self._setup, build.environment)
        with Resident(f"build-{name}", self._setup.logs(), environment) as worker:
            arguments = (self._setup, *build.arguments)
            answer = worker.ask("call", build.function, build.imports, arguments)
            built = Built(key, answer["result"], answer["seconds"], worker.peak_bytes())
        content = {"key": key, "result": built.result, "seconds": built.seconds, "peak_bytes": built.peak_bytes}
        write_bytes(self._marker(name), json.dumps(content).encode())
        self._report(f"built {name} in {built.seconds:.0f} s, peak memory {built.peak_bytes / 1e9:.1f} GB")
        return built

    def _marker(self, name: str) -> Path:
        return self._setup.folder(f"{name}.done.json")


def environment_of(setup: Setup, extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker.

    Thread counts have to be known before the libraries are loaded. How threads wait is left to each library: they spin
    for a while after their work before they sleep, which is part of a library's speed. The pause between turns is
    longer than that (``Schedule.settle``), and what the resting process uses is measured in every turn.
    """
    threads = str(setup.threads)
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    filled = {name: value.replace("{work}", os.path.abspath(setup.work)) for name, value in extra.items()}
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**counts, **offline, **filled}
