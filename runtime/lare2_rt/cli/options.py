"""Options that several commands have, each declared once. Imports nothing heavy, as every ``--help`` reads it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..host.console import say
from ..host.progress import hashing_progress

if TYPE_CHECKING:
    from ..bundle.locate import Located
    from ..detector import Detector
    from ..pixels.limits import Limits

BundleFolder = Annotated[
    str | None, typer.Option(help="Bundle folder. Default: $LARE2_BUNDLE, ./engines, else the embedded model.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: what affinity and quota allow.")]
Verify = Annotated[bool, typer.Option("--verify", help="Hash every file of the bundle again.")]
Threshold = Annotated[
    float | None,
    typer.Option(help="Probability (0..1) from which the verdict is 'generated'. Default: the bundle's own."),
]
Root = Annotated[
    str | None,
    typer.Option(
        help="Folder of the images that a list names, or of an index whose images were moved. Default: its own."
    ),
]


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """What computes the scores."""

    engine: Annotated[str, typer.Option(help="Engine name, or 'auto' for the fastest usable one.")] = "auto"
    precision: Annotated[
        Literal["fp32", "fp16"] | None, typer.Option(help="Arithmetic precision. Default: the engine's.")
    ] = None
    batch: Annotated[int | None, typer.Option(min=1, help="Images per engine call, one of the bundle's sizes.")] = None
    threads: Threads = None

    def detector(self, bundle: Located, **more: Any) -> Detector:  # noqa: ANN401 - as Detector.load takes them
        """Load a bundle and say on standard error what will score; ``more`` is for ``Detector.load``."""
        from ..detector import Detector

        with hashing_progress() as hashed:
            detector = Detector.load(bundle, **asdict(self), progress=hashed, notify=say, **more)
        facts = detector.info.provenance
        say(
            f"bundle {facts.bundle_name} ({facts.bundle_id[:12]}, {facts.bundle_path}) on {facts.engine} "
            f"{facts.engine_version} {facts.device} {facts.precision}, {facts.threads} threads"
        )
        return detector


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """What one file may ask for, and where it is decoded."""

    max_pixels: Annotated[
        str | None, typer.Option(metavar="N", help="Refuse larger images, such as 200M. Default: 89.5M.")
    ] = None
    max_bytes: Annotated[
        str | None, typer.Option(metavar="N", help="Refuse larger files, such as 20M. Default: 1 GiB.")
    ] = None
    max_seconds: Annotated[
        float | None, typer.Option(metavar="S", help="Give up on a file that takes longer to decode. Default: 60.")
    ] = None
    isolate: Annotated[
        bool,
        typer.Option(
            "--isolate/--no-isolate", help="Decode in processes of their own, which a bad file can crash but not stop."
        ),
    ] = True

    def limits(self) -> Limits:
        """Return the limits; raises UsageError for one that cannot be kept."""
        from ..pixels.limits import limits_of

        return limits_of(self.max_pixels, self.max_bytes, self.max_seconds, isolate=self.isolate)


def located(named: str | None) -> Located:
    """Find the bundle, and say where it was missing and has been put back. Raises BundleError."""
    from ..bundle.locate import locate_bundle

    found = locate_bundle(named)
    if found.restored is not None:
        say(f"{found.path} was missing after a killed build: put back from {found.restored.name}")
    return found


def say_notes(detector: Detector) -> None:
    """Say why the detector gives no verdicts, or which ones to distrust."""
    for note in (detector.info.rule.note, detector.info.misfit):
        if note is not None:
            say(f"note: {note}")
