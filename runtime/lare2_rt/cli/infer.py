"""``lare2-rt infer``: expand the inputs, score them, write each result once."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import Lare2Error, UsageError
from ..host.console import EXIT_FILES, Interrupted, ignore_interrupts, say, uninterrupted
from ..host.progress import stepping
from .options import BundleFolder, DecodingOptions, EngineChoice, Threshold, Verify, located, say_notes

if TYPE_CHECKING:
    from ..detector import Detector
    from ..results.writers import Writer
    from .evidence_output import EvidenceOutput
    from .infer_targets import Run, Source, Target

STDIN = "-"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command; None means default."""

    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH", help="Images, folders (recursive), quoted globs, or - for one image on standard input."
        ),
    ] = None
    bundle: BundleFolder = None
    format: Annotated[
        Literal["table", "json", "jsonl", "csv", "parquet"] | None,
        typer.Option(help="Output format. Default: by the ending of --out, else table."),
    ] = None
    out: Annotated[str | None, typer.Option(help="Write results to this file instead of standard output.")] = None
    force: Annotated[bool, typer.Option("--force", help="Let --out replace an existing file.")] = False
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the results that --out holds; a kill loses none from then on.")
    ] = False
    threshold: Threshold = None
    engine: EngineChoice
    verify: Verify = False
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph/--no-cuda-graph", help="On a GPU, replay one captured graph.")
    ] = True
    verbose: Annotated[bool, typer.Option("--verbose", help="Say why other engines are not used.")] = False
    lists: Annotated[
        list[str] | None,
        typer.Option("--list", metavar="FILE", help="Score the paths in this file too, one a line; - is stdin."),
    ] = None
    null: Annotated[bool, typer.Option("--null", help="Paths in lists end with NUL, as of 'find -print0'.")] = False
    decoding: DecodingOptions
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first image that fails.")] = False
    fail_on: Annotated[
        Literal["generated"] | None, typer.Option(help="Exit with 3 if any image gets this verdict.")
    ] = None
    heatmap: Annotated[
        str | None, typer.Option(metavar="DIR", help="Draw a panel per image: LaRE, attention and the verdict.")
    ] = None
    report: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write one page, such as report.html, that shows the run.")
    ] = None
    crops: Annotated[
        int | None,
        typer.Option(min=1, help="Windows whose logits are averaged: 1, 4, 9 ... Default: as calibrated, else 1."),
    ] = None


def run(options: Options) -> int:
    """Score images: the verdict, and the probability that each was generated.

    Exit code: 0 all scored, 1 some files failed or results could not be written, 2 nothing could start, 3 found what
    --fail-on looks for, 130 interrupted by Ctrl-C, 143 ended by SIGTERM.
    """
    from .evidence_output import EvidenceOutput
    from .infer_targets import ResultsLost, Run

    limits = options.decoding.limits()
    sources = _gather(options)
    target = _target(options, sources)
    bundle = located(options.bundle)
    with (
        EvidenceOutput(options.heatmap, options.report, out=options.out, force=options.force) as evidence,
        options.engine.detector(
            bundle,
            threshold=options.threshold,
            verify=options.verify,
            cuda_graph=options.cuda_graph,
            limits=limits,
            isolate=options.decoding.isolate,
            crops=options.crops,
            keep_views=evidence.wanted,
        ) as detector,
    ):
        for rejected in detector.info.rejected if options.verbose else ():
            say(f"engine {rejected.name} is not used: {rejected.reason}")
        say_notes(detector)
        if options.fail_on is not None and not detector.info.rule.decides:  # a gate that lets everything through
            raise UsageError(
                f"--fail-on {options.fail_on} would let every image pass, as this bundle gives no verdicts",
                remedy="leave it out, or choose another bundle",
            )
        run, begin = Run(sources, fail_on=options.fail_on), time.perf_counter()
        try:
            with target(run, detector) as writer:
                _score(run, detector, writer, evidence=evidence, fail_fast=options.fail_fast)
            if run.verdicts.total() > 1:
                say(run.summary(time.perf_counter() - begin))
        except ResultsLost as error:
            say(f"stopped: {error}")
            run.code = EXIT_FILES
        return evidence.finish(run.exit_code, detector)


def _score(run: Run, detector: Detector, writer: Writer, *, evidence: EvidenceOutput, fail_fast: bool) -> None:
    """Score and write a complete document; a bad file costs a sentence. Raises OSError where it cannot be written."""
    total = len(run.sources)
    evidence.begin(total)
    try:
        with stepping("scoring", total) as step, contextlib.closing(detector.detect_many(run.sources)) as results:
            for result in results:
                with uninterrupted():
                    writer.add(result)
                    evidence.add(result)
                    run.count(result)
                if result.error is not None:
                    say(f"{result.source}: {result.error}")
                    if fail_fast and run.done < total:
                        run.stopped = f"stopped after {run.done} of {total} images: --fail-fast was given"
                        break
                step(result)
    except KeyboardInterrupt as error:
        ignore_interrupts()
        ending = Interrupted(error)
        run.stopped, run.code = f"{ending} after {run.done} of {total} images", ending.code
    except Lare2Error as error:
        run.stopped, run.code = f"stopped after {run.done} of {total} images: {error}", EXIT_FILES
    with uninterrupted():
        writer.end()


def _gather(options: Options) -> list[Source]:
    """Return the images in order: those of the arguments, then those of the lists.

    ``-`` among the arguments is one image's bytes on standard input; as a list it is the list itself.

    Raises:
        UsageError: nothing was named, a list cannot be read, or standard input would be read twice.
    """
    from ..tools.inputs import expand, expand_names

    arguments, lists = options.paths or [], options.lists or []
    if not arguments and not lists:
        raise UsageError("Missing argument", remedy="name images, folders or patterns, or give a list with --list FILE")
    if options.null and not lists:
        raise UsageError("--null says how a list is separated", remedy="add --list FILE, or leave it out")
    if (*arguments, *lists).count(STDIN) > 1:
        raise UsageError("standard input (-) can be read once only", remedy="put the other images into files")
    at = arguments.index(STDIN) if STDIN in arguments else len(arguments)
    sources: list[Source] = []
    # In two parts at most, so that the arguments without standard input are one call.
    if before := arguments[:at]:
        sources.extend(expand(before))
    if at < len(arguments):
        sources.append(_standard_input("image"))
    if after := arguments[at + 1 :]:
        sources.extend(expand(after))
    for name in lists:
        sources.extend(expand_names(_paths_of(name, null=options.null)))
    return sources


def _paths_of(name: str, *, null: bool) -> list[str]:
    from ..host.atomic import reason
    from ..tools.inputs import read_list

    if name == STDIN:
        return read_list(_standard_input("list"), null=null, name="the list on standard input")
    try:
        with Path(name).open("rb") as stream:
            return read_list(stream, null=null, name=name)
    except OSError as error:
        raise UsageError(f"the list {name} cannot be read: {reason(error)}", remedy="check the path") from error


def _standard_input(what: str) -> IO[bytes]:
    if sys.stdin is None or sys.stdin.isatty():
        state = "closed" if sys.stdin is None else "a terminal"
        raise UsageError(f"standard input (-) is {state}", remedy=f"pipe the {what} into the command, or name a file")
    return sys.stdin.buffer


def _target(options: Options, sources: list[Source]) -> Target:
    """Return where the results go; raises UsageError or OutputError where they cannot go there."""
    from ..host.atomic import check_target
    from ..results.parquet import arrow
    from ..results.writers import format_for
    from .infer_targets import check_resumable, complete_file, resumable_file, standard_output

    path = Path(options.out) if options.out is not None else None
    form = options.format or ("table" if path is None else format_for(path.suffix))
    if form is None:
        raise UsageError(
            f"cannot tell the format of {path} from its ending", remedy="add --format, such as jsonl or csv"
        )
    if form == "parquet" and path is None:
        raise UsageError("Parquet is binary and cannot go to standard output", remedy="name a file with --out")
    target: Target = functools.partial(standard_output, form=form)
    if options.resume:
        path = check_resumable(path, form, sources, force=options.force)
        target = functools.partial(resumable_file, path=path, form=form)
    elif path is not None:
        check_target(path, overwrite=options.force)
        target = functools.partial(complete_file, path=path, form=form, force=options.force)
    if form == "parquet":
        arrow()  # missing, it should not show at the end
    return target
