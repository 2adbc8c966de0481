"""Where all weights come from, as options of commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lare2_rt.bundle.manifest import PredictionType
from lare2_rt.errors import UsageError

if TYPE_CHECKING:
    import typer

    from .sources import ModelSources


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightChoice:
    """Weights of everything but the head; None means not given."""

    model: Annotated[
        Path | None,
        typer.Option(help="Model folder with all weights (layout: lare2_ref/sources.py). Default: the small 'mini'."),
    ] = None
    sd: Annotated[
        str | None,
        typer.Option(
            help="Stable Diffusion instead of the model's own: hub id, folder in diffusers layout, or one .safetensors."
        ),
    ] = None
    prediction_type: Annotated[
        PredictionType | None,
        typer.Option(help="What the UNet of a single --sd file predicts. Default: as its family does; a note says it."),
    ] = None
    allow_pickle: Annotated[
        bool,
        typer.Option("--allow-pickle", help="Also read Stable Diffusion from .ckpt and .bin, as plain tensors only."),
    ] = False
    revision: Annotated[str | None, typer.Option(help="Revision of the hub id. Default: its main branch.")] = None
    offline: Annotated[
        bool, typer.Option("--offline", help="Use only what the hub cache has, for --sd and --clip.")
    ] = False
    clip: Annotated[
        str | None, typer.Option(help="CLIP ResNet instead of the model's own: file, folder or open_clip:RN50/openai.")
    ] = None
    allow_unverified_torchscript: Annotated[
        bool,
        typer.Option("--allow-unverified-torchscript", help="Open a TorchScript --clip that OpenAI did not publish."),
    ] = False

    def sources(self, head: str | None = None) -> ModelSources:
        """Return the sources: what is named, over the model folder (default: the one that ships with the project).

        Stable Diffusion and a head without a model folder are a model of their own, with no name and no marks of
        another; CLIP is named too then, unless the head brings it.

        Raises:
            UsageError: the options contradict each other.
            SourceError: something is missing or is not what it should be.
        """
        from .clip_source import find_clip
        from .head_source import find_head
        from .sd_source import find_stable_diffusion
        from .sources import combine, default_model_folder, open_model_folder

        if self.sd is None and self.prediction_type is not None:
            raise UsageError("--prediction-type is for a single Stable Diffusion file", remedy="give it as --sd too")
        base = diffusion = clip = None
        if self.model is not None or self.sd is None or head is None:
            base = open_model_folder(self.model or default_model_folder(), allow_pickle=self.allow_pickle)
        if self.sd is not None:
            diffusion = find_stable_diffusion(
                self.sd,
                revision=self.revision,
                offline=self.offline,
                allow_pickle=self.allow_pickle,
                prediction_type=self.prediction_type,
            )
        if self.clip is not None:
            clip = find_clip(self.clip, trust_torchscript=self.allow_unverified_torchscript, offline=self.offline)
        return combine(base, sd=diffusion, clip=clip, head=None if head is None else find_head(head))


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorChoice(WeightChoice):
    """The weights of a whole detector; ``sources(choice.head)`` opens them."""

    head: Annotated[
        str | None,
        typer.Option(help="EGRE head instead of the model's own: official .pth (V6, V7), safetensors or folder."),
    ] = None
