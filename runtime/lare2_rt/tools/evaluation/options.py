"""Options of commands that evaluate, each declared once. Imports nothing heavy, as every ``--help`` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

Labelled = Annotated[
    str, typer.Argument(metavar="INDEX", help="Index from 'lare2-rt index', or a labelled folder or list.")
]
Split = Annotated[
    str | None, typer.Option(help="train, val, test or all. Default: test; all images where the set has no splits.")
]


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Where the report goes and what is in it; ``corrupt`` as ``corruptions.choose`` takes it, None for none."""

    out: Annotated[str, typer.Option(help="Folder of the report, the figures and the scores.")] = "evaluation"
    corrupt: Annotated[
        str | None, typer.Option(help="Score corrupted images as well: all, or a list such as jpeg,blur2,half,noise.")
    ] = None
    resamples: Annotated[
        int, typer.Option(min=0, max=100_000, help="Bootstrap resamples behind each interval; 0 for none.")
    ] = 1000
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0

    @property
    def scores(self) -> Path:
        """Folder of stored scores."""
        return Path(self.out, "scores")
