"""The facts of a head card: data, recipe, weights, versions, and what the best epoch gives."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from lare2_rt._version import __version__
from lare2_rt.bundle.opening import Bundle
from lare2_rt.detection import DecisionRule
from lare2_rt.tools.evaluation.summary import summarise

from ..sources import ModelSources
from .assemble import LARE_ROLES
from .data import Part, Parts
from .loop import Trainer, scored_sample
from .options import TrainRequest
from .progress import Progress

SCHEMA = "lare2-rt/head-card/1"


def part_facts(part: Part) -> dict[str, Any]:
    """Return how many images of which kind a part has."""
    labels = np.array([item.label for item in part.items])
    names, counts = np.unique([item.generator for item in part.items if item.label == 1], return_counts=True)
    return {
        "real": int((labels == 0).sum()),
        "generated": int((labels == 1).sum()),
        "generators": dict(zip(names.tolist(), counts.tolist(), strict=True)),
        "groups": len({item.source or item.sha256 for item in part.items}),
    }


def origin(
    request: TrainRequest,
    bundle: Bundle,
    sources: ModelSources,
    facts: dict[str, Any],
    accelerator: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Return what a head was made from and how."""
    import accelerate

    manifest = bundle.manifest
    clip = {"role": "clip", "name": sources.clip.name, "sha256": facts["clip"], "licence": sources.clip.licence}
    lare = [
        {"role": s.role, "name": s.name, "sha256": s.sha256, "licence": s.licence}
        for s in manifest.sources
        if s.role in LARE_ROLES
    ]
    return {
        "schema": SCHEMA,
        "lare_id": manifest.lare_id,
        "bundle": {"name": manifest.model.name, "id": manifest.id},
        "method": manifest.method.model_dump(mode="json"),
        "preprocessing": manifest.preprocessing.model_dump(mode="json"),
        "options": asdict(request.options),
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "threads": torch.get_num_threads(),
        "sources": [*lare, clip],
        "versions": {"lare2-rt": __version__, "torch": torch.__version__, "accelerate": accelerate.__version__},
    }


def measure(trainer: Trainer, part: Part | None) -> dict[str, Any] | None:
    """Return a part's metrics with intervals, None where it is missing or lacks a class; for all processes together."""
    if part is None:
        return None
    logits = trainer.logits(part)
    if len({item.label for item in part.items}) < 2:
        return None
    return asdict(summarise(scored_sample(part, logits), DecisionRule("uncalibrated")))


def data_facts(parts: Parts, digest: str) -> dict[str, Any]:
    """Return the card's word on the images; ``digest`` is the index file's sha256, empty where there is none."""
    return {
        "index_sha256": digest,
        "validation_from": parts.validation_from,
        "without_lare": parts.without_lare,
        "train": part_facts(parts.train),
        "validation": part_facts(parts.validation),
        "test": None if parts.test is None else part_facts(parts.test),
    }


def card_of(
    origin_facts: dict[str, Any], data: dict[str, Any], progress: Progress, measured: dict[str, dict[str, Any] | None]
) -> dict[str, Any]:
    """Return the whole card; ``measured`` has ``validation`` and ``test``."""
    assert progress.best is not None
    return {
        **origin_facts,
        "data": data,
        "epochs": progress.epoch,
        "best_epoch": asdict(progress.best),
        "history": [asdict(record) for record in progress.history],
        **measured,
    }
