"""Evaluate the PyTorch reference with the runtime's own metrics and reports: one more scorer beside the bundles.

``python -m lare2_ref.evaluate INDEX --bundle B --head head.safetensors`` takes method, noise and preprocessing from a
bundle and the weights from where ``build_engines.py`` takes them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, Optional

import torch
import typer

from lare2_rt.bundle.locate import locate_bundle
from lare2_rt.bundle.opening import Bundle, open_bundle
from lare2_rt.detection import DecisionRule, Detection, Provenance, failed
from lare2_rt.errors import ImageError, Lare2Error
from lare2_rt.host.console import EXIT_USAGE, Interrupted, answering_sigterm, interruptible
from lare2_rt.host.text import printable
from lare2_rt.pixels.decode import ImageSource, source_name
from lare2_rt.pixels.policy import Preprocessing

from .chosen import Chosen
from .reference import Identity, Lare2Reference
from .sources import ModelSources, load_reference


class ReferenceScorer:
    """The reference as a ``lare2_rt.tools.evaluation.scorer.Scorer``; one image at a time."""

    def __init__(self, reference: Lare2Reference, provenance: Provenance) -> None:
        self._reference, self._provenance = reference, provenance

    @property
    def provenance(self) -> Provenance:
        """Who gives the scores; ``bundle_id`` is the identity of weights and method."""
        return self._provenance

    @property
    def rule(self) -> DecisionRule:
        """How a score becomes a verdict."""
        return self._reference.identity.rule

    @property
    def policy(self) -> Preprocessing:
        """How a file becomes pixels."""
        return self._reference.policy

    def detect_many(self, sources: Iterable[ImageSource]) -> Iterator[Detection]:
        """Score images in order; one that fails has ``error`` set."""
        for source in sources:
            try:
                yield self._reference.predict(source)
            except ImageError as error:
                yield failed(source_name(source), str(error), provenance=self._provenance, rule=self.rule)

    def close(self) -> None:
        """Nothing is held open."""


def open_reference(bundle: Bundle, sources: ModelSources, *, device: str = "cpu") -> ReferenceScorer:
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
    identity = hashlib.sha256(weights.encode()).hexdigest()
    reference.identity = Identity(sources.name, rule, identity)
    provenance = Provenance(
        bundle_name=sources.name,
        bundle_id=identity,
        bundle_path="",
        engine="reference",
        engine_version=f"torch {importlib.metadata.version('torch')}",
        device=device,
        precision="fp32",
        batch=1,
        threads=torch.get_num_threads(),
        build_key="",
    )
    return ReferenceScorer(reference, provenance)


app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.command()
@interruptible
def evaluate(
    data: Annotated[
        str, typer.Argument(metavar="INDEX", help="Index from 'lare2-rt index', or a labelled folder or list.")
    ],
    bundle: Annotated[
        Optional[str],
        typer.Option(help="Bundle whose method and noise to use. Default: the one 'lare2-rt infer' would use."),
    ] = None,
    model: Annotated[
        Optional[str], typer.Option(help="Model folder with all weights. Default: the small 'mini'.")
    ] = None,
    sd: Annotated[
        Optional[str], typer.Option(help="Stable Diffusion instead of the model's own: hub id or folder.")
    ] = None,
    revision: Annotated[Optional[str], typer.Option(help="Revision of the hub id. Default: its main branch.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what the hub cache has.")] = False,
    clip: Annotated[
        Optional[str],
        typer.Option(help="CLIP ResNet instead of the model's own: file, folder or open_clip:RN50/openai."),
    ] = None,
    allow_unverified_torchscript: Annotated[
        bool,
        typer.Option("--allow-unverified-torchscript", help="Open a TorchScript --clip that OpenAI did not publish."),
    ] = False,
    head: Annotated[
        Optional[str], typer.Option(help="EGRE head instead of the model's own: .pth, safetensors or folder.")
    ] = None,
    split: Annotated[
        Optional[str],
        typer.Option(help="train, val, test or all. Default: test; all images where the set has no splits."),
    ] = None,
    out: Annotated[str, typer.Option(help="Folder of the report, the figures and the scores.")] = "evaluation",
    corrupt: Annotated[
        Optional[str],
        typer.Option(help="Score corrupted images as well: all, or a list such as jpeg,blur2,half,noise."),
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to compute.")] = "cpu",
    resamples: Annotated[
        int, typer.Option(min=0, max=100_000, help="Bootstrap resamples behind each interval; 0 for none.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
) -> None:
    """Measure the PyTorch reference on labelled images, with the metrics and reports of 'lare2-rt evaluate'."""
    from lare2_rt.tools.datasets.opening import open_data
    from lare2_rt.tools.evaluation.command import ReportOptions, evaluate_and_report
    from lare2_rt.tools.evaluation.items import select

    from .quiet import quieten_libraries

    quieten_libraries()
    opened = open_bundle(locate_bundle(bundle).path)
    sources = Chosen(model, sd, revision, offline, clip, allow_unverified_torchscript, head).sources()
    selection = select(open_data(data), split)
    options = ReportOptions(out, corrupt, resamples, seed)
    raise typer.Exit(evaluate_and_report([lambda: open_reference(opened, sources, device=device)], selection, options))


@answering_sigterm
def main() -> None:
    """Entry point: known errors become one sentence and exit code 2, Ctrl-C and SIGTERM one and 130 or 143."""
    try:
        app()
    except Lare2Error as error:
        sys.stderr.write(f"evaluate: {printable(str(error))}\n")
        sys.exit(EXIT_USAGE)
    except Interrupted as ending:
        sys.stderr.write(f"evaluate: {ending}\n")
        sys.exit(ending.code)


if __name__ == "__main__":
    main()
