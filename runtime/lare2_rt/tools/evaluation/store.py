"""Scoring one image after the other, and scores on disk, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...detection import DecisionRule, Detection, Provenance
from ...detector import Detector
from ...errors import ImageError, OutputError
from ...host.atomic import reason
from ...host.integrity import sha256_of
from ...pixels.decode import ImageSource
from ...pixels.policy import Preprocessing
from ...pixels.pool import IsolatedDecoder
from ...pixels.preprocess import DecodeTask
from .corruptions import CLEAN, VERSION, Corruption, damage
from .items import Item
from .scores import Floats

SCHEMA = "lare2-rt/scores/1"
Logits = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Failure:
    """An image without a score: its name in the index, and one sentence with the remedy."""

    name: str
    error: str


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Results for a list of items: float64 logits [N,2] with nan where the image failed, and the failures."""

    logits: Floats
    failures: tuple[Failure, ...]


class ScoreStore:
    """The scores of one scorer under one corruption: ``FOLDER/<bundle>-<key>/<corruption>.jsonl``.

    Lines are only ever appended; one that was cut short by a kill or a full disk is ignored. A line is found by the
    image's sha256. Failures are not kept, so that they are tried again.
    """

    def __init__(self, folder: Path, scorer: Scorer, corruption: Corruption | None) -> None:
        facts = scorer.provenance
        name = CLEAN if corruption is None else corruption.name
        self._path = folder / f"{facts.bundle_id[:16] or 'reference'}-{scorer_key(facts)[:16]}" / f"{name}.jsonl"
        self._header = {
            "schema": SCHEMA,
            "bundle": facts.bundle_id,
            "key": scorer_key(facts),
            "engine": f"{facts.engine} {facts.engine_version} {facts.device} {facts.precision}",
            "corruption": name,
            "corruption_version": VERSION,
        }

    def read(self) -> dict[str, Logits]:
        """Return the logits (real, generated) known so far, by sha256; raises OutputError."""
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise OutputError(
                f"{self._path} cannot be read: {reason(error)}", remedy="check its access rights"
            ) from error
        known: dict[str, Logits] = {}
        if not lines or _parsed(lines[0]) != self._header:
            return known
        for line in lines[1:]:
            record = _parsed(line)
            logits = record.get("logits")
            if isinstance(logits, list) and len(logits) == 2 and all(type(value) is float for value in logits):
                known[str(record.get("sha256"))] = (logits[0], logits[1])
        return known

    @contextlib.contextmanager
    def writer(self) -> Iterator[Callable[[str, Logits], None]]:
        """Yield a function that appends one score; raises OutputError."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            whole = self._path.is_file() and _first_line(self._path) == self._header
            with self._path.open("ab" if whole else "wb") as stream:
                # A line that was cut short must not swallow the next one.
                stream.write(b"\n" if whole else json.dumps(self._header).encode() + b"\n")

                def add(sha256: str, logits: Logits) -> None:
                    try:
                        stream.write(json.dumps({"sha256": sha256, "logits": list(logits)}).encode() + b"\n")
                        stream.flush()
                    except OSError as error:
                        raise self._unwritable(error) from error

                yield add
                os.fsync(stream.fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            f"cannot write {self._path}: {reason(error)}",
            remedy="free some space and run the same command again, it goes on where it stopped",
        )


def score(
    scorer: Scorer,
    items: Sequence[Item],
    *,
    store: ScoreStore,
    corruption: Corruption | None = None,
    step: Callable[[object], None] = lambda item: None,
) -> Scored:
    """Score items, taking from the store what it knows; ``step`` is called once per item.

    Raises:
        EngineError, OutputError: scores up to then are in the store.
    """
    known = store.read()
    failures: dict[str, Failure] = {}
    missing = [item for item in items if item.sha256 not in known]
    for item in items[: len(items) - len(missing)]:
        step(item)
    if missing:
        with store.writer() as add:
            for item, result in _detections(scorer, missing, corruption):
                if isinstance(result, str):
                    failures[item.sha256] = Failure(item.name, result)
                else:
                    known[item.sha256] = result
                    add(item.sha256, result)
                step(item)
    nothing = (float("nan"), float("nan"))
    logits = np.array([known.get(item.sha256, nothing) for item in items], np.float64)
    return Scored(logits, tuple(failures[item.sha256] for item in items if item.sha256 in failures))


def _detections(
    scorer: Scorer, items: Sequence[Item], corruption: Corruption | None
) -> Iterator[tuple[Item, Logits | str]]:
    """Yield each item with its logits or the sentence that says why there are none, in order."""
    waiting: deque[tuple[Item, str | None]] = deque()

    def sources() -> Iterator[ImageSource]:
        for item in items:
            try:
                _check_unchanged(item)
                prepared = prepare(item)
            except ImageError as error:
                waiting.append((item, str(error)))
            else:
                waiting.append((item, None))
                yield prepared

    with _preparing(corruption, scorer.policy) as prepare:
        for detection in scorer.detect_many(sources()):
            while waiting[0][1] is not None:
                item, error = waiting.popleft()
                yield item, str(error)
            yield waiting.popleft()[0], _outcome(detection)
    for item, error in waiting:
        yield item, str(error)


def _check_unchanged(item: Item) -> None:
    """Raise ImageError for a file that is not the one that was indexed."""
    try:
        unchanged = sha256_of(Path(item.path)) == item.sha256
    except OSError as error:
        raise ImageError(f"cannot be read ({reason(error)})", remedy="check the path, or the index's root") from error
    if not unchanged:
        raise ImageError("the file is another one than when the index was written", remedy="write the index again")


@contextlib.contextmanager
def _preparing(corruption: Corruption | None, policy: Preprocessing) -> Iterator[Callable[[Item], ImageSource]]:
    """Yield what gives the scorer its source; a picture to be corrupted is decoded in a process of its own."""
    if corruption is None:
        yield lambda item: item.path
        return
    with contextlib.closing(IsolatedDecoder(DecodeTask(policy), processes=1)) as decoder:
        yield lambda item: damage(decoder.picture(item.path), corruption, key=item.sha256)


def _outcome(detection: Detection) -> Logits | str:
    if detection.error is not None or detection.logits is None:
        return detection.error or "it has no logits; report it"
    return detection.logits


def _first_line(path: Path) -> dict[str, object]:
    with path.open("rb") as stream:
        return _parsed(stream.readline(4096))


def _parsed(line: bytes) -> dict[str, object]:
    try:
        content = json.loads(line)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


@dataclass(frozen=True, slots=True)
class Scorer:
    """A detector under test: a bundle on an engine, or the PyTorch reference.

    Attributes:
        provenance: who gives the scores; rule: how a score becomes a verdict; policy: how a file becomes pixels.
        detect_many: scores images in order; one that fails has ``error`` set. Raises EngineError.
        close: releases everything.
    """

    provenance: Provenance
    rule: DecisionRule
    policy: Preprocessing
    detect_many: Callable[[Iterable[ImageSource]], Iterator[Detection]]
    close: Callable[[], None] = lambda: None


def scorer_of(detector: Detector) -> Scorer:
    """Return a bundle on an engine as a scorer, which closes the detector."""
    info, policy = detector.info, detector.bundle.manifest.policy
    return Scorer(info.provenance, info.rule, policy, detector.detect_many, detector.close)


def scorer_key(provenance: Provenance) -> str:
    """sha256 in hex over all that decides a score's bits but the machine: stored scores of another key do not count."""
    p = provenance
    facts = [p.bundle_id, p.engine, p.engine_version, p.device, p.precision, p.batch, p.threads, p.build_key]
    if p.crops != 1:
        facts.append(p.crops)  # appended only then: scores from before there was a choice stay valid
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
