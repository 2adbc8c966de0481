"""The model of a GPU report: seeded weights, the bundle that is built of them, and the answers to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.resident import RefusedError
from benchmarks.gpu_reference import FOLDER, load, model_sources
from benchmarks.gpu_report.cases import Case
from lare2_rt.bundle.manifest import MANIFEST
from lare2_rt.bundle.opening import Bundle, open_bundle
from lare2_rt.errors import BundleError

if TYPE_CHECKING:
    from lare2_ref.sources import ModelSources

Arrays = dict[str, NDArray[np.float32]]


def sources_of(case: Case) -> ModelSources:
    """Return the weights of a case; raises RefusedError for a bundle whose weights are not here."""
    if case.model is None:
        raise RefusedError("PyTorch rows need the weights", remedy="run with --model instead of --bundle")
    return model_sources(case.model, Path(case.work))


def prepare_bundle(
    model: str, work: Path, batches: Sequence[int], *, threads: int, report: Callable[[str], None]
) -> Bundle:
    """Return the bundle of a model below ``work`` with graphs for these batches, built unless it is there.

    Raises:
        Lare2Error: it cannot be built.
    """
    folder, wanted = work / "bundle" / model, {1, *batches}
    if (folder / MANIFEST).is_file():
        bundle = open_bundle(folder)
        if wanted <= set(bundle.batches):
            report(f"the bundle of {model} was built by an earlier run")
            return bundle
        wanted |= set(bundle.batches)
    from lare2_export.build.bundle import build_bundle
    from lare2_export.build.isolate import start_server
    from lare2_export.build.options import BuildOptions
    from lare2_ref import quieten_libraries

    start_server()
    quieten_libraries()
    folder.parent.mkdir(parents=True, exist_ok=True)
    options = BuildOptions(batches=tuple(sorted(wanted)), half=True, threads=threads)
    return build_bundle(model_sources(model, work), folder, options, report=report)


def recorded_for(model: str | None) -> Path | None:
    """Return the file of recorded answers for a model, if there is one."""
    path = FOLDER / f"{model}.npz"
    return path if model is not None and path.is_file() else None


def expected_answers(bundle: Bundle, reference: Path | None) -> tuple[Arrays, str]:
    """Return what the reference gives on the procedural pictures, and where that comes from.

    Recorded answers count where they are of this very model; else those that the bundle's build computed.

    Raises:
        BundleError: there are neither.
    """
    why = "none are recorded for this model"
    if reference is not None:
        found = load(reference)
        mismatch = found.why_not(bundle)
        if mismatch is None:
            return dict(found.arrays), f"recorded in {reference.name}"
        why = mismatch
    if bundle.selfcheck is None:
        raise BundleError(
            f"{bundle.path} has no answers of the reference to compare with", remedy="build the bundle again"
        )
    shape = (len(bundle.selfcheck), *bundle.manifest.method.latent_shape)
    answers = {"logits": bundle.selfcheck[:, :2], "lare": bundle.selfcheck[:, 2:].reshape(shape)}
    return answers, f"computed by PyTorch when the bundle was built here: {why}"
