"""What is asked of a training run, as options of its command. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from lare2_rt.bundle.manifest import HeadName
from lare2_rt.errors import UsageError

from ..weight_choice import WeightChoice

if TYPE_CHECKING:
    import typer


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """The recipe; it determines the head, together with the data and the weights.

    Defaults are those of the official training script, as far as it has them (method.md 3.7). ``crop`` is ``centre``
    for the window that the runtime cuts, ``random`` for one of a random part of the picture whose LaRE is computed, and
    ``official`` for a random window with the whole picture's map, which is never so at run time. The learning rate
    falls by ``factor`` to ``min_learning_rate`` after ``patience`` epochs without a better AUC on the validation images
    (official: on the test images); ``clip_norm`` bounds the gradient's norm.
    """

    head: Annotated[HeadName, typer.Option(help="Head of the paper, or the later one.")] = "v6"
    backbone: Annotated[
        Literal["trained", "frozen"], typer.Option(help="Fine-tune CLIP, as the official script, or leave it.")
    ] = "trained"
    crop: Annotated[
        Literal["centre", "random", "official"],
        typer.Option(
            help="Window: the runtime's; a random one with LaRE of the part around it; or random with the whole's map."
        ),
    ] = "centre"
    augment: Annotated[
        Literal["none", "strong"], typer.Option(help="The official strong augmentation, for both branches alike.")
    ] = "none"
    noise: Annotated[
        Literal["fixed", "per-image"], typer.Option(help="The bundle's noise, or new noise for every image and epoch.")
    ] = "fixed"
    epochs: Annotated[int, typer.Option(min=1, help="Epochs at most.")] = 100
    batch: Annotated[int, typer.Option(min=1, help="Images per step, over all GPUs together.")] = 48
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 1e-4
    min_learning_rate: float = 1e-7
    factor: float = 0.5
    patience: int = 4
    stop_after: Annotated[
        int, typer.Option(min=0, help="Stop after this many epochs without a better validation AUC; 0: never.")
    ] = 15
    clip_norm: float = 5.0
    dropout: Annotated[float, typer.Option(help="Of the head.")] = 0.1
    validation_share: Annotated[
        float, typer.Option(help="Part of the training images to validate on where the set has no split 'val'.")
    ] = 0.1
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same head.")] = 0
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"], typer.Option(help="Of the forward pass; weights stay in float32.")
    ] = "fp32"
    checkpoint_steps: Annotated[
        int, typer.Option(min=0, help="Steps between checkpoints within an epoch; 0: only at its end.")
    ] = 500

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
                raise UsageError(f"the {name} cannot be {value:g}", remedy=f"choose {low:g} to {high:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """What to train with; None means default."""

    out: Annotated[Path, typer.Option(help="Folder of the head, its card and the checkpoints.")]
    features: Annotated[
        Path | None,
        typer.Option(help="LaRE from 'lare2-rt extract'. Default: computed in every step, with Stable Diffusion."),
    ] = None
    bundle: Annotated[
        str | None,
        typer.Option(
            help="Bundle whose method and noise the head is for. Default: the one 'lare2-rt infer' would use."
        ),
    ] = None
    weights: WeightChoice
    options: TrainOptions
    clip_cache: Annotated[bool, typer.Option(help="Keep on disk what a frozen CLIP says of each image.")] = True
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 2
    device: Annotated[
        Literal["auto", "cpu"], typer.Option(help="Where to train; auto takes GPUs where there are some.")
    ] = "auto"
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write curves to OUT/tensorboard.")] = False
