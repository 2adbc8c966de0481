"""One file of named tensors: its shapes are read once, its tensors only when asked for, and its code never runs."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lare2_rt.errors import first_line
from lare2_rt.host.integrity import sha256_of

from .checkpoints import Shape, SourceError, broken

# TorchScript archives hold code: never opened, opened when OpenAI published them, or on the user's word.
Archives = Literal["none", "published", "any"]
# The hash is part of the address under which OpenAI publishes the archive (CLIP's clip.py).
OPENAI_ARCHIVES = frozenset({"afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"})  # RN50.pt
_ZIP = b"PK\x03\x04"
_WRAPPER = "module."


@dataclass(frozen=True, slots=True)
class Index:
    """What a file holds, without the weights.

    Attributes:
        shapes: tensor name -> shape, in the file's order; without the ``module.`` that data-parallel training puts
            in front of every name.
        wrapper: what stands in front of every name in the file.
        global_step: training step that a Lightning checkpoint was written at.
        metadata: what stands beside the tensors of a safetensors file; empty for other files.
    """

    shapes: Mapping[str, Shape]
    wrapper: str
    global_step: int | None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A safetensors file, a pickle of plain tensors (``weights_only=True``, never otherwise) or a TorchScript archive.

    The index of a file is remembered for this process as long as the file does not change; tensors never are.
    Safetensors and pickles are mapped into memory, so that only the pages of the tensors asked for are read.
    """

    path: Path
    archives: Archives = "none"

    def index(self) -> Index:
        """Return names and shapes; raises SourceError for an unreadable file, code, or an archive without voucher."""
        try:
            status = self.path.stat()
        except OSError as error:
            raise SourceError(f"{self.path} cannot be read ({error.strerror})", remedy="check the path") from error
        identity = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        return _index(self.path, self.archives, identity)

    def shapes(self) -> Mapping[str, Shape]:
        """Return the shape of every tensor by name; raises SourceError."""
        return self.index().shapes

    def read(self, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
        """Return copies of the wanted tensors, floating-point ones in float32; raises SourceError."""
        index = self.index()
        names = [name for name in index.shapes if wanted(name)]
        with _opened(self.path, self.archives, device="cpu") as content:
            return {name: _owned(content.get_tensor(index.wrapper + name)) for name in names}


class _Content(Protocol):
    """An open file."""

    @property
    def global_step(self) -> int | None: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    def shapes(self) -> dict[str, Shape]: ...

    def get_tensor(self, name: str) -> Tensor: ...


class _Safetensors:
    global_step = None

    def __init__(self, handle: Any) -> None:  # noqa: ANN401 - safetensors' class is not typed
        self._handle = handle

    @property
    def metadata(self) -> Mapping[str, str]:
        return dict(self._handle.metadata() or {})

    def shapes(self) -> dict[str, Shape]:
        return {name: tuple(self._handle.get_slice(name).get_shape()) for name in self._handle.keys()}  # noqa: SIM118

    def get_tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._handle.get_tensor(name)
        return tensor


class _StateDict:
    def __init__(self, state: Mapping[str, Tensor], global_step: int | None = None) -> None:
        self._state, self.global_step = state, global_step
        self.metadata: Mapping[str, str] = {}

    def shapes(self) -> dict[str, Shape]:
        return {name: tuple(tensor.shape) for name, tensor in self._state.items()}

    def get_tensor(self, name: str) -> Tensor:
        return self._state[name]


@lru_cache(maxsize=16)
def _index(path: Path, archives: Archives, identity: tuple[int, ...]) -> Index:
    """``identity`` changes when the file does."""
    del identity
    with _opened(path, archives, device="meta") as content:
        shapes, global_step, metadata = content.shapes(), content.global_step, content.metadata
    wrapper = _WRAPPER if shapes and all(name.startswith(_WRAPPER) for name in shapes) else ""
    return Index({name.removeprefix(wrapper): shape for name, shape in shapes.items()}, wrapper, global_step, metadata)


@contextmanager
def _opened(path: Path, archives: Archives, *, device: Literal["cpu", "meta"]) -> Iterator[_Content]:
    """Open a file; on the meta device a TorchScript archive gives shapes only."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as handle:
                yield _Safetensors(handle)
        except (OSError, SafetensorError) as error:
            raise broken(f"{path} cannot be read ({error})") from error
    elif _is_torchscript(path):
        yield _StateDict(_read_torchscript(path, archives, device))
    else:
        yield _read_pickle(path)


def _read_pickle(path: Path) -> _StateDict:
    try:
        with path.open("rb") as handle:
            mapped = handle.read(len(_ZIP)) == _ZIP  # the format before torch 1.6 cannot be mapped
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch, pickle and zip each raise their own
        raise SourceError(
            f"{path} cannot be read as plain tensors ({first_line(error)[:120]})",
            remedy="save the state dict as safetensors, since pickles with code are refused",
        ) from error
    step = content.get("global_step") if isinstance(content, dict) else None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise SourceError(f"{path} does not hold a state dict of tensors", remedy="save model.state_dict() alone")
    return _StateDict({str(name): value for name, value in content.items()}, step if isinstance(step, int) else None)


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _read_torchscript(path: Path, archives: Archives, device: str) -> dict[str, Tensor]:
    if archives == "none":
        raise SourceError(
            f"{path} is a TorchScript archive, which holds code", remedy="save its state dict as safetensors"
        )
    if archives == "published" and sha256_of(path) not in OPENAI_ARCHIVES:
        raise SourceError(
            f"{path} is a TorchScript archive, which holds code, and not one that OpenAI published",
            remedy="pass --allow-unverified-torchscript if you trust it",
        )
    try:
        state: dict[str, Tensor] = torch.jit.load(path, map_location=device).state_dict()
    except RuntimeError as error:
        raise broken(f"{path} cannot be read ({first_line(error)})") from error
    return state


def _owned(tensor: Tensor) -> Tensor:
    """A copy that no longer depends on the file."""
    return tensor.to(torch.float32, copy=True) if tensor.is_floating_point() else tensor.clone()
