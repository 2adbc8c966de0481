"""``lare2-rt inspect``: what a bundle is, after checking that it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .options import Verify, located

if TYPE_CHECKING:
    from ..bundle.manifest import Manifest
    from ..bundle.opening import Bundle


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command."""

    bundle: Annotated[
        str | None, typer.Argument(metavar="BUNDLE", help="Bundle folder. Default: the one that 'infer' would use.")
    ] = None
    format: Annotated[Literal["table", "json"], typer.Option(help="Output format.")] = "table"
    verify: Verify = False


def run(options: Options) -> None:
    """Check a bundle and show what it is made of: method, components, weights, decision rule, parity."""
    from ..bundle.opening import open_bundle
    from .tables import facts, listing, show, show_json

    found = located(options.bundle)
    bundle = open_bundle(found.path, verify=options.verify)
    manifest = bundle.manifest
    if options.format == "json":
        show_json(manifest.model_dump(mode="json"), sort_keys=True)
        return
    sources = [
        (
            source.role,
            source.name if source.revision is None else f"{source.name}@{source.revision}",
            source.licence,
            source.sha256[:16],
        )
        for source in manifest.sources
    ]
    show(
        facts(_facts(bundle, found.origin)),
        listing(("component", "batch", "precision", "profile", "opset", "inputs → outputs"), _components(manifest)),
        listing(("weights", "from", "licence", "sha256"), sources),
    )


def _facts(bundle: Bundle, origin: str) -> dict[str, str]:
    manifest = bundle.manifest
    method, policy, decision, parity = manifest.method, manifest.preprocessing, manifest.decision, manifest.parity
    scaling = decision.scaling
    thresholds = "no thresholds"
    if decision.calibration == "calibrated":
        thresholds = f"real below {decision.real_below}, generated from {decision.generated_from}"
    probability = "softmax of the logits"
    if scaling is not None:
        scaled = f"difference of the logits / {scaling.temperature:g} {scaling.bias:+g}"
        probability = f"scaled: {scaled}, through the sigmoid"
    measured = "not measured"
    if parity is not None:
        measured = (
            f"{'passed' if parity.passed else 'FAILED'} on {parity.engine}: worst component "
            f"{parity.worst_component} {parity.worst_relative_l2:.1e} relative L2, probability difference "
            f"{parity.probability_difference:.1e}"
        )
    return {
        "bundle": f"{bundle.path} ({origin})",
        "name": f"{manifest.model.name}: {manifest.model.description}",
        "id": manifest.id,
        "LaRE id": manifest.lare_id,
        "method": (
            f"timestep {method.timestep}, ensemble {method.ensemble}, prompt {method.prompt!r}, "
            f"{method.prediction_type}, head {method.head}, noise seed {method.noise_seed}"
        ),
        "sizes": f"LaRE {method.image_size} px, CLIP crop {method.crop_size} px, latent {list(method.latent_shape)}",
        "preprocessing": (
            f"exif {policy.exif}, alpha {policy.alpha}, icc {policy.icc}, padding {policy.padding}, {policy.resample}"
        ),
        "decision": ("a demonstration: " if decision.demonstration else "")
        + f"{decision.calibration}, {thresholds}"
        + (f", on {decision.data}" if decision.data else ""),
        "probability": probability + (f"; averaged over {decision.crops} windows" if decision.crops else ""),
        "parity": measured,
        "built with": ", ".join(f"{name} {value}" for name, value in sorted(manifest.build.items())),
        "size": f"{sum(entry.size for entry in manifest.files.values()) / 1e6:.1f} MB in {len(manifest.files)} files",
        **({"notes": "; ".join(manifest.notes)} if manifest.notes else {}),
    }


def _components(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    from ..bundle.manifest import COMPONENTS

    for component in COMPONENTS:
        for v in manifest.components[component]:
            inputs = ", ".join(f"{t.name} {list(t.shape)}" for t in v.inputs)
            outputs = ", ".join(f"{t.name} {list(t.shape)}" for t in v.outputs)
            yield component, str(v.batch), v.precision, v.profile, str(v.opset), f"{inputs} → {outputs}"
