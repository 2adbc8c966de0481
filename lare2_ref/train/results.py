"""What a run leaves: the head under the official key names, its sizes, and a card that says what it is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from lare2_rt.host.atomic import write_bytes
from lare2_rt.host.text import printable
from lare2_rt.tools.evaluation.summary import METRICS

from ..egre import official_key
from ..head_source import METADATA, TRAINED
from .network import Trainee

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
    about = (
        f"Trained on {train['real']} real and {train['generated']} generated images ({_names(train['generators'])}), "
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


def _names(generators: dict[str, int]) -> str:
    return ", ".join(f"{printable(name)} {count}" for name, count in generators.items())
