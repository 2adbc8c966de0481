"""One start of the benchmark: what is missing is built, then measured row by row, and everything finished is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.common.facts import code_digest, machine_facts, now, packages
from benchmarks.common.kept import keep, kept, kept_images
from benchmarks.common.resident import FailedError, RefusedError, plain
from benchmarks.throughput.builds import Builder
from benchmarks.throughput.measure import Conditions, Reference, Report, measure
from benchmarks.throughput.options import Options
from benchmarks.throughput.rows import BUILDS, OURS, REFERENCE, ROWS, Build, Row, here
from benchmarks.throughput.setup import TRUTH, Setup
from lare2_rt.host.integrity import digest_of, sha256_of

SCHEMA = "lare2-rt/throughput/1"
# Modules of the benchmark that decide a figure; the others only arrange and write.
_COMMON = tuple(f"benchmarks.common.{name}" for name in ("kept", "resident", "worker"))
_MEASURING = (*map(here, ("runner", "measure", "setup", "turns", "worker")), *_COMMON)
# What else a figure belongs to; a change of any of it makes the row be measured again.
_DECISIVE = ("identity", "method", "images", "machine", "packages", "settings", "layout")

Record = dict[str, Any]
T = TypeVar("T")


class Session:
    """Rows of one model, measured now or found from an earlier session with the same configuration.

    Raises, in every method: RefusedError or FailedError when the reference itself cannot be prepared.
    """

    def __init__(self, options: Options, report: Report) -> None:
        self._options, self._report = options, report
        self._setup = options.setup
        identity = identity_of(self._setup)
        self._builder = Builder(self._setup, BUILDS, identity=identity, report=report)
        self._prepared: Record = self._builder.get("reference").result
        self._common = self._common_facts(identity)

    def run(self) -> Record:
        """Return the report of all chosen rows."""
        rows = self._options.rows
        keys = {row.name: self._key(row) for row in rows}
        records: dict[str, Record] = {}
        for row in rows:
            found = None if self._options.fresh else kept(self._draft(row.name), keys[row.name])
            if found is not None:
                self._report(f"{row.name}: measured by an earlier run with the same configuration")
                records[row.name] = found
        # Builds come before any measurement: they take memory, fill the disk's cache and leave the machine warm.
        for row in rows:
            if row.name not in records and (record := self._unbuildable(row)) is not None:
                records[row.name] = record
        missing = [row for row in rows if row.name not in records]
        if missing:
            records |= self._measure(missing, keys)
        ordered = [records[row.name] for row in rows]
        used = sorted({record["session"] for record in ordered if record.get("session")})
        return assemble(self._common, ordered, [kept(self._draft(name), SCHEMA) for name in used])

    def _draft(self, name: str) -> Path:
        """Return where a finished row is kept, or a session: one start, its time, the machine's load and probes."""
        return self._setup.folder("draft") / f"{name}.json"

    def _measure(self, rows: list[Row], keys: dict[str, str]) -> dict[str, Record]:
        begin: Record = {"started": now(), "ended": None, "probes": {"start": self._probe()}}
        name = begin["started"]["time"]
        keep(self._draft(name), SCHEMA, begin)
        conditions = self._conditions()
        reference = Reference(next(row for row in ROWS if row.name == REFERENCE), conditions, self._report)
        records = {}
        try:
            for row in rows:
                records[row.name] = record = self._one(row, reference, conditions, session=name)
                if record["status"] == "measured":
                    keep(self._draft(row.name), keys[row.name], record)
        finally:
            reference.drop()
        # At both ends, so that a machine that slowed down on the way shows.
        ended = {**begin, "ended": now(), "probes": {**begin["probes"], "end": self._probe()}}
        keep(self._draft(name), SCHEMA, ended)
        return records

    def _one(self, row: Row, reference: Reference, conditions: Conditions, *, session: str) -> Record:
        def measured() -> Record:
            figures = measure(row, reference, conditions, self._report)
            made = {
                name: {"seconds": built.seconds, "peak_bytes": built.peak_bytes}
                for name, built in self._builder.all_of(row.needs).items()
                if not BUILDS[name].aid
            }
            return described(row, "measured", session=session, builds=made, **figures)

        return self._or_reason(row, measured)

    def _unbuildable(self, row: Row) -> Record | None:
        """Build what a row needs; returns its record if that cannot be had."""

        def built() -> None:
            self._builder.all_of(row.needs)

        return self._or_reason(row, built)

    def _or_reason(self, row: Row, work: Callable[[], T]) -> T | Record:
        """Do a part of a row; whatever goes wrong with it is its own reason and not the end of the run."""
        try:
            return work()
        except RefusedError as error:
            return self._unmeasured(row, "not usable", error)
        except FailedError as error:
            return self._unmeasured(row, "failed", error)

    def _unmeasured(self, row: Row, status: str, error: RefusedError | FailedError) -> Record:
        """Return the record of a row without figures; reports are published, so no folder of this machine is in it."""
        self._report(f"{row.name}: {status}: {error}")
        folders = {self._setup.bundle: "the bundle", self._setup.work: "the work folder", str(Path.home()): "~"}
        text = plain(str(error))
        for folder, name in folders.items():
            text = text.replace(folder, name)
        return described(row, status, reason=text)

    def _probe(self) -> dict[str, float]:
        """Measure the machine's best matrix products, in a process of its own that is gone afterwards."""
        self._report("matrix products")
        with self._setup.start("probe", {}) as worker:
            answer = worker.ask("call", here("probe:matrix_products"), (), (self._setup.threads,))
        products: dict[str, float] = answer["result"]
        return products

    def _conditions(self) -> Conditions:
        return Conditions(
            setup=self._setup,
            schedule=self._options.schedule,
            limit=self._options.limit,
            weights=weight_bytes(self._setup),
            truth=kept_images(self._setup.folder("reference") / TRUTH),
            spread=self._prepared["logit_standard_deviation"],
            layouts=json.dumps(self._prepared["layout"]),
        )

    def _common_facts(self, identity: Record) -> Record:
        setup, manifest = self._setup, self._setup.opened().manifest
        fields = ("ensemble", "image_size", "crop_size", "timestep")
        return {
            "model": manifest.model.name,
            "synthetic": manifest.model.synthetic,
            "identity": identity,
            "method": {"batch": 1, **{name: getattr(manifest.method, name) for name in fields}},
            # Hashes and not names: the photographs are the user's own.
            "images": [sha256_of(Path(path)) for path in setup.images],
            "machine": machine_facts(setup.threads),
            "packages": packages(),
            "settings": asdict(self._options.schedule),
            "memory_limit_bytes": self._options.limit,
            **{name: self._prepared[name] for name in ("flop", "layout", "layout_s", "logit_standard_deviation")},
        }

    def _key(self, row: Row) -> str:
        opener = row.opener.partition(":")[0]
        return digest_of(
            {
                "common": {name: self._common[name] for name in _DECISIVE},
                "row": [row.name, row.opener, row.argument, row.environment],
                "code": code_digest(*_MEASURING, opener, *row.code),
                "builds": [self._builder.key(need) for need in row.needs],
            }
        )


def prepare_bundle(setup: Setup, report: Report) -> None:
    """Build the bundle if it is the one below ``work`` and not there yet; raises RefusedError or FailedError."""
    if Path(setup.bundle) == setup.folder("bundle"):
        builds = {"bundle": Build(here("exports:build_own_bundle"), OURS)}
        Builder(setup, builds, identity=[setup.model, setup.synthetic], report=report).get("bundle")


def header(setup: Setup, schema: str) -> Record:
    """Return what a report begins with, the time of the start included."""
    manifest = setup.opened().manifest
    return {
        "schema": schema,
        "model": manifest.model.name,
        "identity": identity_of(setup),
        "started": now(),
        "machine": machine_facts(setup.threads),
        "packages": packages(),
        "method": {"ensemble": manifest.method.ensemble, "image_size": manifest.method.image_size},
    }


def identity_of(setup: Setup) -> Record:
    """Return what every figure depends on beside the code: weights, method and noise."""
    manifest = setup.opened().manifest
    return {"bundle": manifest.id, "sources": [source.sha256 for source in manifest.sources]}


def weight_bytes(setup: Setup) -> int:
    """Return the size of the float32 weights in the bundle: what every process has to hold at least once."""
    manifest = setup.opened().manifest
    variants = [v for c in manifest.components.values() for v in c if (v.precision, v.profile) == ("fp32", "portable")]
    return sum(manifest.files[name].size for name in {name for variant in variants for name in variant.files})


def described(row: Row, status: str, **content: object) -> dict[str, Any]:
    """Return the record of a row: ``measured``, ``not usable`` or ``failed``, the last two with a reason."""
    about = {"name": row.name, "kind": row.kind, "title": row.title, "stands_for": row.stands_for}
    return {**about, "status": status, **content}


def assemble(
    common: Mapping[str, Any], records: Sequence[dict[str, Any]], sessions: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the whole report; shares of the peak are taken here, where the best product of all sessions is known."""
    products = [value for session in sessions for probe in session["probes"].values() for value in probe.values()]
    peak = max(products, default=None)
    work = sum(common["flop"].values())
    for record in records:
        if record["status"] == "measured":
            seconds = record["latency_ms"]["p50"] / 1e3
            record["gflops"] = work / seconds / 1e9
            record["share_of_peak"] = record["gflops"] / peak if peak else None
    return {"schema": SCHEMA, **common, "peak_gflops": peak, "sessions": list(sessions), "rows": list(records)}
