"""What one run of the throughput benchmark measures, in a form that travels to its worker processes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # imported where they are needed: the parent has no torch, and its workers start quickly
    from lare2_export.build.options import BuildOptions
    from lare2_ref.sources import ModelSources
    from lare2_rt.bundle.opening import Bundle
    from lare2_rt.pixels.preprocess import Pixels

Arrays = Mapping[str, NDArray[Any]]

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parents[1]
# The reference's arrays, below the folder of the build ``reference``.
TRUTH = "truth.npz"
# What an engine predicts, below the folder of its build of predictions.
PREDICTIONS = "predictions.npz"
# Everything whose version can move a figure; what is not installed is left out.
PACKAGES = (
    "numpy",
    "torch",
    "diffusers",
    "transformers",
    "open_clip_torch",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "openvino",
)


@dataclass(frozen=True, slots=True)
class Setup:
    """One model on one machine.

    Attributes:
        model: a model folder, or a kind of synthetic weights when ``synthetic``.
        bundle: folder of the bundle, which decides noise, prompt, timestep, ensemble and preprocessing of every row.
        work: folder of everything that is built for this model.
        threads: CPU threads of every process.
        images: image files, measured in turn.
    """

    model: str
    synthetic: bool
    bundle: str
    work: str
    threads: int
    images: tuple[str, ...]

    def sources(self) -> ModelSources:
        """Return the weights; imports torch. Raises SourceError."""
        from lare2_ref.quiet import quieten_libraries
        from lare2_ref.sources import open_model_folder
        from lare2_ref.synthetic import synthetic

        quieten_libraries()
        return synthetic(self.model) if self.synthetic else open_model_folder(Path(self.model))

    def opened(self) -> Bundle:
        """Return the verified bundle; raises BundleError."""
        from lare2_rt.bundle.opening import open_bundle

        return open_bundle(self.bundle)

    def pictures(self) -> list[Pixels]:
        """Return the images as both branches see them: every row gets these arrays. Raises ImageError."""
        from lare2_rt.pixels.preprocess import preprocess

        manifest = self.opened().manifest
        image_size, crop_size = manifest.method.image_size, manifest.method.crop_size
        return [preprocess(path, manifest.policy, image_size=image_size, crop_size=crop_size) for path in self.images]

    def folder(self, name: str) -> Path:
        """Return the folder of one thing that is built."""
        return Path(self.work) / name

    def logs(self) -> Path:
        """Return the folder of what the workers' libraries write; it exists."""
        folder = self.folder("logs")
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def build_options(bundle: Bundle, threads: int) -> BuildOptions:
    """Return the options that a bundle was built with, at batch 1 and in float32."""
    from lare2_export.build.options import BuildOptions

    method = bundle.manifest.method
    return BuildOptions(
        prompt=method.prompt,
        timestep=method.timestep,
        ensemble=method.ensemble,
        image_size=method.image_size,
        batches=(1,),
        noise_seed=method.noise_seed,
        policy=bundle.manifest.policy,
        threads=threads,
        half=False,
    )


def graph_name(component: str, ensemble: int, batch: int) -> str:
    """Return the file name of an exported graph."""
    return f"{component}.e{ensemble}.b{batch}.onnx" if component == "unet_step" else f"{component}.b{batch}.onnx"


def packages() -> dict[str, str]:
    """Return the installed versions of everything that can move a figure."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def digest_of(content: object) -> str:
    """Return sha256 in hex over the canonical JSON of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def code_digest(*names: str) -> str:
    """Return sha256 over the Python code of packages and of modules of this folder.

    A figure belongs to the code that it was measured with: when that changes, its row is measured again.
    """
    digest = hashlib.sha256()
    for name in sorted(set(names)):
        spec = importlib.util.find_spec(name)  # of a package at top level, this imports nothing
        origin = Path(spec.origin) if spec is not None and spec.origin else None
        if origin is None:
            continue
        package = origin.name == "__init__.py"
        for path in sorted(origin.parent.rglob("*.py")) if package else [origin]:
            digest.update(str(path.relative_to(origin.parent)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def save_arrays(path: Path, arrays: list[dict[str, NDArray[Any]]]) -> None:
    """Write one mapping of arrays an image into one .npz."""
    named = {f"{index}.{name}": array for index, entry in enumerate(arrays) for name, array in entry.items()}
    np.savez(path, allow_pickle=False, **named)


def load_arrays(path: Path) -> list[dict[str, NDArray[Any]]]:
    """Read what ``save_arrays`` wrote, image by image."""
    images: dict[int, dict[str, NDArray[Any]]] = {}
    with np.load(path, allow_pickle=False) as stored:
        for key in stored.files:
            index, name = key.split(".", 1)
            images.setdefault(int(index), {})[name] = stored[key]
    return [images[index] for index in sorted(images)]
