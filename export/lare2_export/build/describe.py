"""The manifest of a build, and its ``NOTICE.txt``: whose weights are in it and what passing it on asks for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lare2_ref.sources import SourceRecord
from lare2_rt._version import __version__
from lare2_rt.bundle.manifest import (
    NOISE,
    NOTICE,
    PARITY,
    SCHEMA_VERSION,
    SELFCHECK,
    Decision,
    FileEntry,
    Manifest,
    Method,
    ModelInfo,
    ParitySummary,
    PreprocessingModel,
    Source,
    Variant,
)

from ..parity.tolerances import worst_component
from .plan import Plan, exporter_versions
from .staging import Staging

_OPENRAIL = """
Weights under CreativeML OpenRAIL-M (Stable Diffusion 1.x) or CreativeML Open RAIL++-M (2.x): whoever passes this bundle
on, or offers it as a service, has to pass on the use restrictions of the licence's Attachment A as enforceable terms,
give a copy of the licence, and say that the files were changed (here: folded, rewritten and converted to ONNX). The
licence text comes with the model that the weights were taken from.
"""


def describe(
    plan: Plan, components: dict[str, list[dict[str, Any]]], *, staging: Staging, parity: dict[str, Any] | None
) -> Manifest:
    """Return the manifest of the files in a staging folder; ``parity`` is the report, None before it is measured."""
    sources, options, geometry = plan.sources, plan.options, plan.geometry
    names = {name for variants in components.values() for v in variants for name in (v["graph"], *v["files"])}
    beside = (NOISE, PARITY, SELFCHECK, NOTICE)
    method = Method(
        timestep=options.timestep,
        ensemble=options.ensemble,
        prompt=options.prompt,
        noise_seed=options.noise_seed,
        image_size=geometry.image_size,
        crop_size=geometry.crop_size,
        latent_shape=geometry.latent,
        prediction_type=geometry.prediction_type,  # type: ignore[arg-type]
        alpha_bar=geometry.alpha_bar,
        scaling_factor=geometry.scaling_factor,
        head=geometry.egre.head,
    )
    manifest = Manifest.model_construct(
        schema_version=SCHEMA_VERSION,
        id="0" * 64,
        lare_id="0" * 64,
        model=ModelInfo(name=sources.name, description=sources.description, synthetic=sources.synthetic),
        method=method,
        preprocessing=PreprocessingModel(**asdict(options.policy)),
        components={
            name: tuple(Variant.model_validate_json(json.dumps(entry)) for entry in entries)
            for name, entries in components.items()
        },
        files={name: FileEntry(**staging.entry(name)) for name in sorted({*names, *beside})},
        sources=tuple(Source(**asdict(record)) for record in plan.records),
        decision=Decision(calibration=sources.calibration, demonstration=True if sources.demonstration else None),
        parity=_summary(parity),
        notes=sources.notes,
        build={"lare2-rt": __version__, **exporter_versions()},
    )
    lare_id = manifest.compute_lare_id()
    update = {"id": manifest.compute_id(), "lare_id": lare_id, "notes": sources.notes_for(lare_id)}
    return Manifest.model_validate_json(manifest.model_copy(update=update).model_dump_json())


def _summary(parity: dict[str, Any] | None) -> ParitySummary | None:
    if parity is None:
        return None
    name, value = worst_component(parity)
    return ParitySummary(
        passed=parity["passed"],
        engine=f"{parity['engine']['name']} {parity['engine']['version']} {parity['engine']['device']}",
        worst_component=name,  # type: ignore[arg-type]
        worst_relative_l2=value,
        probability_difference=parity["end_to_end"]["probability"]["max_difference"],
    )


def notice_text(records: Sequence[SourceRecord]) -> str:
    """Return the notice for the sources of a bundle."""
    lines = ["This bundle contains weights of:", ""]
    for record in records:
        revision = "" if record.revision is None else f" at revision {record.revision}"
        lines.append(f"  {record.role}: {record.name}{revision} ({record.licence}; sha256 {record.sha256})")
    text = "\n".join(lines) + "\n"
    if any("rail" in record.licence.lower() for record in records):
        text += _OPENRAIL
    return text + "\nBuilt with lare2-rt (Apache-2.0). The manifest holds the same in machine-readable form.\n"
