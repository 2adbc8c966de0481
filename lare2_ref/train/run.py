"""A training run from its request to its results."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lare2_rt.bundle.locate import locate_bundle
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.errors import OutputError, UsageError
from lare2_rt.host.atomic import reason, write_bytes
from lare2_rt.host.locks import folder_lock
from lare2_rt.tools.datasets.table import Index
from lare2_rt.tools.features.reader import open_features

from .assemble import build_networks, check_same_stable_diffusion, geometry_of, run_facts
from .checkpoint import EpochRecord
from .data import Part, Parts, split_parts
from .loop import Report, Show, Trainer, Workshop, show_nothing
from .options import TrainRequest
from .results import HEAD, card_of, data_facts, measure, origin, write_results

RUN = "run.json"


def train(index: Index, request: TrainRequest, *, report: Report, show: Show = show_nothing) -> Path:
    """Train a head on a labelled set and return the folder of the results; a killed run goes on from its checkpoint.

    ``report`` receives one line per phase and epoch; ``show`` shows how far a phase is, in images.

    Raises:
        Lare2Error: with the remedy; what was finished is kept.
    """
    options = request.options
    options.check()
    bundle = open_bundle(locate_bundle(request.bundle).path)
    sources = request.weights.sources()
    folder, lare_id = request.features, bundle.manifest.lare_id
    features = None if folder is None else open_features(folder, lare_id=lare_id)
    parts = split_parts(index, features, validation_share=options.validation_share, seed=options.seed)
    if features is None or options.computes_lare:
        check_same_stable_diffusion(sources, bundle)
    _deterministic()
    mixed = "no" if options.precision == "fp32" else options.precision
    accelerator = _accelerator(request, mixed)
    if options.batch % accelerator.num_processes:
        raise UsageError(
            f"a batch of {options.batch} images cannot be shared evenly by {accelerator.num_processes} processes",
            remedy="choose a multiple with --batch",
        )
    main = accelerator.is_main_process
    say: Report = report if main else lambda line: None
    show = show if main else show_nothing
    with _folder(request.out, main):
        say(_describe(parts))
        facts = run_facts(parts, bundle, sources, request, accelerator.num_processes)
        digest = options.digest(facts)
        if main:
            write_bytes(request.out / RUN, (json.dumps({"run": digest, "options": asdict(options)}) + "\n").encode())
        networks, cache = build_networks(request, sources, bundle, features, parts, accelerator, say, show)
        shop = Workshop(
            options=options,
            parts=parts,
            features=features,
            cache=cache,
            geometry=geometry_of(bundle, sources),
            workers=request.workers,
            out=request.out,
            clean=replace(options, crop="centre", augment="none", noise="fixed"),
        )
        with _curves(request, main) as watch:
            trainer = Trainer(shop, networks, accelerator, digest=digest, report=say, watch=watch, show=show)
            progress = trainer.run()
        trainer.restore_best()
        measured = {"validation": measure(trainer, parts.validation), "test": measure(trainer, parts.test)}
        if main:
            made_from = origin(request, bundle, sources, facts, accelerator)
            card = card_of(made_from, data_facts(parts, index.digest), progress, measured)
            write_results(request.out, trainer.trainee, card)
        say(f"done: {request.out / HEAD}, and what it is in {request.out / 'card.md'}")
    return request.out


def _accelerator(request: TrainRequest, mixed: str) -> Any:  # noqa: ANN401 - accelerate is untyped
    from accelerate import Accelerator

    try:
        made = Accelerator(cpu=request.device == "cpu", mixed_precision=mixed, step_scheduler_with_optimizer=False)
    except ValueError as error:  # half precision that this device has not
        raise UsageError(f"{mixed} cannot be used here: {error}", remedy="choose another --precision") from error
    if mixed == "fp16" and made.device.type == "cpu":
        # accelerate would train in float32 and say nothing, and the head's card would say fp16.
        raise UsageError("fp16 needs a GPU, and training is on the CPU", remedy="choose --precision bf16 or fp32")
    return made


def _deterministic() -> None:
    """The same bits from the same seed: on a CPU always, on a GPU where its kernels have a deterministic form."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


@contextlib.contextmanager
def _folder(out: Path, main: bool) -> Iterator[None]:
    """Make the folder of a run and keep a second run out of it."""
    if not main:
        yield
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()) and not (out / RUN).is_file():
            raise UsageError(f"{out} holds something that is not a training run", remedy="name another --out")
        with folder_lock(out, seconds=1) as lock:
            if lock is None:
                raise UsageError(f"another run is writing {out}", remedy="wait for it or name another --out")
            yield
    except OSError as error:
        raise OutputError(
            f"cannot write {out}: {reason(error)}", remedy="free some space or name another --out"
        ) from error


@contextlib.contextmanager
def _curves(request: TrainRequest, main: bool) -> Iterator[Callable[[EpochRecord], None]]:
    """Yield what takes each epoch's record and draws it for TensorBoard, where that is asked for."""
    if not request.tensorboard or not main:
        yield lambda record: None
        return
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        remedy = "pip install tensorboard, or leave --tensorboard out"
        raise UsageError("tensorboard is not installed", remedy=remedy) from None
    writer = SummaryWriter(str(request.out / "tensorboard"))

    def watch(record: EpochRecord) -> None:
        for name, value in asdict(record).items():
            if name != "epoch":
                writer.add_scalar(name, value, record.epoch)
        writer.flush()

    try:
        yield watch
    finally:
        writer.close()


def _describe(parts: Parts) -> str:
    def words(part: Part) -> str:
        generated = sum(item.label for item in part.items)
        return f"{len(part) - generated} real and {generated} generated"

    test = "none" if parts.test is None else words(parts.test)
    left_out = f"; {parts.without_lare} left out, as their LaRE could not be extracted" if parts.without_lare else ""
    return f"training on {words(parts.train)}, validating on {words(parts.validation)}, testing on {test}{left_out}"
