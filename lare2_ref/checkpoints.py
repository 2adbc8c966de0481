"""Reading weights and their configurations strictly: whatever does not fit is named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lare2_rt.errors import Lare2Error
from lare2_rt.host.integrity import HashCache

Config = TypeVar("Config")
Module = TypeVar("Module", bound=nn.Module)
Shape = tuple[int, ...]
_OTHER_NETWORK = "give a checkpoint of this very network"


class SourceError(Lare2Error):
    """Weights are missing, damaged or of the wrong shape; the text names the file or key and the remedy."""


def broken(problem: str) -> SourceError:
    """Return the error of a file that is not what its source has."""
    return SourceError(problem, remedy="download it again")


@dataclass(frozen=True, slots=True)
class Sizes:
    """The shapes of a file's tensors, off which the sizes of a network are read.

    Attributes:
        shapes: tensor name -> shape; path: the file, for errors; kind: what it ought to be, such as "a CLIP ResNet".
    """

    shapes: Mapping[str, Shape]
    path: Path
    kind: str

    def of(self, name: str, dimensions: int) -> Shape:
        """Return a tensor's shape; raises SourceError when it is absent, empty or has other dimensions."""
        shape = self.shapes.get(name)
        if shape is None:
            raise SourceError(f"{self.path} lacks {name!r}", remedy=f"give {self.kind}")
        if len(shape) != dimensions or 0 in shape:
            plural = "" if dimensions == 1 else "s"
            raise self.wrong(name, f"{dimensions} dimension{plural} without a zero are needed")
        return shape

    def wrong(self, name: str, needed: str) -> SourceError:
        """Return the error for a shape that cannot be; ``needed`` completes "has shape [...] where"."""
        shape = list(self.shapes[name])
        return SourceError(f"{self.path}: {name} has shape {shape} where {needed}", remedy=f"give {self.kind}")


def folder_sha256(folder: Path, cache: HashCache) -> str:
    """Return sha256 over the names and hashes of the weight and configuration files directly in a folder.

    Pickles (``.bin``) count only where there is no safetensors file, as only then they are read.
    """
    files = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".json", ".txt")]
    safe = any(path.suffix == ".safetensors" for path in files)
    names = sorted(path.name for path in files if not (safe and path.suffix == ".bin"))
    return hashlib.sha256("".join(f"{name} {cache.sha256(folder / name)}\n" for name in names).encode()).hexdigest()


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a whole safetensors file and cast it to float32; raises SourceError."""
    try:
        return {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise broken(f"{path} cannot be read ({error})") from error


def build_strictly(
    make: Callable[[], Module],
    state: Mapping[str, Tensor],
    path: Path,
    *,
    file_name: Callable[[str], str] = lambda key: key,
) -> Module:
    """Build a network and fill it; raises SourceError naming the first missing, unknown or misshapen key.

    Shapes are checked before memory is taken for them. ``state`` has the file's names, and ``file_name`` gives them for
    the network's.
    """
    with torch.device("meta"):
        expected = {key: tuple(value.shape) for key, value in make().state_dict().items()}
    names = {key: file_name(key) for key in expected}
    # BatchNorm counts its training steps; a checkpoint may leave the count out and evaluation never reads it.
    optional = {key for key in expected if key.endswith("num_batches_tracked")}
    for key, shape in expected.items():
        found = state.get(names[key])
        if found is None and key not in optional:
            raise SourceError(f"{path} lacks {names[key]} {list(shape)}", remedy=_OTHER_NETWORK)
        if found is not None and found.shape != shape:
            needed = f"has shape {list(found.shape)} where {list(shape)} is needed"
            raise SourceError(f"{path}: {names[key]} {needed}", remedy=_OTHER_NETWORK)
    unknown = sorted(set(state) - set(names.values()))
    if unknown:
        raise SourceError(f"{path} has unknown {', '.join(unknown[:3])}", remedy=_OTHER_NETWORK)
    network = make()
    given = {key: state[name] for key, name in names.items() if name in state}
    network.load_state_dict(given, strict=not optional)
    return network.eval()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises SourceError."""
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror})", remedy="check the folder given") from error
    except ValueError:
        raise broken(f"{path} is not valid JSON") from None
    if not isinstance(raw, dict):
        raise broken(f"{path} does not hold a JSON object")
    return raw


def read_config(kind: type[Config], path: Path) -> Config:
    """Read a configuration dataclass (lists become tuples); raises SourceError for unknown fields."""
    raw = {key: tuple(value) if isinstance(value, list) else value for key, value in read_json(path).items()}
    unknown = set(raw) - {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise SourceError(f"{path} has unknown fields {', '.join(sorted(unknown))}", remedy="remove them")
    return kind(**raw)
