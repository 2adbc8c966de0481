"""``lare2-rt inspect``: what a bundle is, after checking that it is whole."""

from __future__ import annotations

import json
import sys
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

from ..bundle.locate import locate_bundle
from ..bundle.manifest import COMPONENTS
from ..bundle.opening import Bundle, open_bundle
from ..host.console import say_if_restored
from ..host.text import printable
from ..results.writers import print_tables


def run(named: str | None, *, form: Literal["table", "json"], verify: bool) -> None:
    """Open the bundle and print it; raises BundleError when it is not whole."""
    located = locate_bundle(named)
    say_if_restored(located)
    bundle = open_bundle(located.path, verify=verify)
    if form == "json":
        json.dump(bundle.manifest.model_dump(mode="json"), sys.stdout, indent=2, sort_keys=True)
        sys.stdout.write("\n")
        return
    tables = (_facts(bundle, located.origin), _components(bundle), _sources(bundle))
    print_tables(tables, sys.stdout, colour=sys.stdout.isatty())


def _facts(bundle: Bundle, origin: str) -> Table:
    manifest = bundle.manifest
    method, policy, decision = manifest.method, manifest.preprocessing, manifest.decision
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    thresholds = (
        f"real below {decision.real_below}, generated from {decision.generated_from}"
        if decision.calibration == "calibrated"
        else "no thresholds"
    )
    scaling, crops = decision.scaling, decision.crops
    parity = manifest.parity
    rows = {
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
        "probability": (
            "softmax of the logits"
            if scaling is None
            else f"scaled: difference of the logits / {scaling.temperature:g} {scaling.bias:+g}, through the sigmoid"
        )
        + (f"; averaged over {crops} windows" if crops else ""),
        "parity": (
            "not measured"
            if parity is None
            else f"{'passed' if parity.passed else 'FAILED'} on {parity.engine}: worst component "
            f"{parity.worst_component} {parity.worst_relative_l2:.1e} relative L2, probability difference "
            f"{parity.probability_difference:.1e}"
        ),
        "built with": ", ".join(f"{name} {value}" for name, value in sorted(manifest.build.items())),
        "size": f"{sum(entry.size for entry in manifest.files.values()) / 1e6:.1f} MB in {len(manifest.files)} files",
    }
    if manifest.notes:
        rows["notes"] = "; ".join(manifest.notes)
    for name, value in rows.items():
        table.add_row(name, Text(printable(value)))
    return table


def _components(bundle: Bundle) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("component", "batch", "precision", "profile", "opset", "inputs → outputs"):
        table.add_column(heading, overflow="fold")
    for component in COMPONENTS:
        for v in bundle.manifest.components[component]:
            inputs = ", ".join(f"{t.name} {list(t.shape)}" for t in v.inputs)
            outputs = ", ".join(f"{t.name} {list(t.shape)}" for t in v.outputs)
            facts = [component, str(v.batch), v.precision, v.profile, str(v.opset), f"{inputs} → {outputs}"]
            table.add_row(*(Text(printable(fact)) for fact in facts))
    return table


def _sources(bundle: Bundle) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("weights", "from", "licence", "sha256"):
        table.add_column(heading, overflow="fold")
    for source in bundle.manifest.sources:
        name = source.name if source.revision is None else f"{source.name}@{source.revision}"
        facts = (source.role, name, source.licence, source.sha256[:16])
        table.add_row(*(Text(printable(fact)) for fact in facts))
    return table
