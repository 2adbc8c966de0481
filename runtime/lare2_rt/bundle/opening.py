"""Opening a bundle: a folder from anywhere, trusted only after every file in it has been accounted for."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ..errors import BundleError
from ..host.atomic import reason
from ..host.integrity import HashCache, Progress
from .manifest import (
    MANIFEST,
    MAX_BYTES,
    NOISE,
    SCHEMA_VERSION,
    SELFCHECK,
    ComponentName,
    Manifest,
    Precision,
    Profile,
    TensorSpec,
    Variant,
)
from .noise import Noise, read_array
from .onnx_audit import audit_onnx

Expected = tuple[str, tuple[int | None, ...]]  # element type and shape; None fits any size


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: the folder; manifest: its parsed manifest; noise: float32 draws of shape [1,C,h,w] and [E,C,h,w].
        selfcheck: float32 [n,2+C·h·w], the reference's logits and LaRE on the n procedural pictures; None in bundles
            without.
    """

    path: Path
    manifest: Manifest
    noise: Noise
    selfcheck: NDArray[np.float32] | None = None

    @property
    def label(self) -> str:
        """Name and first digits of the id, for messages."""
        return f"{self.manifest.model.name} ({self.manifest.id[:12]})"

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes that every component has, ascending."""
        sizes = [{variant.batch for variant in variants} for variants in self.manifest.components.values()]
        return tuple(sorted(set.intersection(*sizes)))

    def variant(self, component: ComponentName, *, batch: int, precision: Precision, profile: Profile) -> Variant:
        """Return one variant of a component; raises BundleError naming what the bundle offers instead."""
        found = self.manifest.variant(component, batch=batch, precision=precision, profile=profile)
        if found is None:
            offered = ", ".join(
                f"batch {v.batch} {v.precision} {v.profile}" for v in self.manifest.components[component]
            )
            raise BundleError(
                f"{self.path} has no {component} for batch {batch} {precision} {profile}, only {offered}",
                remedy=f"build one with 'python export/build_engines.py --batch {batch}'",
            )
        return found

    def graph_path(self, variant: Variant) -> Path:
        """Return the path of a variant's ONNX file."""
        return self.path / variant.graph


def open_bundle(path: str | os.PathLike[str], *, verify: bool = False, progress: Progress | None = None) -> Bundle:
    """Open and verify a bundle folder.

    Args:
        path: the folder.
        verify: hash every file, and audit every graph, even if the cache knows it.
        progress: called with numbers of bytes while files are hashed.

    Raises:
        BundleError: missing, damaged, unsafe, or of another schema version; the text names the file and the remedy.
    """
    folder = Path(path)
    manifest = parse(_read_manifest(folder), str(folder))
    _check_listing(folder, manifest)
    cache = HashCache()
    try:
        _check_contents(folder, manifest, cache, verify=verify, progress=progress)
        for graph, files in sorted({(v.graph, v.files) for variants in manifest.components.values() for v in variants}):
            audit_onnx(folder / graph, files=files, cache=cache, fresh=verify)
    finally:
        cache.save()
    _check_chain(folder, manifest)
    return Bundle(folder, manifest, _read_noise(folder, manifest), _read_selfcheck(folder, manifest))


def parse(content: bytes, where: str) -> Manifest:
    """Parse and check ``manifest.json``; ``where`` names the bundle in errors.

    Raises:
        BundleError: too large, not JSON, another schema version, a wrong or unknown field, or an id that does not fit.
    """
    if len(content) > MAX_BYTES:
        raise BundleError(
            f"{where}: {MANIFEST} is larger than 1 MB, which no bundle needs", remedy="get the bundle again"
        )
    again = "get or build the bundle again"
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError):
        raise BundleError(f"{where}: {MANIFEST} is not valid JSON", remedy=again) from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        raise BundleError(
            f"{where}: manifest schema version {_show(version)} is not {SCHEMA_VERSION}, the one this lare2-rt reads",
            remedy="install the lare2-rt that built the bundle or build it again",
        )
    try:
        # JSON mode: strict about types, yet lists are accepted for tuples.
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise BundleError(
            f"{where}: {MANIFEST} is wrong at {_show(place)}: {_show(first['msg'])}", remedy=again
        ) from None
    if manifest.compute_id() != manifest.id or manifest.compute_lare_id() != manifest.lare_id:
        raise BundleError(f"{where}: {MANIFEST} was changed after the build (its id does not match)", remedy=again)
    return manifest


def _show(value: object) -> str:
    """A short printable form of untrusted text."""
    return re.sub(r"[^\x20-\x7e]", "?", str(value))[:120]


def _read_manifest(folder: Path) -> bytes:
    path = folder / MANIFEST
    try:
        if not folder.is_dir():
            raise BundleError(
                f"{folder} is not a bundle folder", remedy="build one with 'python export/build_engines.py'"
            )
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BundleError(f"{path} is not a regular file; bundles hold no links", remedy="get or build it again")
        with path.open("rb") as handle:
            return handle.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise BundleError(
            f"{folder} has no {MANIFEST}, so it is not a bundle",
            remedy="build one with 'python export/build_engines.py'",
        ) from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {reason(error)}", remedy="check its access rights") from error


def _check_listing(folder: Path, manifest: Manifest) -> None:
    """Every entry of the folder is a listed regular file without links, of the listed size."""
    again = "get or build the bundle again"
    found = {}
    try:
        with os.scandir(folder) as entries:
            for item in entries:
                if item.name != MANIFEST:
                    found[item.name] = item.stat(follow_symlinks=False)
    except OSError as error:
        raise BundleError(f"{folder} cannot be read: {reason(error)}", remedy="check its access rights") from error
    for name in sorted(found):
        shown = name.encode("utf-8", "backslashreplace").decode().encode("unicode_escape").decode()
        if name not in manifest.files:
            raise BundleError(f"{folder}: {shown} is not listed in the manifest", remedy=f"remove it or {again}")
        if not stat.S_ISREG(found[name].st_mode):
            raise BundleError(
                f"{folder}: {shown} is not a regular file; bundles hold no links or folders", remedy=again
            )
    for name, entry in manifest.files.items():
        if name not in found:
            raise BundleError(f"{folder}: {name} is missing", remedy=again)
        if found[name].st_size != entry.size:
            raise BundleError(f"{folder}: {name} has {found[name].st_size} bytes instead of {entry.size}", remedy=again)


def _check_contents(
    folder: Path, manifest: Manifest, cache: HashCache, *, verify: bool, progress: Progress | None
) -> None:
    for name, entry in manifest.files.items():
        try:
            actual = cache.sha256(folder / name, fresh=verify, progress=progress)
        except OSError as error:
            raise BundleError(
                f"{folder / name} cannot be read: {reason(error)}", remedy="check its access rights"
            ) from error
        if actual != entry.sha256:
            raise BundleError(
                f"{folder}: {name} is damaged (its sha256 does not match)", remedy="get or build it again"
            )


def _check_chain(folder: Path, manifest: Manifest) -> None:
    """The shapes of neighbouring components fit each other and the method, in every variant."""
    for component, variants in manifest.components.items():
        for variant in variants:
            inputs, outputs = _interface(component, variant.batch, manifest)
            where = f"{folder}: {component} (batch {variant.batch})"
            if {t.name for t in variant.inputs} != set(inputs):
                raise BundleError(f"{where} does not take exactly {', '.join(inputs)}", remedy="build the bundle again")
            for specs, expected in ((variant.inputs, inputs), (variant.outputs, outputs)):
                _check_tensors(where, specs, expected)
    for head in manifest.components["egre"]:
        clip = manifest.variant("clip_backbone", batch=head.batch, precision=head.precision, profile=head.profile)
        if clip is not None:
            features = {t.name: t.shape for t in clip.outputs}
            taken = {t.name: t.shape for t in head.inputs if t.name in features}
            _same_features(folder, head.batch, features, taken)


def _same_features(
    folder: Path, batch: int, features: dict[str, tuple[int, ...]], taken: dict[str, tuple[int, ...]]
) -> None:
    """What CLIP gives is what the head takes; their widths are in no other part of the manifest."""
    for name, shape in taken.items():
        if features[name] != shape:
            raise BundleError(
                f"{folder}: clip_backbone (batch {batch}) gives {name} as {list(features[name])} and egre "
                f"takes {list(shape)}",
                remedy="build the bundle again",
            )


def _check_tensors(where: str, specs: Sequence[TensorSpec], expected: dict[str, Expected]) -> None:
    actual = {t.name: (t.dtype, t.shape) for t in specs}
    for name, (dtype, shape) in expected.items():
        got_dtype, got_shape = actual.get(name, (None, ()))
        fits = len(got_shape) == len(shape) and all(w in (None, g) for w, g in zip(shape, got_shape, strict=True))
        if got_dtype != dtype or not fits:
            wanted = "×".join("?" if n is None else str(n) for n in shape)
            raise BundleError(
                f"{where} has {name} as {got_dtype} {list(got_shape)} where {dtype} {wanted} is needed",
                remedy="build the bundle again",
            )


def _interface(component: ComponentName, batch: int, manifest: Manifest) -> tuple[dict[str, Expected], ...]:
    """Inputs and outputs of a component; None where only the weights decide (feature widths, heads)."""
    method = manifest.method
    latent, image, crop = method.latent_shape, method.image_size, method.crop_size
    lare: dict[str, Expected] = {"lare": ("float32", (batch, *latent))}
    features: dict[str, Expected] = {
        "embedding": ("float32", (batch, None)),
        "layer3": ("float32", (batch, None, None, None)),
    }
    table: dict[ComponentName, tuple[dict[str, Expected], ...]] = {
        "vae_encoder": (
            {"image": ("uint8", (batch, image, image, 3)), "posterior_noise": ("float32", (1, *latent))},
            {"latent": ("float32", (batch, *latent))},
        ),
        "unet_step": (
            {"latent": ("float32", (batch, *latent)), "noise": ("float32", (method.ensemble, *latent))},
            lare,
        ),
        "clip_backbone": ({"crop": ("uint8", (batch, crop, crop, 3))}, features),
        "egre": (
            {**lare, **features},
            {"logits": ("float32", (batch, 2)), "attention": ("float32", (batch, None, None))},
        ),
    }
    return table[component]


def _read_noise(folder: Path, manifest: Manifest) -> Noise:
    method = manifest.method
    return Noise.unpack(read_array(folder, NOISE, (1 + method.ensemble, *method.latent_shape)))


def _read_selfcheck(folder: Path, manifest: Manifest) -> NDArray[np.float32] | None:
    if SELFCHECK not in manifest.files:
        return None
    return read_array(folder, SELFCHECK, (None, 2 + math.prod(manifest.method.latent_shape)))
