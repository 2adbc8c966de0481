"""The options of ``index``, ``audit`` and ``extract``. Imports nothing heavy: it is read for every ``--help``."""

from __future__ import annotations

from typing import Annotated, Literal, Optional

import typer

from ..host.console import output_errors

Layout = Literal["auto", "genimage", "tiny-genimage", "aigcdetect", "folders", "community-forensics", "list"]
ReportFormat = Literal["table", "json"]
CopyFormat = Literal["jpeg", "png"]

_Out = Annotated[str, typer.Option(help="Parquet file of the index.")]
_Root = Annotated[
    Optional[str],
    typer.Option(
        help="Folder of the images that a list names, or of an index whose images were moved. Default: its own."
    ),
]
_Matched = Annotated[
    Optional[str],
    typer.Option(metavar="DIR", help="Write matched copies here: one size, one encoding, no metadata; and audit them."),
]
_MatchedSize = Annotated[
    int, typer.Option(min=1, help="Edge of the copies' centre window in pixels; smaller images are left out.")
]
_MatchedFormat = Annotated[CopyFormat, typer.Option(help="Encoding of the copies.")]
_MatchedQuality = Annotated[int, typer.Option(min=1, max=100, help="JPEG quality of the copies.")]
_Threads = Annotated[Optional[int], typer.Option(min=1, help="CPU threads. Default: what affinity and quota allow.")]
_Format = Annotated[ReportFormat, typer.Option("--format", help="Form of the report on standard output.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(index)
    app.command()(audit)
    app.command()(extract)


def index(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Folder of labelled images, list 'PATH LABEL', or CSV.")],
    out: _Out = "index.parquet",
    layout: Annotated[Layout, typer.Option(help="How the set is laid out; auto tells it from the folders.")] = "auto",
    root: _Root = None,
    val_share: Annotated[
        float,
        typer.Option(help="Move this share (0..1) of the training images to the split val, by source; 0 leaves it."),
    ] = 0.0,
    test_share: Annotated[float, typer.Option(help="The same for the split test.")] = 0.0,
    val_is_test: Annotated[
        bool, typer.Option("--val-is-test", help="Call the set's split val test, as GenImage's results are on it.")
    ] = False,
    split_seed: Annotated[int, typer.Option(min=0, help="Seed that decides which images move.")] = 0,
    audit: Annotated[
        bool, typer.Option("--audit", help="Say how well size, format and the like alone tell the classes apart.")
    ] = False,
    matched: _Matched = None,
    matched_size: _MatchedSize = 256,
    matched_format: _MatchedFormat = "jpeg",
    matched_quality: _MatchedQuality = 96,
    threads: _Threads = None,
    form: _Format = "table",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing index.")] = False,
) -> None:
    """Index a labelled set: label, generator, split, size, format and hash of every image in one Parquet file.

    Exit code: 0 all fine, 1 some images cannot be used, 2 nothing could be indexed, 130 interrupted.
    """
    from ..tools.datasets.split import SplitOptions
    from .index import IndexOptions, MatchedChoice, run_index

    options = IndexOptions(
        out=out,
        layout=layout,
        root=root,
        splits=SplitOptions(val_share, test_share, split_seed, val_is_test),
        audit=audit,
        matched=MatchedChoice(matched, matched_size, matched_format, matched_quality) if matched is not None else None,
        threads=threads,
        form=form,
        force=force,
    )
    with output_errors():
        code = run_index(data, options)
    raise typer.Exit(code)


def audit(
    index: Annotated[str, typer.Argument(metavar="INDEX", help="Index from 'lare2-rt index'.")] = "index.parquet",
    root: _Root = None,
    matched: _Matched = None,
    matched_size: _MatchedSize = 256,
    matched_format: _MatchedFormat = "jpeg",
    matched_quality: _MatchedQuality = 96,
    threads: _Threads = None,
    form: _Format = "table",
) -> None:
    """Say how well size, shape, format, JPEG quality and bytes per pixel alone tell generated from real images.

    Exit code: 0 audited, whatever was found; 1 some matched copies could not be made; 2 no usable index.
    """
    from .index import AuditOptions, MatchedChoice, run_audit

    options = AuditOptions(
        root=root,
        matched=MatchedChoice(matched, matched_size, matched_format, matched_quality) if matched is not None else None,
        threads=threads,
        form=form,
    )
    with output_errors():
        code = run_audit(index, options)
    raise typer.Exit(code)


def extract(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Index from 'lare2-rt index', list, or folder of images.")
    ],
    out: Annotated[str, typer.Option(help="Folder of the features; one that was begun is completed.")],
    embeddings: Annotated[
        Optional[bool],
        typer.Option("--embeddings/--no-embeddings", help="Keep CLIP embeddings too. Default: as the folder has it."),
    ] = None,
    shard: Annotated[
        Optional[int],
        typer.Option(min=1, max=1 << 20, help="Rows of a shard. Default: as the folder has it, else 1024."),
    ] = None,
    root: _Root = None,
    bundle: Annotated[
        Optional[str],
        typer.Option(help="Bundle folder. Default: $LARE2_BUNDLE, ./engines, else the embedded model."),
    ] = None,
    engine: Annotated[str, typer.Option(help="Engine name, or 'auto' for the fastest usable one.")] = "auto",
    precision: Annotated[
        Optional[Literal["fp32", "fp16"]], typer.Option(help="Arithmetic precision. Default: the engine's.")
    ] = None,
    batch: Annotated[
        Optional[int], typer.Option(min=1, help="Images per engine call, one of the bundle's sizes.")
    ] = None,
    threads: _Threads = None,
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file of the bundle again.")] = False,
) -> None:
    """Extract LaRE maps into shards, once per content; a run that was stopped goes on where it was.

    Exit code: 0 all extracted, 1 some images failed, 2 nothing could start, 130 interrupted.
    """
    from ..tools.features.extract import ExtractOptions
    from .extract import run

    options = ExtractOptions(
        bundle=bundle,
        engine=engine,
        precision=precision,
        batch=batch,
        threads=threads,
        verify=verify,
        embeddings=embeddings,
        shard=shard,
    )
    with output_errors():
        code = run(data, out, options, root=root)
    raise typer.Exit(code)
