"""What a training run is: everything here, with the data and the weights, determines the head."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lare2_rt.errors import UsageError

from ..egre import HeadName

Backbone = Literal["trained", "frozen"]
CropPolicy = Literal["centre", "random", "official"]
Augmentation = Literal["none", "strong"]
NoisePolicy = Literal["fixed", "per-image"]
PrecisionName = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """The recipe; the defaults are those of the official training script, as far as it has them (method.md 3.7).

    Attributes:
        head: ``v6`` (the paper's) or ``v7``.
        backbone: ``trained`` fine-tunes CLIP's visual tower with its BatchNorm statistics, as the official script does;
            ``frozen`` leaves it as it is, in evaluation mode.
        crop: ``centre`` is the window that the runtime cuts; ``random`` cuts a random part of the picture whose centre
            the window is, and computes LaRE of that part; ``official`` pairs a random window with the whole picture's
            map, which is never so at run time.
        augment: ``strong`` is the official list (JPEG, blur, noise, grey, quarter turns, flips) before both branches.
        noise: ``fixed`` is the bundle's, as at run time; ``per-image`` draws anew for every image and epoch.
        epochs, batch: at most this many epochs of batches of this many images, over all processes together.
        learning_rate, min_learning_rate: of Adam; it falls by ``factor`` after ``patience`` epochs without a better AUC
            on the validation images (official: on the test images).
        stop_after: epochs without a better validation AUC after which training ends; 0: never.
        clip_norm: bound of the gradient's norm; dropout: of the head.
        validation_share: of the training images, by groups, where the index has no split ``val``.
        seed: of the initial weights, the order, dropout, crops and augmentation.
        precision: of the forward pass; weights and optimiser stay in float32.
        checkpoint_steps: steps between checkpoints within an epoch; 0: only at its end.
    """

    head: HeadName = "v6"
    backbone: Backbone = "trained"
    crop: CropPolicy = "centre"
    augment: Augmentation = "none"
    noise: NoisePolicy = "fixed"
    epochs: int = 100
    batch: int = 48
    learning_rate: float = 1e-4
    min_learning_rate: float = 1e-7
    factor: float = 0.5
    patience: int = 4
    stop_after: int = 15
    clip_norm: float = 5.0
    dropout: float = 0.1
    validation_share: float = 0.1
    seed: int = 0
    precision: PrecisionName = "fp32"
    checkpoint_steps: int = 500

    @property
    def computes_lare(self) -> bool:
        """Whether stored maps do not do: LaRE is computed from the pixels of this very step."""
        return self.crop == "random" or self.augment != "none" or self.noise == "per-image"

    @property
    def fixed_view(self) -> bool:
        """Whether an image looks the same in every epoch, so that what a frozen CLIP says of it can be kept."""
        return self.crop == "centre" and self.augment == "none"

    def digest(self, facts: dict[str, Any]) -> str:
        """sha256 in hex over the options and ``facts`` (data and weights): what a checkpoint belongs to."""
        content = json.dumps({"options": asdict(self), "facts": facts}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def check(self) -> None:
        """Raise UsageError for values that cannot be."""
        bounds = (
            ("epochs", self.epochs, 1, 100_000),
            ("batch", self.batch, 1, 65_536),
            ("learning rate", self.learning_rate, 1e-12, 1.0),
            ("dropout", self.dropout, 0.0, 0.99),
            ("validation share", self.validation_share, 0.0, 0.9),
            ("gradient bound", self.clip_norm, 1e-6, 1e6),
        )
        for name, value, low, high in bounds:
            if not low <= value <= high:
                raise UsageError(f"the {name} must lie between {low:g} and {high:g}, not {value:g}")
