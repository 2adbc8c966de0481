"""Builds that are made once, each in its own process, and found again by the next run, also after a kill."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.facts import code_digest, packages
from benchmarks.common.kept import keep, kept
from benchmarks.common.resident import FailedError, RefusedError
from benchmarks.throughput.rows import Build, here
from benchmarks.throughput.setup import Setup
from lare2_rt.host.integrity import digest_of, sha256_of

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Built:
    """A finished build: what its function returned, wall seconds and the peak memory of its process."""

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
                "code": code_digest(build.function.partition(":")[0], here("setup"), here("runner"), *build.code),
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
            found = None if name in self._stale else kept(self._marker(name), self.key(name))
            self._stale.discard(name)
            return Built(**found) if found and self._setup.folder(name).is_dir() else self._make(name)
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

    def _make(self, name: str) -> Built:
        build, folder, key = self._builds[name], self._setup.folder(name), self.key(name)
        self._report(f"building {name}")
        self._marker(name).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # a half-made or stale one
        folder.mkdir(parents=True)
        with self._setup.start(f"build-{name}", build.environment) as worker:
            answer = worker.ask("build", build.function, build.imports, self._setup.facts(), build.arguments)
            built = Built(answer["result"], answer["seconds"], worker.peak_bytes())
        keep(self._marker(name), key, asdict(built))
        self._report(f"built {name} in {built.seconds:.0f} s, peak memory {built.peak_bytes / 1e9:.1f} GB")
        return built

    def _marker(self, name: str) -> Path:
        return self._setup.folder(f"{name}.done.json")
