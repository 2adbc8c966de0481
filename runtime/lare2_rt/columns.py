"""The fields of a result in one table, of which JSON, CSV, Parquet, the JSON schema and docs/output.md are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from .host.text import spreadsheet_safe

SCHEMA = "lare2-rt/detection/1"


@dataclass(frozen=True, slots=True)
class Column:
    """One field of the record.

    Attributes:
        path: dotted name in the record; an object stands before its fields.
        attribute: dotted attribute of ``Detection`` that has the value; empty for an object, which has fields.
        kind: what the value is, in the words of JSON schema, but for null.
        meaning: what the value says, in Markdown.
        null: when the value is null; empty where it never is.
        csv: headings in CSV by their place in the line, from 1; new ones come last.
        items: what each heading shows of a value with several parts.
    """

    path: str
    attribute: str
    kind: Mapping[str, Any]
    meaning: str
    null: str = ""
    csv: Mapping[int, str] = field(default_factory=dict)
    items: tuple[int | str, ...] = ()

    @property
    def type(self) -> str:
        """The type of the value in the words of JSON schema."""
        return str(self.kind.get("type", "string"))  # a constant or a choice is text


_TEXT, _WORDS = {"type": "string"}, {"type": "string", "minLength": 1}
_COUNT, _FLAG = {"type": "integer", "minimum": 1}, {"type": "boolean"}
_NUMBER, _SHARE = {"type": "number"}, {"type": "number", "minimum": 0, "maximum": 1}
_SHA256, _SHA256_OR_EMPTY = ({"type": "string", "pattern": p} for p in ("^[0-9a-f]{64}$", "^([0-9a-f]{64})?$"))
_OBJECT, _TIMES = {"type": "object"}, {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}}
_FAILED = "when the image failed"

# fmt: off
COLUMNS: tuple[Column, ...] = (
    Column("schema", "schema", {"const": SCHEMA}, f"always `{SCHEMA}`"),
    Column("source", "source", _TEXT, "the path as given or found in a folder; `<stdin>`, `<bytes>`, `<stream>`, "
           "`<array>` or `<image>` for data without a name; bytes that are not UTF-8 are lone surrogates U+DC80 to "
           "U+DCFF", csv={1: "source"}),
    Column("error", "error", _WORDS, "why this image has no result, and what to do", "when it was scored",
           csv={7: "error"}),
    Column("verdict", "verdict", {"enum": ["generated", "real", "unsure"]}, "`generated`, `real` or `unsure`",
           _FAILED, csv={2: "verdict"}),
    Column("probability", "probability", _SHARE, "0 to 1, of being generated: sigmoid((generated − real) / "
           "`decision.temperature` + `decision.bias`) of the raw `logits`; without calibration their softmax", _FAILED,
           csv={3: "probability"}),
    Column("logits", "logits", {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2},
           "real, generated; raw, whatever the calibration; no unit", _FAILED,
           csv={4: "logit_real", 5: "logit_generated"}, items=(0, 1)),
    Column("lare_mean", "lare_mean", {"type": "number", "minimum": 0}, "0 or more: latent reconstruction error, the "
           "squared noise error averaged over noise draws, channels and space", _FAILED, csv={6: "lare_mean"}),
    Column("decision", "", _OBJECT, "the rule that made the verdict"),
    Column("decision.calibration", "rule.calibration", {"enum": ["untrained", "uncalibrated", "calibrated"]},
           "`untrained`: the verdict is always `unsure`; `uncalibrated`: `unsure` without `--threshold`; `calibrated`: "
           "the bundle has thresholds", csv={8: "calibration"}),
    Column("decision.real_below", "rule.real_below", _SHARE, "0 to 1: under this probability the verdict is `real`",
           "without thresholds", csv={15: "real_below"}),
    Column("decision.generated_from", "rule.generated_from", _SHARE, "0 to 1: from this probability on it is "
           "`generated`; between the two it is `unsure`", "without thresholds", csv={16: "generated_from"}),
    Column("decision.explicit", "rule.explicit", _FLAG, "the thresholds come from the caller (`--threshold`), not from "
           "the bundle"),
    Column("decision.note", "rule.note", _WORDS, "why every verdict is `unsure`, or why it is not to be believed (the "
           "model is a demonstration), and what to do", "where verdicts are given and meant", csv={18: "note"}),
    Column("decision.temperature", "rule.temperature", {"type": "number", "exclusiveMinimum": 0},
           "above 0: divides the difference of the logits; 1 without calibration"),
    Column("decision.bias", "rule.bias", _NUMBER, "is added after that; 0 without calibration"),
    Column("decision.crops", "rule.crops", _COUNT, "1 or more: windows with which the calibrated rule was measured; 1 "
           "without calibration"),
    Column("crops", "provenance.crops", _COUNT, "1 or more: windows of the CLIP branch asked for with `--crops`, whose "
           "logits are averaged; 1 is the official centre window", csv={17: "crops"}),
    Column("windows", "windows", _COUNT, "1 or more: windows that were averaged, fewer than `crops` where the picture "
           "is too small for different ones", _FAILED),
    Column("bundle", "", _OBJECT, "the model"),
    Column("bundle.name", "provenance.bundle_name", _WORDS, "its short name", csv={9: "bundle_name"}),
    Column("bundle.id", "provenance.bundle_id", _SHA256, "64 hex digits: sha256 over its graphs, weights, noise, "
           "method, preprocessing and decision rule", csv={10: "bundle_id"}),
    Column("bundle.path", "provenance.bundle_path", _TEXT, "absolute path, `embedded` for the one inside the package, "
           "empty from the PyTorch reference"),
    Column("engine", "", _OBJECT, "what did the arithmetic"),
    Column("engine.name", "provenance.engine", _WORDS, "such as `onnxruntime`", csv={11: "engine"}),
    Column("engine.version", "provenance.engine_version", _WORDS, "its own version", csv={12: "engine_version"}),
    Column("engine.device", "provenance.device", _WORDS, "such as `cpu`"),
    Column("engine.precision", "provenance.precision", {"enum": ["fp32", "fp16"]}, "`fp32` or `fp16`",
           csv={13: "precision"}),
    Column("engine.batch", "provenance.batch", _COUNT, "1 or more: images per call"),
    Column("engine.threads", "provenance.threads", _COUNT, "1 or more: CPU threads"),
    Column("engine.build_key", "provenance.build_key", _SHA256_OR_EMPTY, "64 hex digits: sha256 over all that "
           "determines the compiled engine; empty from the PyTorch reference, which compiles nothing"),
    Column("timings_ms", "timings", _TIMES, "milliseconds, 0 or more: `decode` (this image), one per component (its "
           "whole batch), `total` (decode and batch); empty when the image failed", csv={14: "total_ms"},
           items=("total",)),
)
# fmt: on


def record_of(result: object) -> dict[str, Any]:
    """Return the record of a ``Detection`` in plain types."""
    record: dict[str, Any] = {}
    for column in COLUMNS:
        parent, _, name = column.path.rpartition(".")
        value = _plain(attrgetter(column.attribute)(result)) if column.attribute else {}
        (record[parent] if parent else record)[name] = value
    return record


def csv_columns() -> tuple[str, ...]:
    """Return the headings of CSV in their order."""
    return tuple(heading for _, heading, _, _ in sorted(cells(), key=lambda cell: cell[0]))


def csv_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cells of one record by their headings, no text of which a spreadsheet takes for a formula."""
    return {heading: _cell(record, column.path, item) for _, heading, column, item in cells()}


def cells() -> Iterator[tuple[int, str, Column, int | str | None]]:
    """Yield (place, heading, column, item or None) of every heading of CSV, in the order of the record."""
    for column in COLUMNS:
        for index, (place, heading) in enumerate(column.csv.items()):
            yield place, heading, column, column.items[index] if column.items else None


def _cell(record: Mapping[str, Any], path: str, item: int | str | None) -> Any:  # noqa: ANN401 - any plain type
    value: Any = record
    for name in path.split("."):
        value = value[name]
    if item is not None:
        value = value.get(item) if isinstance(value, dict) else value and value[item]
    return spreadsheet_safe(value) if isinstance(value, str) else value


def _plain(value: Any) -> Any:  # noqa: ANN401 - any plain type
    if isinstance(value, Mapping):
        return {name: round(number, 3) for name, number in value.items()}
    return list(value) if isinstance(value, tuple) else value
