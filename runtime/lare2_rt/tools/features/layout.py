"""What a feature folder holds: ``features.json``, the names of the shards, and ``rows.parquet``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...bundle.manifest import Count, Precision, Sha256
from ...errors import UsageError
from ...host.atomic import reason, write_bytes
from ...host.text import decode_name, encode_name
from ...results.parquet import arrow, encode_table, read_table

SCHEMA: Literal["lare2-rt/features/1"] = "lare2-rt/features/1"
ROWS_SCHEMA = "lare2-rt/feature-rows/1"
FEATURES, ROWS, JOURNAL, LOCK = "features.json", "rows.parquet", "journal.jsonl", ".lock"
AGAIN = "extract into another folder with 'lare2-rt extract'"
_MAX_BYTES = 1_000_000
Kind = Literal["lare", "embedding"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class EngineBuild(_Frozen):
    """One engine that filled a part of the folder: all have the same name, device and precision."""

    version: str
    threads: Count


class FeatureSet(_Frozen):
    """The content of ``features.json``.

    Attributes:
        lare_id: what determines the maps (weights, noise, method, preprocessing); see the manifest of a bundle.
        bundle_id, bundle_name: what determined logits and embeddings.
        engine, device, precision: what computed them; builds: in which versions, in order of use.
        shape: (C,h,w) of a map; embedding: width of an embedding, None where there are none; dtype of both.
        shard: rows of a full shard; count: rows in ``rows.parquet`` with a map, 0 before the first run is finished.
        index_sha256: of the index file of the last run; None where it was a folder or list.
    """

    schema_name: Literal["lare2-rt/features/1"] = Field(default=SCHEMA, alias="schema")
    lare_id: Sha256
    bundle_id: Sha256
    bundle_name: str
    engine: str
    device: str
    precision: Precision
    builds: tuple[EngineBuild, ...]
    shape: tuple[Count, Count, Count]
    embedding: Count | None
    dtype: Literal["float32"] = "float32"
    shard: Annotated[int, Field(ge=1, le=1 << 20)]
    count: Annotated[int, Field(ge=0)] = 0
    index_sha256: Sha256 | None

    def row_shape(self, kind: Kind) -> tuple[int, ...]:
        """Shape of one row of a shard."""
        return self.shape if kind == "lare" else (self.embedding or 0,)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The files of each shard in the order in which they are completed: with the last one, the shard is there."""
        return ("lare",) if self.embedding is None else ("embedding", "lare")


@dataclass(frozen=True, slots=True)
class Row:
    """One content of the folder.

    Attributes:
        sha256: of the file's content; empty where it could not be read.
        path: where it was when it was extracted, native, as in the index.
        shard, row: place of its map; -1 with ``error``.
        logits: (real, generated); probability: of being generated, 0..1; NaN with ``error``.
        error: why it has no map; empty where it has.
    """

    sha256: str
    path: str
    shard: int
    row: int
    logits: tuple[float, float]
    probability: float
    error: str = ""


def failed_row(sha256: str, path: str, error: str) -> Row:
    """Return the row of an image without a map."""
    return Row(sha256, path, -1, -1, (math.nan, math.nan), math.nan, error)


def shard_name(kind: Kind, number: int) -> str:
    """Return the file name of a shard, such as ``lare-00000.npy``."""
    return f"{kind}-{number:05d}.npy"


def read_features(folder: Path) -> FeatureSet | None:
    """Return the content of ``features.json``, or None where there is no such file; raises UsageError when damaged."""
    path = folder / FEATURES
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}", remedy="check its access rights") from error
    try:
        schema = json.loads(content).get("schema")
        if schema != SCHEMA:
            raise UsageError(f"{path} has schema {str(schema)[:80]!r} where {SCHEMA} is needed", remedy=AGAIN)
        return FeatureSet.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path} is wrong at {place}: {first['msg']}", remedy=AGAIN) from None
    except (ValueError, AttributeError, RecursionError):
        raise UsageError(f"{path} is not valid JSON", remedy=AGAIN) from None


def write_features(folder: Path, features: FeatureSet) -> None:
    """Replace ``features.json`` atomically, if it changes; raises OutputError."""
    content = json.dumps(features.model_dump(mode="json", by_alias=True), indent=2, sort_keys=True) + "\n"
    write_bytes(folder / FEATURES, content.encode())


def write_rows(folder: Path, rows: Sequence[Row], lare_id: str) -> None:
    """Replace ``rows.parquet`` atomically; raises OutputError."""
    values: dict[str, Any] = {
        "sha256": [row.sha256 for row in rows],
        "path": [encode_name(row.path) for row in rows],
        "shard": np.array([row.shard for row in rows], np.int32),
        "row": np.array([row.row for row in rows], np.int32),
        "logits": [list(row.logits) for row in rows],
        "probability": np.array([row.probability for row in rows], np.float64),
        "error": [row.error for row in rows],
    }
    columns = {name: (values[name], kind) for name, kind in _types().items()}
    write_bytes(folder / ROWS, encode_table(columns, {"lare2_rt.schema": ROWS_SCHEMA, "lare2_rt.lare_id": lare_id}))


def read_rows(folder: Path) -> list[Row]:
    """Read ``rows.parquet``: rows with a map in the order of their places, then failures; raises UsageError."""
    path = folder / ROWS
    table, _ = read_table(path, types=_types(), schema=ROWS_SCHEMA, again=AGAIN)
    columns = {name: table.column(name).to_pylist() for name in _types()}
    rows = []
    for sha256, stored, shard, row, logits, probability, error in zip(*columns.values(), strict=True):
        if (shard < 0) != bool(error):
            raise UsageError(f"{path} has a row with a map and an error, or with neither", remedy=AGAIN)
        rows.append(Row(sha256, decode_name(stored), shard, row, (logits[0], logits[1]), probability, error))
    places = [(row.shard, row.row) for row in rows if not row.error]
    if places != sorted(set(places)) or any(row < 0 for _, row in places):
        raise UsageError(f"{path} has rows that are out of order", remedy=AGAIN)
    return rows


def _types() -> dict[str, Any]:
    pa, _ = arrow()
    return {
        "sha256": pa.string(),
        "path": pa.string(),
        "shard": pa.int32(),
        "row": pa.int32(),
        "logits": pa.list_(pa.float32(), 2),
        "probability": pa.float64(),
        "error": pa.string(),
    }
