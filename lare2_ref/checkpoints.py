"""Reading weights and their configurations strictly: whatever does not fit is named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lare2_rt.errors import Lare2Error
from lare2_rt.integrity import HashCache

_WEIGHT_SUFFIXES = (".safetensors", ".json", ".txt")
Config = TypeVar("Config")


class SourceError(Lare2Error):
    """Weights are missing, damaged or of the wrong shape; the text names the file or key and the remedy."""


def folder_sha256(folder: Path, cache: HashCache) -> str:
    """Return sha256 over the names and hashes of the weight and configuration files directly in a folder."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES)
    return hashlib.sha256("".join(f"{name} {cache.sha256(folder / name)}\n" for name in names).encode()).hexdigest()


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file and cast it to float32; raises SourceError."""
    try:
        return {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise SourceError(f"{path} cannot be read ({error}); download it again") from error


def load_strictly(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load a state dict; raises SourceError naming the first missing, unknown or misshapen key."""
    expected = module.state_dict()
    # BatchNorm counts its training steps; a checkpoint may leave the count out and evaluation never reads it.
    optional = {key for key in expected if key.endswith("num_batches_tracked")}
    for key, value in expected.items():
        if key not in state and key not in optional:
            raise SourceError(f"{path} lacks {key} {list(value.shape)}; it is not a checkpoint of this network")
        if key in state and state[key].shape != value.shape:
            raise SourceError(f"{path}: {key} has shape {list(state[key].shape)} where {list(value.shape)} is needed")
    unknown = sorted(set(state) - set(expected))
    if unknown:
        raise SourceError(f"{path} has unknown {', '.join(unknown[:3])}; it is not a checkpoint of this network")
    module.load_state_dict(state, strict=not optional)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises SourceError."""
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}); check the folder that you gave") from error
    except ValueError:
        raise SourceError(f"{path} is not valid JSON; get it again") from None
    if not isinstance(raw, dict):
        raise SourceError(f"{path} does not hold a JSON object; get it again")
    return raw


def read_config(kind: type[Config], path: Path) -> Config:
    """Read a configuration dataclass (lists become tuples); raises SourceError for unknown fields."""
    raw = {key: tuple(value) if isinstance(value, list) else value for key, value in read_json(path).items()}
    unknown = set(raw) - {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise SourceError(f"{path} has unknown fields {', '.join(sorted(unknown))}; remove them")
    return kind(**raw)


def weights_variant(folder: Path, stem: str) -> str | None:
    """Return ``fp16`` when a folder only has half-precision weights, else None for the plain file."""
    return "fp16" if not (folder / f"{stem}.safetensors").exists() and any(folder.glob(f"{stem}.fp16*")) else None
