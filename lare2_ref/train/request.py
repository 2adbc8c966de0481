"""What is asked of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lare2_rt.tools.datasets.table import Index

from ..chosen import Chosen
from .options import TrainOptions


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What to train on and with; None means default.

    Attributes:
        index: the labelled set; features: folder of stored LaRE, None to compute it in every step.
        out: folder of checkpoints and results.
        bundle: whose method, noise and preprocessing the head is for; None: the one that ``lare2-rt infer`` would use.
        weights: where CLIP, and for computing LaRE Stable Diffusion, come from.
        options: the recipe.
        workers: decoding processes; clip_cache: keep what a frozen CLIP says of each image.
        device: ``auto`` (accelerate's choice) or ``cpu``.
        tensorboard: write curves to ``OUT/tensorboard``.
    """

    index: Index
    features: Path | None
    out: Path
    bundle: str | None
    weights: Chosen
    options: TrainOptions
    workers: int = 2
    clip_cache: bool = True
    device: str = "auto"
    tensorboard: bool = False
