"""Reading weights and their configurations strictly: whatever does not fit is named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lare2_rt.errors import Lare2Error, first_line
from lare2_rt.integrity import HashCache, sha256_of

_WEIGHT_SUFFIXES = (".safetensors", ".json", ".txt")
Config = TypeVar("Config")
# The hash is part of the address under which OpenAI publishes the archive (CLIP's clip.py).
OPENAI_ARCHIVES = frozenset({"afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"})  # RN50.pt


class SourceError(Lare2Error):
    """Weights are missing, damaged or of the wrong shape; the text names the file or key and the remedy."""


def folder_sha256(folder: Path, cache: HashCache) -> str:
    """Return sha256 over the names and hashes of the weight and configuration files directly in a folder."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES)
    return hashlib.sha256("".join(f"{name} {cache.sha256(folder / name)}\n" for name in names).encode()).hexdigest()


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file and cast it to float32; raises SourceError."""
    try:
        return {key: _float32(value) for key, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise SourceError(f"{path} cannot be read ({error}); download it again") from error


def read_state(path: Path, *, trust_torchscript: bool = False) -> dict[str, Tensor]:
    """Read a state dict from safetensors, a pickle of plain tensors, or OpenAI's TorchScript archive; cast to float32.

    Pickles are read with ``weights_only=True`` and never otherwise. A TorchScript archive holds code: it is opened only
    when its sha256 is the one that OpenAI published, or on the user's word. A ``module.`` in front of every key, which
    data-parallel training leaves, is dropped.

    Raises:
        SourceError: unreadable, code instead of tensors, or an archive that nobody vouches for.
    """
    if path.suffix == ".safetensors":
        return _unwrapped(read_safetensors(path))
    if _is_torchscript(path):
        return _unwrapped(_read_torchscript(path, trusted=trust_torchscript))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and zip each raise their own
        raise SourceError(
            f"{path} cannot be read as plain tensors ({first_line(error)[:120]}); pickles with code "
            "are refused: save the state dict as safetensors"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise SourceError(f"{path} does not hold a state dict of tensors; save model.state_dict() alone")
    return _unwrapped({str(key): _float32(value) for key, value in content.items()})


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _read_torchscript(path: Path, *, trusted: bool) -> dict[str, Tensor]:
    if not trusted and sha256_of(path) not in OPENAI_ARCHIVES:
        raise SourceError(
            f"{path} is a TorchScript archive, which holds code, and not one that OpenAI published; pass "
            "--allow-unverified-torchscript if you trust it"
        )
    try:
        state = torch.jit.load(path, map_location="cpu").state_dict()
    except RuntimeError as error:
        raise SourceError(f"{path} cannot be read ({first_line(error)}); download it again") from error
    return {key: _float32(value) for key, value in state.items()}


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    wrapped = bool(state) and all(key.startswith("module.") for key in state)
    return {key.removeprefix("module."): value for key, value in state.items()} if wrapped else state


def _float32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def load_strictly(
    module: nn.Module, state: dict[str, Tensor], path: Path, *, shown_as: Mapping[str, str] | None = None
) -> None:
    """Load a state dict; raises SourceError naming the first missing, unknown or misshapen key.

    ``shown_as`` maps names in the file to names in ``module``, so that errors speak of the file's.
    """
    in_file = {ours: theirs for theirs, ours in (shown_as or {}).items()}
    expected = module.state_dict()
    # BatchNorm counts its training steps; a checkpoint may leave the count out and evaluation never reads it.
    optional = {key for key in expected if key.endswith("num_batches_tracked")}
    for key, value in expected.items():
        if key not in state and key not in optional:
            name = in_file.get(key, key)
            raise SourceError(f"{path} lacks {name} {list(value.shape)}; it is not a checkpoint of this network")
        if key in state and state[key].shape != value.shape:
            name, shape = in_file.get(key, key), list(state[key].shape)
            raise SourceError(f"{path}: {name} has shape {shape} where {list(value.shape)} is needed")
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
