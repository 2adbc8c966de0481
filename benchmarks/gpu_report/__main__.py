"""The proof that LaRE² runs on this GPU: one command, one JSON and one page to send back.

    python -m benchmarks.gpu_report [--model synthetic-sd15 | seeded-mini] [--batch 1 --batch 4 ...] [--out gpu-report]

Builds a bundle of seeded weights and TensorRT's plans of it, holds every engine against the PyTorch reference's answers
that were recorded elsewhere, sends two different images through the captured graph, asks Polygraphy for a second
opinion, and measures PyTorch eager and compiled, ONNX Runtime, and TensorRT without and with CUDA graphs. What cannot
run says why. Every case is kept as soon as it is measured: a second start, in another environment perhaps, or of some
rows only, measures what is missing or was measured with other settings, and leaves the rest of the report alone.

Exit code: 0 all that can run here is faithful, 1 something is not or broke, 2 nothing is proven: there is no GPU, or
nothing could start; 130 and 143 after Ctrl-C and SIGTERM. Without a GPU the CPU rows run, on the small model, to show
that the kit itself works.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common.command import run_command
from benchmarks.gpu_reference import MODELS
from benchmarks.gpu_report.cases import BATCHES, ROWS, Case, Row, cases_of, prepare_bundle, recorded_for
from benchmarks.gpu_report.store import keep, keep_opinion, measured, new_report, page, resumed
from benchmarks.gpu_report.worker import in_process
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.engines.cuda_runtime import current_gpu
from lare2_rt.errors import EngineError, UsageError, first_line
from lare2_rt.host.atomic import write_bytes
from lare2_rt.host.console import answer_sigterm
from lare2_rt.host.machine import available_threads

POLYGRAPHY = "Polygraphy"
Record = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    given = parser().parse_args(arguments)
    rest = f"measured cases are kept in {given.out}.json, run the same command again"
    return run_command("gpu_report", lambda: _prove(given), interrupted=rest)


def _prove(given: argparse.Namespace) -> int:
    gpu, no_gpu = _gpu()
    report = run(given, gpu=gpu, no_gpu=no_gpu)
    print(page(report))
    _say(f"please send {given.out}.json and {given.out}.md along with an issue")
    _say(f"gpu_report: {report['conclusion']['sentence']}")
    code: int = report["conclusion"]["exit_code"]
    return code


def run(given: argparse.Namespace, *, gpu: Record | None, no_gpu: str | None) -> Record:
    """Build, measure what no earlier run has, and write after every case; returns the report.

    Args:
        gpu: facts of the GPU; no_gpu: why there is none.
    """
    work = Path(given.work).absolute()
    work.mkdir(parents=True, exist_ok=True)
    threads = given.threads or available_threads()
    batches = tuple(sorted(set(given.batch or (BATCHES if gpu is not None else (1,)))))
    if given.bundle is not None:
        bundle, model = open_bundle(given.bundle), None
        report = new_report(gpu, bundle.manifest.model.name, bundle.manifest.id)
        batches = tuple(batch for batch in batches if batch in bundle.batches) or bundle.batches[:1]
    else:
        model = given.model or (MODELS[1] if gpu is not None else MODELS[0])
        report = new_report(gpu, model, None)
    if not given.fresh:  # before the build, which takes long
        report = resumed(Path(f"{given.out}.json"), report)
    reference = given.reference or recorded_for(model)
    settings = {"threads": threads, "seconds": given.seconds, "reference": _reference_facts(reference)}
    if model is not None:
        bundle = prepare_bundle(model, work, batches, threads=threads, report=_say)
        report["model"]["bundle"] = bundle.manifest.id
    settings["bundle"] = bundle.manifest.id
    common = {
        "bundle": str(bundle.path.absolute()),
        "model": model,
        "work": str(work),
        "reference": None if reference is None else str(Path(reference).absolute()),
        "threads": threads,
        "seconds": given.seconds,
    }
    rows = [row for row in ROWS if not given.row or row.name in given.row]
    for case in cases_of(rows, batches, **common):
        keep(report, _case(case, no_gpu, report, settings, limit=given.limit))
        _write(report, given.out, no_gpu)
    opinion = Row(POLYGRAPHY, "", "cuda" if gpu is not None else "cpu", "fp16", "")
    _say(POLYGRAPHY)
    keep_opinion(report, in_process(cases_of([opinion], (1,), **common)[0], limit=given.limit))
    _write(report, given.out, no_gpu)
    return report


def conclude(report: Record, no_gpu: str | None) -> Record:
    """Return the sentence that the report comes to, and the exit code."""
    cases = report["cases"]
    every = (*cases, {**report["polygraphy"], "row": POLYGRAPHY, "batch": 1})
    bad = [c for c in every if c["status"] == "failed" or (c["status"] == "measured" and not c["passed"])]
    names = "; ".join(sorted({f"{case['row']} at batch {case['batch']}" for case in bad}))
    done = [c for c in cases if c["device"] == "cuda" and c["status"] == "measured"]
    left = sum(c["device"] == "cuda" and c["status"] == "not usable" for c in cases)
    if bad:
        return {"sentence": f"Not proven: {names} failed", "exit_code": 1}
    if no_gpu is not None:
        on_cpu = any(c["device"] == "cpu" and c["status"] == "measured" for c in cases)
        kit = "The CPU rows passed." if on_cpu else "No CPU row ran."
        return {"sentence": f"Nothing is proven about GPUs: {no_gpu}. {kit}", "exit_code": 2}
    if not done:
        why = f"none of {left} cases for GPUs can run here" if left else "no row for GPUs was asked for"
        return {"sentence": f"Nothing is proven: {why}", "exit_code": 2}
    graphs = any(c["graph"] for c in done)
    what = "two images through each captured graph among them" if graphs else "but no captured graph was among them"
    rest = f"; {left} more could not run here" if left else ""
    return {"sentence": f"Proven: {len(done)} cases on this GPU are faithful, {what}{rest}", "exit_code": 0}


def _case(case: Case, no_gpu: str | None, report: Record, settings: Record, *, limit: float) -> Record:
    """Measure a case, take it from an earlier start, or tell why it cannot run here.

    Args:
        settings: what it is measured with, beside row and batch; see ``SETTINGS``.
    """
    facts = {name: getattr(case, name) for name in ("row", "device", "precision", "graph", "batch")} | settings
    if case.device == "cuda" and no_gpu is not None:
        return {**facts, "status": "not usable", "reason": no_gpu}
    if case.model is None and case.opener.startswith("benchmarks.gpu_report.eager"):
        reason = "PyTorch rows need the weights: run with --model instead of --bundle"
        return {**facts, "status": "not usable", "reason": reason}
    found = measured(report, facts)
    if found is not None:
        _say(f"{case.row}, batch {case.batch}: measured by an earlier run")
        return found
    _say(f"{case.row}, batch {case.batch}")
    begin = time.monotonic()
    figures = in_process(case, limit=limit)
    outcome = figures.get("reason") or ("passed" if figures["passed"] else "FAILED")
    _say(f"  {figures['status']}: {outcome} ({time.monotonic() - begin:.0f} s)")
    return {**facts, **figures}


def _reference_facts(path: Path | None) -> str | None:
    """Return the name of a file of recorded answers and a part of its sha256; raises UsageError."""
    if path is None:
        return None
    try:
        return f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({first_line(error)})", remedy="choose another --reference") from error


def _write(report: Record, out: str, no_gpu: str | None) -> None:
    report["conclusion"] = conclude(report, no_gpu)
    write_bytes(Path(f"{out}.json"), (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
    write_bytes(Path(f"{out}.md"), page(report).encode())


def _gpu() -> tuple[Record | None, str | None]:
    try:
        # The runtime's version is the environment's, not the machine's, and stands among the packages.
        return {name: value for name, value in asdict(current_gpu()).items() if name != "runtime"}, None
    except EngineError as error:
        return None, f"there is no usable NVIDIA GPU here ({error})"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__.splitlines()[0])
    add = result.add_argument
    add("--model", choices=MODELS, help="seeded weights (default: synthetic-sd15 on a GPU, else seeded-mini)")
    add("--bundle", type=Path, help="instead of --model: a bundle that was built with --half; no PyTorch rows then")
    add("--reference", type=Path, help="recorded answers (default: those of --model)")
    add("--batch", type=int, action="append", help="images per call; repeatable (default: 1, 4, 8 and 16)")
    add("--row", action="append", choices=[row.name for row in ROWS], help="only these rows; repeatable")
    add("--seconds", type=float, default=20.0, help="timed calls of each case (default: %(default)s)")
    add("--limit", type=float, default=3600.0, help="seconds for each case, builds included (default: %(default)s)")
    add("--threads", type=int, help="CPU threads (default: all that are allowed)")
    add("--work", type=Path, default=Path("gpu-report-work"), help="folder for what is built (default: %(default)s)")
    add("--out", default="gpu-report", help="writes OUT.json and OUT.md (default: %(default)s)")
    add("--fresh", action="store_true", help="replace OUT.json and OUT.md: measure everything again")
    return result


if __name__ == "__main__":
    answer_sigterm()
    sys.exit(main())
