"""Where a CLIP ResNet comes from: our folder, a state dict of open_clip or OpenAI, or an open_clip tag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from lare2_rt.integrity import HashCache

from .checkpoints import SourceError, folder_sha256, load_strictly, read_config, read_safetensors, read_state
from .clip_backbone import ClipBackbone, ClipConfig, build_visual

# A whole CLIP, an official LaRE² checkpoint, and a bare visual tower call the same tensors by these prefixes.
_PREFIXES = ("clip_model.visual.", "visual.", "")
_TAG = "open_clip:"


class ClipSource(Protocol):
    """A CLIP visual tower, loaded anew on every call."""

    @property
    def name(self) -> str:
        """How manifests call it."""

    @property
    def licence(self) -> str:
        """Its licence, for manifests."""

    def config(self) -> ClipConfig:
        """Return the geometry."""

    def backbone(self) -> ClipBackbone:
        """Return the CLIP branch in float32."""

    def sha256(self, cache: HashCache) -> str:
        """Return the identity of the weights."""


@dataclass(frozen=True, slots=True)
class ClipFolder:
    """A folder with ``config.json`` (``ClipConfig``) and ``model.safetensors`` (open_clip's visual tower)."""

    folder: Path
    name: str
    licence: str

    def config(self) -> ClipConfig:
        """See ``ClipSource``."""
        return read_config(ClipConfig, self.folder / "config.json")

    def backbone(self) -> ClipBackbone:
        """See ``ClipSource``."""
        path = self.folder / "model.safetensors"
        return _backbone(self.config(), read_safetensors(path), path)

    def sha256(self, cache: HashCache) -> str:
        """See ``ClipSource``."""
        return folder_sha256(self.folder, cache)


@dataclass(frozen=True, slots=True)
class ClipCheckpoint:
    """One file: safetensors, a pickled state dict, or OpenAI's TorchScript archive; the geometry is in its shapes."""

    path: Path
    licence: str = "as stated by the source; OpenAI CLIP: MIT"
    trust_torchscript: bool = False

    @property
    def name(self) -> str:
        """See ``ClipSource``."""
        return self.path.name

    def config(self) -> ClipConfig:
        """See ``ClipSource``."""
        return infer_config(self._visual(), self.path)

    def backbone(self) -> ClipBackbone:
        """See ``ClipSource``."""
        state = self._visual()
        return _backbone(infer_config(state, self.path), state, self.path)

    def sha256(self, cache: HashCache) -> str:
        """See ``ClipSource``."""
        return cache.sha256(self.path)

    def _visual(self) -> dict[str, Tensor]:
        return visual_tower(read_state(self.path, trust_torchscript=self.trust_torchscript), self.path)


@dataclass(frozen=True, slots=True)
class OpenClipTag:
    """Weights that open_clip downloads, such as ``open_clip:RN50/openai``."""

    tag: str
    licence: str = "as stated by the source; OpenAI CLIP: MIT"

    @property
    def name(self) -> str:
        """See ``ClipSource``."""
        return self.tag

    def config(self) -> ClipConfig:
        """See ``ClipSource``."""
        return self._checkpoint().config()

    def backbone(self) -> ClipBackbone:
        """See ``ClipSource``."""
        return self._checkpoint().backbone()

    def sha256(self, cache: HashCache) -> str:
        """See ``ClipSource``."""
        return self._checkpoint().sha256(cache)

    def _checkpoint(self) -> ClipCheckpoint:
        import open_clip.pretrained as pretrained

        architecture, _, weights = self.tag.removeprefix(_TAG).partition("/")
        entry = pretrained.get_pretrained_cfg(architecture, weights)
        if not entry:
            known = ", ".join(pretrained.list_pretrained_tags_by_model(architecture)) or "none"
            raise SourceError(
                f"open_clip has no weights {weights!r} for {architecture!r} (known: {known}); check the tag"
            )
        try:
            path = pretrained.download_pretrained(entry)
        except Exception as error:  # the hub and urllib raise their own
            raise SourceError(
                f"{self.tag} cannot be downloaded ({error}); download it elsewhere and give the file"
            ) from error
        return ClipCheckpoint(Path(path), self.licence)


def find_clip(location: str, *, trust_torchscript: bool = False) -> ClipSource:
    """Return the source behind a folder, a file or ``open_clip:ARCHITECTURE/WEIGHTS``; raises SourceError."""
    if location.startswith(_TAG):
        return OpenClipTag(location)
    path = Path(location)
    if path.is_dir():
        return ClipFolder(path, path.name, "as stated by the source; OpenAI CLIP: MIT")
    if path.is_file():
        return ClipCheckpoint(path, trust_torchscript=trust_torchscript)
    raise SourceError(f"{location} is neither a folder, a file nor {_TAG}ARCHITECTURE/WEIGHTS; check --clip")


def visual_tower(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the visual tower's tensors under open_clip's names, whatever the checkpoint holds beside it."""
    for prefix in _PREFIXES:
        if f"{prefix}attnpool.positional_embedding" in state:
            return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    raise SourceError(f"{path} holds no CLIP ResNet (no attnpool.positional_embedding); give RN50 weights")


def infer_config(state: Mapping[str, Tensor], path: Path) -> ClipConfig:
    """Read the geometry off the shapes of a visual tower; raises SourceError when it is not CLIP's ResNet."""
    try:
        layers = tuple(
            len({key.split(".")[1] for key in state if key.startswith(f"layer{index}.")}) for index in (1, 2, 3, 4)
        )
        tokens = state["attnpool.positional_embedding"].shape[0]
        width, embedding = state["conv3.weight"].shape[0], state["attnpool.c_proj.weight"].shape[0]
    except KeyError as error:
        raise SourceError(f"{path} lacks {error}; it is not a CLIP ResNet") from None
    side = round((tokens - 1) ** 0.5)
    return ClipConfig(
        layers=(layers[0], layers[1], layers[2], layers[3]), width=width, embedding=embedding, image_size=32 * side
    )


def _backbone(config: ClipConfig, state: dict[str, Tensor], path: Path) -> ClipBackbone:
    visual = build_visual(config)
    load_strictly(visual, state, path)
    return ClipBackbone(visual).eval()
