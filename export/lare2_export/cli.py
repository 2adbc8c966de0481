"""The command line of ``export/build_engines.py``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lare2_ref.weight_choice import DetectorChoice
from lare2_rt.errors import UsageError
from lare2_rt.host.command_line import entry_point, one_command
from lare2_rt.host.console import clocked
from lare2_rt.pixels.policy import AlphaPolicy, ExifPolicy, IccPolicy, PaddingPolicy, Preprocessing

from .build.options import BuildOptions

if TYPE_CHECKING:
    from lare2_ref.sources import ModelSources


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command; None means default."""

    out: Annotated[
        Path, typer.Option(help="Bundle folder to write; a bundle there is replaced once the new one is proven.")
    ] = Path("engines")
    weights: DetectorChoice
    synthetic: Annotated[
        Literal["sd15"] | None,
        typer.Option(
            help="Instead of all of these: seeded random weights of the exact SD 1.5 + RN50 + V6 geometry, to measure."
        ),
    ] = None
    baked: BuildOptions
    class_name: Annotated[
        str | None,
        typer.Option(help="Fill the official template instead: the prompt becomes 'a photo of a CLASS_NAME'."),
    ] = None
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Images per call; repeat for several graphs. Default: 1 and 4.")
    ] = None
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="Also compile for this engine, such as tensorrt, into the cache, and check it; repeat. Default: none."
        ),
    ] = None
    optimization_level: Annotated[
        int | None, typer.Option(min=0, max=5, help="TensorRT's builder optimisation level. Default: 3.")
    ] = None
    workspace: Annotated[
        int | None, typer.Option(min=1, help="MiB of GPU memory that a TensorRT kernel may take. Default: all.")
    ] = None
    exif: Annotated[
        ExifPolicy,
        typer.Option(
            help="Orientation: for both branches, for the CLIP branch only as the official scripts, or never."
        ),
    ] = "apply"
    alpha: Annotated[AlphaPolicy, typer.Option(help="Transparency: dropped (official) or on white.")] = "drop"
    icc: Annotated[IccPolicy, typer.Option(help="Colour profiles: ignored (official) or converted to sRGB.")] = "ignore"
    padding: Annotated[PaddingPolicy, typer.Option(help="Border of pictures smaller than the CLIP window.")] = (
        "reflect101"
    )
    parity_images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images for the parity report, beside four procedural pictures. Default: two photographs."
        ),
    ] = None
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all that are allowed.")] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be built, and the disk and memory that it needs.")
    ] = False

    def build(self, *, half: bool | None) -> BuildOptions:
        """Return what is to be baked in; raises UsageError for parity images that are not there."""
        from lare2_rt.tools.inputs import expand

        return replace(
            self.baked,
            prompt=self.baked.prompt if self.class_name is None else f"a photo of a {self.class_name}",
            batches=tuple(sorted(set(self.batch or self.baked.batches))),
            half=half,
            policy=Preprocessing(exif=self.exif, alpha=self.alpha, icc=self.icc, padding=self.padding),
            threads=self.threads or self.baked.threads,
            images=tuple(expand([str(self.parity_images)])) if self.parity_images is not None else (),
        )


def run(options: Options) -> None:
    """Export LaRE², component by component, into a bundle of ONNX graphs, and prove it against the PyTorch reference.

    Without options this builds the small embedded model into ./engines, where 'lare2-rt infer' finds it.
    """
    report = clocked()
    report("loading torch, diffusers and the exporter")

    from .build.isolate import start_server

    if not options.dry_run:
        start_server()  # it and we import the libraries at the same time
    from lare2_ref import quieten_libraries
    from lare2_rt.bundle.manifest import MANIFEST
    from lare2_rt.host.replace_folder import restore

    from .build.bundle import build_bundle
    from .build.engines_step import build_compiled, check_engines, plan_options

    quieten_libraries()
    out, half, engines = options.out, options.baked.half, tuple(options.engine or ())
    plans = plan_options(options.optimization_level, options.workspace)
    plans_given = options.optimization_level is not None or options.workspace is not None
    if check_engines(engines, half=half, plans=plans_given) and half is None:
        half = True  # GPU engines compute in half precision
    sources = _sources(options)
    for note in sources.notes:
        report(f"note: {note}")
    baked = options.build(half=half)
    if options.dry_run:
        _dry_run(sources, out, baked)
        return
    aside = restore(out, marker=MANIFEST)
    if aside is not None:
        report(f"note: {out} was missing after a killed build: put back from {aside.name}")
    bundle = build_bundle(sources, out, baked, report=report)
    parity = bundle.manifest.parity
    assert parity is not None
    report(
        f"done: {out} is bundle {bundle.label}; worst component {parity.worst_component} "
        f"{parity.worst_relative_l2:.1e} relative L2, probability difference {parity.probability_difference:.1e}"
    )
    build_compiled(bundle, engines, plans, threads=baked.threads, report=report)


def _sources(options: Options) -> ModelSources:
    weights = options.weights
    if options.synthetic is None:
        return weights.sources(weights.head)
    from lare2_ref.synthetic import synthetic

    if any(value is not None for value in (weights.model, weights.sd, weights.clip, weights.head)):
        raise UsageError("--synthetic makes all weights itself", remedy="leave out --model, --sd, --clip and --head")
    return synthetic(options.synthetic)


def _dry_run(sources: ModelSources, out: Path, options: BuildOptions) -> None:
    """Print the plan on standard output: sizes in GB (10⁹ bytes)."""
    from .build.plan import estimate, make_plan
    from .build.staging import Staging, check_target

    check_target(out)
    plan = make_plan(sources, options)
    need = estimate(plan)
    staging = Staging(out)
    typer.echo(f"{sources.name}: {sources.description}")
    batches = " and ".join(str(batch) for batch in options.batches)
    for name, size in need.weights.items():
        done = staging.finished(name, plan.joint_key(name)) is not None
        typer.echo(
            f"  {name:14} {size / 1e9:7.3f} GB, batch {batches}" + (", finished by an earlier run" if done else "")
        )
    old = sum(path.stat().st_size for path in out.iterdir()) if out.is_dir() else 0
    typer.echo(f"bundle {need.bundle / 1e9:.3f} GB at {out}")
    typer.echo(f"peak disk {(need.bundle + old) / 1e9:.3f} GB, of which {old / 1e9:.3f} GB is the bundle there now")
    typer.echo(f"peak memory {need.memory / 1e9:.1f} GB in one process")


app = one_command("build", Options, run)
main = entry_point(app, "build_engines", hint="finished components are kept and reused by the next run")
