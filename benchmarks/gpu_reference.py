"""Record what the PyTorch reference gives on seeded weights, for comparison on machines with a GPU.

    python -m benchmarks.gpu_reference [--model seeded-mini | --model synthetic-sd15] [--out FILE]

The weights can be made again anywhere from their seed, so the answers alone are kept: a few hundred kilobytes in
``benchmarks/reference``. They are of the procedural pictures (``lare2_rt/pixels/procedural.py``) with the build's
default options, in float32 with GroupNorm statistics in float64, as every build measures parity.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.command import run_command
from lare2_rt.bundle.opening import Bundle
from lare2_rt.engines.difference import difference
from lare2_rt.errors import BundleError
from lare2_rt.host.atomic import write_bytes
from lare2_rt.pixels.procedural import procedural_pictures

if TYPE_CHECKING:
    from lare2_ref.sources import ModelSources

FOLDER = Path(__file__).resolve().parent / "reference"
SCHEMA = "lare2-rt/gpu-reference/1"
OUTPUTS = ("latent", "lare", "embedding", "logits")
MODELS = ("seeded-mini", "synthetic-sd15")
# Relative L2 of LaRE below which two machines have the same weights: float32 kernels differ by 1e-6, weights by 1.
SAME = 1e-3
_PACKAGES = ("numpy", "torch", "diffusers", "open_clip_torch")
# What of a method decides the answers; a bundle must have been built with the same.
METHOD = ("timestep", "ensemble", "prompt", "noise_seed", "image_size", "crop_size", "prediction_type")


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Recorded answers.

    Attributes:
        facts: model, method, packages.
        arrays: float32 by name in ``OUTPUTS``, one row a procedural picture: latent and lare [n,4,h,w], embedding
            [n,D], not normalised, logits [n,2].
    """

    facts: Mapping[str, Any]
    arrays: Mapping[str, NDArray[np.float32]]

    def why_not(self, bundle: Bundle) -> str | None:
        """Return why the answers are not those of a bundle's model; None if they are.

        The bundle carries what the reference gave where it was built: that tells whether the weights are the same,
        which another version of NumPy would draw differently.
        """
        method = {name: getattr(bundle.manifest.method, name) for name in METHOD}
        if method != self.facts["method"]:
            return "the recorded answers are of another method (timestep, prompt, noise or sizes) than this bundle"
        shape = self.arrays["lare"].shape
        if bundle.selfcheck is None or len(bundle.selfcheck) != shape[0]:
            return "the bundle has no answers of the reference, by which its weights would show to be the recorded ones"
        lare = bundle.selfcheck[:, 2:].reshape(shape)
        gap = max(difference(a, b).relative_l2 for a, b in zip(lare, self.arrays["lare"], strict=True))
        if gap > SAME:
            versions = ", ".join(f"{name} {version}" for name, version in self.facts["packages"].items())
            return (
                f"the reference gives something else here than what was recorded (LaRE {gap:.0e} relative L2): the "
                f"weights are not those that were drawn with {versions}"
            )
        return None


def load(path: Path) -> Reference:
    """Read recorded answers; raises BundleError."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            facts = json.loads(str(stored["facts"]))
            arrays = {name: stored[name] for name in OUTPUTS}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(
            f"{path} holds no recorded answers ({error})", remedy="record them with python -m benchmarks.gpu_reference"
        ) from error
    if facts.get("schema") != SCHEMA:
        raise BundleError(
            f"{path} is of another version", remedy="record it again with python -m benchmarks.gpu_reference"
        )
    return Reference(facts, arrays)


def model_sources(name: str, work: Path) -> ModelSources:
    """Return the sources of a model with seeded weights; ``work`` is where a model folder may be written."""
    from lare2_ref.mini import write_mini
    from lare2_ref.sources import open_model_folder
    from lare2_ref.synthetic import synthetic

    if name == "synthetic-sd15":
        return synthetic("sd15")
    folder = work / name
    if not folder.exists():
        write_mini(folder)
    return replace(open_model_folder(folder), name=name)


def record(sources: ModelSources) -> Reference:
    """Run the reference on the procedural pictures, one at a time. Raises SourceError, BuildError."""
    import torch

    from lare2_export.build.options import BuildOptions
    from lare2_export.build.plan import plan_geometry
    from lare2_ref.sources import load_reference
    from lare2_rt.bundle.noise import draw_noise

    options = BuildOptions()
    geometry = plan_geometry(sources, options)
    noise = draw_noise(options.noise_seed, options.ensemble, geometry.latent)
    reference = load_reference(
        sources,
        noise=noise,
        prompt=options.prompt,
        timestep=options.timestep,
        policy=options.policy,
        image_size=options.image_size,
    )
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in OUTPUTS}
    for number, picture in enumerate(procedural_pictures()):
        pixels = reference.pixels(picture)
        output = reference(*(torch.from_numpy(part.copy())[None] for part in (pixels.image, pixels.crop)))
        tensors = (output.lare.latent, output.lare.lare, output.clip.embedding, output.egre.logits)
        for name, tensor in zip(OUTPUTS, tensors, strict=True):
            found[name].append(tensor[0].numpy())
        print(f"picture {number + 1}: logits {output.egre.logits[0].tolist()}", file=sys.stderr, flush=True)
    method = {name: getattr(options, name) for name in METHOD if hasattr(options, name)}
    method |= {"crop_size": reference.crop_size, "prediction_type": geometry.prediction_type}
    facts = {
        "schema": SCHEMA,
        "model": sources.name,
        "method": method,
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    return Reference(facts, {name: np.stack(rows) for name, rows in found.items()})


def save(path: Path, reference: Reference) -> None:
    """Write recorded answers; raises OutputError."""
    buffer = io.BytesIO()
    facts = np.array(json.dumps(dict(reference.facts), sort_keys=True))
    np.savez_compressed(buffer, allow_pickle=False, facts=facts, **reference.arrays)
    write_bytes(path, buffer.getvalue())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; exit code 2 when nothing was recorded."""
    given = parser().parse_args(arguments)
    return run_command("gpu_reference", lambda: _record(given))


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.gpu_reference", description=__doc__.splitlines()[0])
    result.add_argument("--model", choices=MODELS, default=MODELS[0], help="seeded weights (default: %(default)s)")
    result.add_argument("--out", type=Path, help="default: benchmarks/reference/MODEL.npz")
    return result


def _record(given: argparse.Namespace) -> int:
    from lare2_ref import quieten_libraries

    quieten_libraries()
    target = given.out or FOLDER / f"{given.model}.npz"
    with tempfile.TemporaryDirectory() as work:
        target.parent.mkdir(parents=True, exist_ok=True)
        save(target, record(model_sources(given.model, Path(work))))
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
