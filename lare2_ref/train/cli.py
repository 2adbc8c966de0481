"""The command line of ``python -m lare2_ref.train``."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated

import typer

from lare2_rt.host.command_line import entry_point, one_command
from lare2_rt.host.console import clocked

from .options import TrainRequest


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command."""

    data: Annotated[
        str, typer.Argument(metavar="INDEX", help="Index from 'lare2-rt index', or a labelled folder or list.")
    ]
    request: TrainRequest
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: what affinity and quota allow.")] = (
        None
    )


def run(options: Options) -> None:
    """Train an EGRE head on labelled images; a run that was stopped goes on when the same command is run again."""
    report = clocked()
    import torch

    from lare2_rt.host.machine import available_threads
    from lare2_rt.host.progress import counting
    from lare2_rt.tools.datasets.build import open_data

    from .. import quieten_libraries
    from .run import train

    quieten_libraries()
    warnings.filterwarnings("ignore", module=r"PIL\b")
    torch.set_num_threads(options.threads or available_threads())
    train(open_data(options.data), options.request, report=report, show=counting)


app = one_command("train", Options, run)
main = entry_point(app, "train", hint="run the same command again to go on from the last checkpoint")
