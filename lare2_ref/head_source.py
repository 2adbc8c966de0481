"""Where an EGRE head comes from: our folder, or one checkpoint file of the official code (V6 or V7) or of ours."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import Tensor

from lare2_rt.bundle.manifest import HeadName
from lare2_rt.host.integrity import HashCache

from .checkpoints import Shape, Sizes, SourceError, build_strictly, folder_sha256, read_config, read_safetensors
from .egre import Egre, EgreConfig, official_key
from .weight_file import WeightFile

# In the official state dict beside the head: the CLIP (taken by clip_source) and two layers that are never used.
_NOT_HEAD = ("clip_model.", "conv_align.")
_NEVER_USED = ".relative_importance_mapping."
TRAINED = "head.safetensors"  # in the folder of a training run
METADATA = "lare2_rt"  # key of a trained head's facts in its safetensors file


class HeadSource(Protocol):
    """An EGRE head, loaded anew on every call."""

    @property
    def name(self) -> str:
        """How manifests call it."""

    @property
    def licence(self) -> str:
        """Its licence, for manifests."""

    def config(self) -> EgreConfig:
        """Return the sizes."""

    def head(self) -> Egre:
        """Return the head in float32."""

    def sha256(self, cache: HashCache) -> str:
        """Return the identity of the weights."""


@dataclass(frozen=True, slots=True)
class HeadFolder:
    """A folder with ``config.json`` (``EgreConfig``) and ``model.safetensors`` under the official key names."""

    folder: Path
    name: str
    licence: str

    def config(self) -> EgreConfig:
        """See ``HeadSource``."""
        return read_config(EgreConfig, self.folder / "config.json")

    def head(self) -> Egre:
        """See ``HeadSource``."""
        path = self.folder / "model.safetensors"
        return _head(self.config(), read_safetensors(path), path)

    def sha256(self, cache: HashCache) -> str:
        """See ``HeadSource``."""
        return folder_sha256(self.folder, cache)


@dataclass(frozen=True, slots=True)
class HeadCheckpoint:
    """One file with official key names: a whole official checkpoint or the head alone; sizes are in its shapes."""

    path: Path
    licence: str = "as stated by the source"

    @property
    def name(self) -> str:
        """See ``HeadSource``."""
        return self.path.name

    def config(self) -> EgreConfig:
        """See ``HeadSource``."""
        return infer_config(WeightFile(self.path).shapes(), self.path)

    def head(self) -> Egre:
        """See ``HeadSource``."""
        state = WeightFile(self.path).read(lambda key: not key.startswith(_NOT_HEAD) and _NEVER_USED not in key)
        return _head(self.config(), state, self.path)

    def sha256(self, cache: HashCache) -> str:
        """See ``HeadSource``."""
        return cache.sha256(self.path)

    def has_clip(self) -> bool:
        """Whether the file holds the CLIP that its head was trained with, as official checkpoints do."""
        return any(key.startswith("clip_model.visual.") for key in WeightFile(self.path).shapes())

    def lare_id(self) -> str | None:
        """Return the LaRE it was trained on, where ``python -m lare2_ref.train`` wrote it; None for other files."""
        try:
            facts = json.loads(WeightFile(self.path).index().metadata.get(METADATA, "{}"))
        except ValueError:
            return None
        found = facts.get("lare_id") if isinstance(facts, dict) else None
        return found if isinstance(found, str) and re.fullmatch("[0-9a-f]{64}", found) else None


def find_head(location: str) -> HeadFolder | HeadCheckpoint:
    """Return the source behind a folder, a file, or the folder of a training run; raises SourceError."""
    path = Path(location)
    if (path / TRAINED).is_file():
        path = path / TRAINED
    if path.is_dir():
        return HeadFolder(path, path.name, "as stated by the source")
    if path.is_file():
        return HeadCheckpoint(path)
    raise SourceError(f"{location} is neither a folder nor a file", remedy="check --head")


def infer_config(shapes: Mapping[str, Shape], path: Path) -> EgreConfig:
    """Read head and sizes off official key names and shapes; raises SourceError when it is neither V6 nor V7."""
    sizes = Sizes(shapes, path, "an EGRE head V6 or V7")
    head: HeadName = "v7" if "attn_pool.attention1.fc_q.weight" in shapes else "v6"
    position, classifier = "attn_pool.positional_embedding", "fc.weight"
    query = "attn_pool.attention1.fc_q.weight" if head == "v7" else "attn_pool.attention.fc_q.weight"
    tokens, channels = sizes.of(position, 2)
    inner, _ = sizes.of(query, 2)
    gate, lare_channels = sizes.of("channel_align.fc.0.weight", 2)
    _, features = sizes.of(classifier, 2)
    # V7 stores its head count only in the unused mapping; the official code has 8 in both.
    heads = sizes.of("conv.weight", 4)[0] if head == "v6" else 8
    grid, guided = round((tokens - 1) ** 0.5), channels * (2 if head == "v6" else 3)
    if grid < 1 or tokens != 1 + grid**2:
        raise sizes.wrong(position, "one row for the mean and a square of others are needed")
    if features <= guided:
        raise sizes.wrong(classifier, f"more than {guided} columns are needed beside the {channels} channels")
    if inner % heads:
        raise sizes.wrong(query, f"a multiple of {heads} rows is needed, one part for each head")
    return EgreConfig(
        head=head,
        channels=channels,
        embedding=features - guided,
        lare_channels=lare_channels,
        grid=grid,
        heads=heads,
        head_width=inner // heads,
        gate_width=gate,
    )


def _head(config: EgreConfig, official: dict[str, Tensor], path: Path) -> Egre:
    return build_strictly(lambda: Egre(config), official, path, file_name=partial(official_key, config.head))
