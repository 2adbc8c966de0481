"""From what a user names on a command line to the sources of all weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .clip_source import find_clip
from .head_source import find_head
from .sd_source import find_stable_diffusion
from .sources import ModelSources, combine, default_model_folder, open_model_folder


@dataclass(frozen=True, slots=True)
class Chosen:
    """Where weights come from; None means not given. The fields are the options of ``build_engines.py``."""

    model: str | None = None
    sd: str | None = None
    revision: str | None = None
    offline: bool = False
    clip: str | None = None
    trust_torchscript: bool = False
    head: str | None = None

    def sources(self) -> ModelSources:
        """Return the sources: what is named, over the model folder (default: the one that ships with the project).

        Stable Diffusion and a head without a model folder are a model of their own, with no name and no marks of
        another; CLIP is named too then, unless the head brings it.

        Raises:
            SourceError: something is missing or is not what it should be.
        """
        whole = self.sd is not None and self.head is not None
        base = (
            None
            if whole and self.model is None
            else open_model_folder(Path(self.model) if self.model is not None else default_model_folder())
        )
        return combine(
            base,
            sd=None
            if self.sd is None
            else find_stable_diffusion(self.sd, revision=self.revision, offline=self.offline),
            clip=None
            if self.clip is None
            else find_clip(self.clip, trust_torchscript=self.trust_torchscript, offline=self.offline),
            head=None if self.head is None else find_head(self.head),
        )
