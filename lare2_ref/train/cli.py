"""The command line of ``python -m lare2_ref.train``."""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Literal, NoReturn, Optional

import typer

from lare2_rt.errors import Lare2Error
from lare2_rt.host.atomic import reason
from lare2_rt.host.console import EXIT_USAGE, Interrupted, answering_sigterm, interruptible
from lare2_rt.host.text import printable

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.command()
@interruptible
def train(
    data: Annotated[
        str, typer.Argument(metavar="INDEX", help="Index from 'lare2-rt index', or a labelled folder or list.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the head, its card and the checkpoints.")],
    features: Annotated[
        Optional[Path],
        typer.Option(help="LaRE from 'lare2-rt extract'. Default: computed in every step, with Stable Diffusion."),
    ] = None,
    bundle: Annotated[
        Optional[str],
        typer.Option(
            help="Bundle whose method and noise the head is for. Default: the one 'lare2-rt infer' would use."
        ),
    ] = None,
    model: Annotated[
        Optional[str], typer.Option(help="Model folder with CLIP and Stable Diffusion. Default: the small 'mini'.")
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
    head: Annotated[Literal["v6", "v7"], typer.Option(help="Head of the paper, or the later one.")] = "v6",
    backbone: Annotated[
        Literal["trained", "frozen"], typer.Option(help="Fine-tune CLIP, as the official script, or leave it.")
    ] = "trained",
    crop: Annotated[
        Literal["centre", "random", "official"],
        typer.Option(
            help="Window: the runtime's; a random one with LaRE of the part around it; or random with the whole's map."
        ),
    ] = "centre",
    augment: Annotated[
        Literal["none", "strong"], typer.Option(help="The official strong augmentation, for both branches alike.")
    ] = "none",
    noise: Annotated[
        Literal["fixed", "per-image"], typer.Option(help="The bundle's noise, or new noise for every image and epoch.")
    ] = "fixed",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs at most.")] = 100,
    batch: Annotated[int, typer.Option(min=1, help="Images per step, over all GPUs together.")] = 48,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 1e-4,
    stop_after: Annotated[
        int, typer.Option(min=0, help="Stop after this many epochs without a better validation AUC; 0: never.")
    ] = 15,
    validation_share: Annotated[
        float, typer.Option(help="Part of the training images to validate on where the set has no split 'val'.")
    ] = 0.1,
    dropout: Annotated[float, typer.Option(help="Of the head.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same head.")] = 0,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"], typer.Option(help="Of the forward pass; weights stay in float32.")
    ] = "fp32",
    checkpoint_steps: Annotated[
        int, typer.Option(min=0, help="Steps between checkpoints within an epoch; 0: only at its end.")
    ] = 500,
    clip_cache: Annotated[bool, typer.Option(help="Keep on disk what a frozen CLIP says of each image.")] = True,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 2,
    threads: Annotated[
        Optional[int], typer.Option(min=1, help="CPU threads. Default: what affinity and quota allow.")
    ] = None,
    device: Annotated[
        Literal["auto", "cpu"], typer.Option(help="Where to train; auto takes GPUs where there are some.")
    ] = "auto",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write curves to OUT/tensorboard.")] = False,
) -> None:
    """Train an EGRE head on labelled images; a run that was stopped goes on when the same command is run again."""
    begin = time.monotonic()

    def report(line: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - begin:6.1f} s] {printable(line)}\n")
        sys.stderr.flush()

    import torch

    from lare2_rt.host.machine import available_threads
    from lare2_rt.host.progress import counting
    from lare2_rt.tools.datasets.opening import open_data

    from ..chosen import Chosen
    from ..quiet import quieten_libraries
    from .options import TrainOptions
    from .request import TrainRequest
    from .run import train as run

    quieten_libraries()
    warnings.filterwarnings("ignore", module=r"PIL\b")
    torch.set_num_threads(threads or available_threads())
    options = TrainOptions(
        head=head,
        backbone=backbone,
        crop=crop,
        augment=augment,
        noise=noise,
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        stop_after=stop_after,
        validation_share=validation_share,
        dropout=dropout,
        seed=seed,
        precision=precision,
        checkpoint_steps=checkpoint_steps,
    )
    request = TrainRequest(
        index=open_data(data),
        features=features,
        out=out,
        bundle=bundle,
        weights=Chosen(model, sd, revision, offline, clip, allow_unverified_torchscript),
        options=options,
        workers=workers,
        clip_cache=clip_cache,
        device=device,
        tensorboard=tensorboard,
    )
    run(request, report=report, show=counting)


@answering_sigterm
def main() -> None:
    """Entry point: known errors become one sentence and exit code 2, Ctrl-C and SIGTERM one and 130 or 143."""
    try:
        app()
    except Lare2Error as error:
        # One that crossed from a decoding process carries that process's traceback in front.
        _fail(str(error).strip().splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: "))
    except OSError as error:
        _fail(f"{reason(error)}; free some space or name another --out")
    except Interrupted as ending:
        _fail(f"{ending}; run the same command again to go on from the last checkpoint", ending.code)


def _fail(sentence: str, code: int = EXIT_USAGE) -> NoReturn:
    sys.stderr.write(f"train: {printable(sentence)}\n")
    sys.exit(code)
