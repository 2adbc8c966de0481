"""Evaluate the PyTorch reference with the runtime's own metrics and reports: one more scorer beside the bundles.

``python -m lare2_ref.evaluate INDEX --bundle B --head head.safetensors`` takes method, noise and preprocessing from a
bundle and the weights from where ``build_engines.py`` takes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from lare2_rt.bundle.locate import locate_bundle
from lare2_rt.bundle.opening import Bundle, open_bundle
from lare2_rt.detection import DecisionRule, Detection, failed
from lare2_rt.errors import ImageError
from lare2_rt.host.command_line import entry_point, one_command
from lare2_rt.pixels.decode import ImageSource, source_name
from lare2_rt.tools.evaluation.options import Labelled, ReportOptions, Split
from lare2_rt.tools.evaluation.store import Scorer

from . import quieten_libraries
from .reference import Identity, Lare2Reference
from .sources import ModelSources, load_reference
from .weight_choice import DetectorChoice


def scorer_of(reference: Lare2Reference) -> Scorer:
    """Return the reference as a scorer; one image at a time."""
    provenance, rule = reference.provenance, reference.identity.rule

    def detect_many(sources: Iterable[ImageSource]) -> Iterator[Detection]:
        for source in sources:
            try:
                yield reference.predict(source)
            except ImageError as error:
                yield failed(source_name(source), str(error), provenance=provenance, rule=rule)

    return Scorer(provenance, rule, reference.policy, detect_many)


def open_reference(bundle: Bundle, sources: ModelSources, *, device: str = "cpu") -> Scorer:
    """Return the reference with a bundle's method and the weights of ``sources``.

    With the bundle's very weights it has the bundle's decision rule, with others (a new head) none.
    """
    method = bundle.manifest.method
    reference = load_reference(
        sources,
        noise=bundle.noise,
        prompt=method.prompt,
        timestep=method.timestep,
        policy=bundle.manifest.policy,
        image_size=method.image_size,
    ).to(device)
    same = {(r.role, r.sha256) for r in sources.records()} == {(s.role, s.sha256) for s in bundle.manifest.sources}
    rule = bundle.manifest.rule if same else DecisionRule(sources.calibration, demonstration=sources.demonstration)
    # Other noise or another prompt over the same weights is another model.
    weights = f"{reference.identity.sha256}{bundle.manifest.lare_id}"
    reference.identity = Identity(sources.name, rule, hashlib.sha256(weights.encode()).hexdigest())
    return scorer_of(reference)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command; None means default."""

    data: Labelled
    bundle: Annotated[
        str | None,
        typer.Option(help="Bundle whose method and noise to use. Default: the one 'lare2-rt infer' would use."),
    ] = None
    weights: DetectorChoice
    split: Split = None
    report: ReportOptions
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to compute.")] = "cpu"


def run(options: Options) -> int:
    """Measure the PyTorch reference on labelled images, with the metrics and reports of 'lare2-rt evaluate'."""
    from lare2_rt.tools.datasets.build import open_data
    from lare2_rt.tools.evaluation.command import evaluate_and_report
    from lare2_rt.tools.evaluation.items import select

    quieten_libraries()
    opened = open_bundle(locate_bundle(options.bundle).path)
    sources = options.weights.sources(options.weights.head)
    selection = select(open_data(options.data), options.split)
    scorers = [lambda: open_reference(opened, sources, device=options.device)]
    return evaluate_and_report(scorers, selection, options.report)


app = one_command("evaluate", Options, run)
main = entry_point(app, "evaluate")

if __name__ == "__main__":
    main()
