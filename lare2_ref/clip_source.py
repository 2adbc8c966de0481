"""Where a CLIP ResNet comes from: our folder, a state dict of open_clip or OpenAI, or an open_clip tag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from torch import Tensor

from lare2_rt.errors import first_line
from lare2_rt.host.integrity import HashCache

from .checkpoints import Shape, Sizes, SourceError, build_strictly, folder_sha256, read_config, read_safetensors
from .clip_backbone import ClipBackbone, ClipConfig, build_visual
from .weight_file import WeightFile

# A whole CLIP, an official LaRE² checkpoint, and a bare visual tower call the same tensors by these prefixes.
_PREFIXES = ("clip_model.visual.", "visual.", "")
_POSITION = "attnpool.positional_embedding"
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
        shapes = self._file.shapes()
        prefix = visual_prefix(shapes, self.path)
        return infer_config(shapes, self.path, prefix=prefix)

    def backbone(self) -> ClipBackbone:
        """See ``ClipSource``."""
        prefix = visual_prefix(self._file.shapes(), self.path)
        state = self._file.read(lambda key: key.startswith(prefix))
        return _backbone(self.config(), state, self.path, prefix=prefix)

    def sha256(self, cache: HashCache) -> str:
        """See ``ClipSource``."""
        return cache.sha256(self.path)

    @property
    def _file(self) -> WeightFile:
        return WeightFile(self.path, "any" if self.trust_torchscript else "published")


@dataclass(frozen=True, slots=True)
class OpenClipTag:
    """Weights that open_clip downloads, such as ``open_clip:RN50/openai``."""

    tag: str
    licence: str = "as stated by the source; OpenAI CLIP: MIT"
    offline: bool = False

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
        return ClipCheckpoint(_fetched(self.tag, self.offline), self.licence)


@lru_cache(maxsize=4)
def _fetched(tag: str, offline: bool) -> Path:
    """Return the file of a tag, which is asked for once, so that every question is answered from the same weights."""
    import open_clip.pretrained as pretrained

    architecture, _, weights = tag.removeprefix(_TAG).partition("/")
    entry = pretrained.get_pretrained_cfg(architecture, weights)
    if not entry:
        known = ", ".join(pretrained.list_pretrained_tags_by_model(architecture)) or "none"
        raise SourceError(
            f"open_clip has no weights {weights!r} for {architecture!r} (known: {known})", remedy="check the tag"
        )
    if offline:
        return _cached(tag, entry)
    try:
        return Path(pretrained.download_pretrained(entry))
    except Exception as error:  # the hub and urllib raise their own
        raise SourceError(
            f"{tag} cannot be downloaded ({first_line(error)})", remedy="download it elsewhere and give the file"
        ) from error


def _cached(tag: str, entry: Mapping[str, str]) -> Path:
    """Return the file that open_clip downloaded earlier, from the hub or from a plain address; raises SourceError."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    repository, _, name = entry.get("hf_hub", "").rpartition("/")
    names = [f"{name.rpartition('.')[0]}.safetensors", name] if name else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    found = [try_to_load_from_cache(repository, each) for each in names] if repository else []
    # open_clip puts what it takes from plain addresses here.
    plain = Path("~/.cache/clip").expanduser() / entry.get("url", "").rpartition("/")[2]
    for path in (*found, str(plain)):
        if isinstance(path, str) and Path(path).is_file():
            return Path(path)
    raise SourceError(
        f"{tag} is not in the cache", remedy="leave out --offline once, or download it elsewhere and give the file"
    )


def find_clip(location: str, *, trust_torchscript: bool = False, offline: bool = False) -> ClipSource:
    """Return the source behind a folder, a file or ``open_clip:ARCHITECTURE/WEIGHTS``; raises SourceError.

    ``offline`` takes the weights of a tag from the cache alone.
    """
    if location.startswith(_TAG):
        return OpenClipTag(location, offline=offline)
    path = Path(location)
    if path.is_dir():
        return ClipFolder(path, path.name, "as stated by the source; OpenAI CLIP: MIT")
    if path.is_file():
        return ClipCheckpoint(path, trust_torchscript=trust_torchscript)
    raise SourceError(f"{location} is neither a folder, a file nor {_TAG}ARCHITECTURE/WEIGHTS", remedy="check --clip")


def visual_prefix(shapes: Mapping[str, Shape], path: Path) -> str:
    """Return what stands in front of the visual tower's names; raises SourceError when there is no such tower."""
    for prefix in _PREFIXES:
        if f"{prefix}{_POSITION}" in shapes:
            return prefix
    raise SourceError(f"{path} holds no CLIP ResNet (no {_POSITION})", remedy="give RN50 weights")


def infer_config(shapes: Mapping[str, Shape], path: Path, *, prefix: str = "") -> ClipConfig:
    """Read the geometry off the shapes of a visual tower; raises SourceError when it is not CLIP's ResNet."""
    sizes = Sizes(shapes, path, "a CLIP ResNet")
    stem, position = f"{prefix}conv3.weight", f"{prefix}{_POSITION}"

    def blocks(stage: int) -> int:
        first = f"{prefix}layer{stage}."
        sizes.of(f"{first}0.conv1.weight", 4)
        return len({key.removeprefix(first).split(".")[0] for key in shapes if key.startswith(first)})

    tokens, _ = sizes.of(position, 2)
    width, *_ = sizes.of(stem, 4)
    embedding, _ = sizes.of(f"{prefix}attnpool.c_proj.weight", 2)
    side = round((tokens - 1) ** 0.5)
    if side < 1 or tokens != 1 + side**2:
        raise sizes.wrong(position, "one row for the mean and a square of others are needed")
    if width % 2:
        raise sizes.wrong(stem, "an even width is needed")
    return ClipConfig(
        layers=(blocks(1), blocks(2), blocks(3), blocks(4)), width=width, embedding=embedding, image_size=32 * side
    )


def _backbone(config: ClipConfig, state: dict[str, Tensor], path: Path, *, prefix: str = "") -> ClipBackbone:
    visual = build_strictly(lambda: build_visual(config), state, path, file_name=lambda key: prefix + key)
    return ClipBackbone(visual).eval()
