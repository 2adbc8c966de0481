"""What a run leaves: the head under the official key names, its sizes, and a card that says what it is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from lare2_rt._version import __version__
from lare2_rt.bundle.opening import Bundle
from lare2_rt.detection import DecisionRule
from lare2_rt.host.atomic import write_bytes
from lare2_rt.host.text import printable
from lare2_rt.tools.evaluation.summary import METRICS, summarise

from ..egre import official_key
from ..head_source import METADATA, TRAINED
from ..sources import ModelSources
from .assemble import LARE_ROLES
from .checkpoint import Progress
from .data import Part, Parts
from .loop import Trainer, scored_sample
from .network import Trainee
from .options import TrainRequest

HEAD, CONFIG, CARD, CARD_TEXT = TRAINED, "config.json", "card.json", "card.md"


def head_state(trainee: Trainee) -> dict[str, Tensor]:
    """Return the state dict of ``head.safetensors``: the official keys; with a trained CLIP also its visual tower."""
    egre = trainee.egre
    state = {official_key(egre.config.head, key): value for key, value in egre.state_dict().items()}
    if trainee.clip is not None:
        visual = trainee.clip.visual.state_dict()
        state |= {f"clip_model.visual.{key}": value for key, value in visual.items()}
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}


def write_results(out: Path, trainee: Trainee, card: dict[str, Any]) -> None:
    """Write the four files, the head last, so that a head always has its card; raises OutputError."""
    write_bytes(out / CARD, (json.dumps(card, indent=2, allow_nan=False) + "\n").encode())
    write_bytes(out / CARD_TEXT, card_text(card).encode())
    write_bytes(out / CONFIG, (json.dumps(asdict(trainee.egre.config), indent=2) + "\n").encode())
    # One entry, because the order of several is not fixed, and the same run must give the same bytes.
    facts = json.dumps({"lare_id": card["lare_id"], "card": card["schema"]}, sort_keys=True)
    write_bytes(out / HEAD, save(head_state(trainee), metadata={METADATA: facts}))


def card_text(card: dict[str, Any]) -> str:
    """Return the card for people."""
    data, options, best = card["data"], card["options"], card["best_epoch"]
    train, validation = data["train"], data["validation"]
    kept_apart = "of the split val" if data["validation_from"] == "val" else "kept apart from them by source"
    generators = ", ".join(f"{printable(name)} {count}" for name, count in train["generators"].items())
    about = (
        f"Trained on {train['real']} real and {train['generated']} generated images ({generators}), "
        f"validated on {validation['real']} real and {validation['generated']} generated ones {kept_apart}."
    )
    chosen = (
        f"Best epoch {best['epoch']} of {card['epochs']}: the highest AUC on the validation images, which chose it, so "
        "that their figures are a little too good. No threshold has been calibrated."
    )
    lines = [
        f"# EGRE head {options['head']}",
        "",
        about,
        "",
        chosen,
        "",
        *_metric_lines("Validation", card["validation"]),
        *(_metric_lines("Test", card["test"]) if card["test"] is not None else ["There was no test split.", ""]),
        "## Made from",
        "",
        f"- LaRE `{card['lare_id']}`: a bundle must be built with the same weights, prompt, noise and preprocessing",
        *(
            f"- {s['role']}: {printable(s['name'])}, {printable(s['licence'])}, `{s['sha256']}`"
            for s in card["sources"]
        ),
        f"- index `{data['index_sha256'] or 'not kept in a file'}`",
        f"- seed {options['seed']}; {', '.join(f'{name} {value}' for name, value in card['versions'].items())}",
        "",
        "The licences of the images it learned from may bind the head as well.",
        "",
    ]
    return "\n".join(lines)


def _metric_lines(title: str, summary: dict[str, Any]) -> list[str]:
    lines = [f"## {title}", "", f"{summary['real']} real, {summary['generated']} generated images.", ""]
    lines += ["| metric | value | 95 % interval |", "|---|---|---|"]
    for name, interval in summary["metrics"].items():
        lines.append(f"| {METRICS[name]} | {interval['value']:.4f} | {interval['low']:.4f} to {interval['high']:.4f} |")
    return [*lines, ""]


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
