"""From sources to a bundle: export each component, measure parity, write the manifest, swap the folder in."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lare2_ref.sources import ModelSources
from lare2_rt.bundle.manifest import MANIFEST, NOISE, NOTICE, PARITY, SELFCHECK
from lare2_rt.bundle.noise import draw_noise
from lare2_rt.bundle.opening import Bundle, open_bundle
from lare2_rt.host.atomic import write_bytes

from ..components import COMPONENTS
from ..parity.measure import has_half
from ..parity.parity_step import measure_half_parity, measure_parity
from ..parity.tolerances import MIN_LOGIT_SPREAD, what_failed
from .describe import describe, notice_text
from .export_step import export_component
from .isolate import Report, SharedLock, run_isolated
from .options import BuildOptions
from .plan import Plan, make_plan
from .staging import BuildError, Staging, check_target


def build_bundle(sources: ModelSources, out: Path, options: BuildOptions, *, report: Report) -> Bundle:
    """Build a bundle at ``out``; an existing bundle there is replaced only when the new one has passed parity.

    ``report`` receives one line per phase. Every component is exported in a process of its own.

    Raises:
        BuildError, SourceError, OutputError: with the remedy; ``out`` is untouched, finished components are kept
            beside it and reused by the next run.
    """
    check_target(out)
    plan = make_plan(sources, options)
    staging = Staging(out)
    with staging.locked() as descriptor:
        lock = SharedLock(descriptor)
        components = {component.name: _export(component.name, plan, staging, lock, report) for component in COMPONENTS}
        noise = draw_noise(options.noise_seed, options.ensemble, plan.geometry.latent)
        write_bytes(staging.folder / NOISE, _npy(noise.pack()))
        write_bytes(staging.folder / PARITY, b"{}\n")
        write_bytes(staging.folder / SELFCHECK, b"")
        write_bytes(staging.folder / NOTICE, notice_text(plan.records).encode())
        draft = describe(plan, components, staging=staging, parity=None)
        for note in draft.notes[len(sources.notes) :]:  # the caller knows those of the sources
            report(f"note: {note}")
        staging.prune(keep=set(draft.files))
        report("parity against the reference")
        given = (plan, draft, staging.folder, noise)
        measured = run_isolated("parity", measure_parity, *given, lock=lock, report=report)
        parity = measured.report
        if has_half(draft):
            report("half precision against the reference")
            parity = run_isolated("half precision", measure_half_parity, *given, measured, lock=lock, report=report)
        write_bytes(staging.folder / PARITY, (json.dumps(parity, indent=2, sort_keys=True) + "\n").encode())
        write_bytes(staging.folder / SELFCHECK, _npy(measured.selfcheck))
        _refuse_unfaithful(parity, plan, out, staging)
        final = describe(plan, components, staging=staging, parity=parity)
        write_bytes(staging.folder / MANIFEST, final.to_json())
        bundle = open_bundle(staging.folder)
        staging.publish()
    return replace(bundle, path=out)


def _export(name: str, plan: Plan, staging: Staging, lock: SharedLock, report: Report) -> list[dict[str, Any]]:
    """Export one component, or reuse what a killed build finished; returns manifest variants."""
    kept = staging.finished(name, plan.joint_key(name))
    if kept is not None:
        variants: list[dict[str, Any]] = kept["variants"]
        report(f"{name}: already exported by an earlier run, {_size(variants, staging)}")
        return variants
    staging.clear(name)
    variants = run_isolated(name, export_component, name, plan, staging.folder, lock=lock, report=report)
    staging.finish(name, plan.joint_key(name), {"variants": variants}, _files(variants))
    report(f"{name}: exported, {_size(variants, staging)}")
    return variants


def _files(variants: list[dict[str, Any]]) -> list[str]:
    return sorted({file for variant in variants for file in (variant["graph"], *variant["files"])})


def _size(variants: list[dict[str, Any]], staging: Staging) -> str:
    total = sum((staging.folder / name).stat().st_size for name in _files(variants))
    return f"{total / 1e9:.3f} GB in {len(_files(variants))} files"


def _refuse_unfaithful(parity: dict[str, Any], plan: Plan, out: Path, staging: Staging) -> None:
    """Raise BuildError for a bundle that differs from the reference, or whose weights cannot show whether it does."""
    kept = out.resolve().with_name(f"{out.name}.failed-parity.json")
    if not parity["passed"]:
        write_bytes(kept, (staging.folder / PARITY).read_bytes())
        problem, remedy = what_failed(parity)
        raise BuildError(f"the export is not faithful: {problem} (the report is in {kept})", remedy=remedy)
    spread = parity["logit_standard_deviation"]
    # Then every figure of the report would look good and mean nothing.
    if plan.sources.synthetic and len(parity["images"]) > 1 and spread < MIN_LOGIT_SPREAD:
        raise BuildError(
            f"the synthetic weights are degenerate: logits move by only {spread:.1e} over the images",
            remedy="give more varied --parity-images, or real weights",
        )
    kept.unlink(missing_ok=True)


def _npy(array: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
