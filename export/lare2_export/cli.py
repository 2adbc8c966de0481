"""The command line of ``export/build_engines.py``."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from lare2_rt.errors import Lare2Error
from lare2_rt.host.atomic import reason
from lare2_rt.host.console import EXIT_USAGE, Interrupted, answering_sigterm, interruptible
from lare2_rt.host.text import printable

if TYPE_CHECKING:
    from lare2_ref.sources import ModelSources

    from .build.options import BuildOptions

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.command()
@interruptible
def build(
    out: Annotated[
        Path, typer.Option(help="Bundle folder to write; a bundle there is replaced once the new one is proven.")
    ] = Path("engines"),
    model: Annotated[
        Optional[Path],
        typer.Option(help="Model folder with all weights (layout: lare2_ref/sources.py). Default: the small 'mini'."),
    ] = None,
    sd: Annotated[
        Optional[str],
        typer.Option(
            help="Stable Diffusion instead of the model's own: hub id, folder in diffusers layout, or one .safetensors."
        ),
    ] = None,
    prediction_type: Annotated[
        Optional[Literal["epsilon", "v_prediction"]],
        typer.Option(help="What the UNet of a single --sd file predicts. Default: as its family does; a note says it."),
    ] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option("--allow-pickle", help="Also read Stable Diffusion from .ckpt and .bin, as plain tensors only."),
    ] = False,
    revision: Annotated[Optional[str], typer.Option(help="Revision of the hub id. Default: its main branch.")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use only what the hub cache has, for --sd and --clip.")
    ] = False,
    clip: Annotated[
        Optional[str],
        typer.Option(help="CLIP ResNet instead of the model's own: file, folder or open_clip:RN50/openai."),
    ] = None,
    allow_unverified_torchscript: Annotated[
        bool,
        typer.Option("--allow-unverified-torchscript", help="Open a TorchScript --clip that OpenAI did not publish."),
    ] = False,
    head: Annotated[
        Optional[str],
        typer.Option(help="EGRE head instead of the model's own: official .pth (V6, V7), safetensors or folder."),
    ] = None,
    synthetic_kind: Annotated[
        Optional[Literal["sd15"]],
        typer.Option(
            "--synthetic",
            help="Instead of all of these: seeded random weights of the exact SD 1.5 + RN50 + V6 geometry, to measure.",
        ),
    ] = None,
    prompt: Annotated[str, typer.Option(help="Text that conditions the UNet, the same for every image.")] = "a photo",
    class_name: Annotated[
        Optional[str],
        typer.Option(help="Fill the official template instead: the prompt becomes 'a photo of a CLASS_NAME'."),
    ] = None,
    timestep: Annotated[int, typer.Option(help="Step of the noise schedule, 0 to 999 in SD 1.5.")] = 200,
    ensemble: Annotated[int, typer.Option(min=1, max=1024, help="Noise draws per image; time grows with it.")] = 4,
    image_size: Annotated[int, typer.Option(help="Side of the LaRE input in pixels.")] = 256,
    batch: Annotated[
        Optional[list[int]], typer.Option(min=1, help="Images per call; repeat for several graphs. Default: 1 and 4.")
    ] = None,
    half: Annotated[
        Optional[bool],
        typer.Option(
            "--half/--no-half", help="Export fp16 graphs for GPUs too. Default: where the weights are trained."
        ),
    ] = None,
    engine: Annotated[
        Optional[list[str]],
        typer.Option(
            help="Also compile for this engine, such as tensorrt, into the cache, and check it; repeat. Default: none."
        ),
    ] = None,
    optimization_level: Annotated[
        Optional[int], typer.Option(min=0, max=5, help="TensorRT's builder optimisation level. Default: 3.")
    ] = None,
    workspace: Annotated[
        Optional[int], typer.Option(min=1, help="MiB of GPU memory that a TensorRT kernel may take. Default: all.")
    ] = None,
    noise_seed: Annotated[int, typer.Option(min=0, help="Seed of the noise that every image shares.")] = 0,
    exif: Annotated[
        Literal["apply", "official", "ignore"],
        typer.Option(
            help="Orientation: for both branches, for the CLIP branch only as the official scripts, or never."
        ),
    ] = "apply",
    alpha: Annotated[
        Literal["drop", "white"], typer.Option(help="Transparency: dropped (official) or on white.")
    ] = "drop",
    icc: Annotated[
        Literal["ignore", "srgb"], typer.Option(help="Colour profiles: ignored (official) or converted to sRGB.")
    ] = "ignore",
    padding: Annotated[
        Literal["reflect101", "zero"], typer.Option(help="Border of pictures smaller than the CLIP window.")
    ] = "reflect101",
    parity_images: Annotated[
        Optional[Path], typer.Option(help="Folder of images for the parity report. Default: four procedural pictures.")
    ] = None,
    threads: Annotated[Optional[int], typer.Option(min=1, help="CPU threads. Default: all that are allowed.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be built, and the disk and memory that it needs.")
    ] = False,
) -> None:
    """Export LaRE², component by component, into a bundle of ONNX graphs, and prove it against the PyTorch reference.

    Without options this builds the small embedded model into ./engines, where 'lare2-rt infer' finds it.
    """
    begin = time.monotonic()

    def report(line: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - begin:6.1f} s] {printable(line)}\n")
        sys.stderr.flush()

    report("loading torch, diffusers and the exporter")

    from .build.isolate import start_server

    if not dry_run:
        start_server()  # it and we import the libraries at the same time
    from lare2_ref.quiet import quieten_libraries
    from lare2_rt.host.machine import available_threads
    from lare2_rt.host.replace_folder import restore
    from lare2_rt.pixels.policy import Preprocessing
    from lare2_rt.tools.inputs import expand

    from .build.bundle import build_bundle
    from .build.engines_step import build_compiled, check_engines, plan_options
    from .build.options import BuildOptions

    quieten_libraries()
    engines, plans = tuple(engine or ()), plan_options(optimization_level, workspace)
    plans_given = optimization_level is not None or workspace is not None
    if check_engines(engines, half=half, plans=plans_given) and half is None:
        half = True  # GPU engines compute in half precision
    chosen = SourceOptions(
        model, sd, prediction_type, allow_pickle, revision, offline, clip, allow_unverified_torchscript, head
    )
    sources = _synthetic(synthetic_kind, chosen) if synthetic_kind is not None else _given(chosen)
    for note in sources.notes:
        report(f"note: {note}")
    options = BuildOptions(
        prompt=prompt if class_name is None else f"a photo of a {class_name}",
        timestep=timestep,
        ensemble=ensemble,
        image_size=image_size,
        batches=tuple(sorted(set(batch or (1, 4)))),
        half=half,
        noise_seed=noise_seed,
        policy=Preprocessing(exif=exif, alpha=alpha, icc=icc, padding=padding),
        threads=threads or available_threads(),
        images=tuple(expand([str(parity_images)])) if parity_images is not None else (),
    )
    if dry_run:
        _dry_run(sources, out, options)
        return
    aside = restore(out)
    if aside is not None:
        report(f"note: {out} was missing after a killed build: put back from {aside.name}")
    bundle = build_bundle(sources, out, options, report=report)
    parity = bundle.manifest.parity
    assert parity is not None
    report(
        f"done: {out} is bundle {bundle.label}; worst component {parity.worst_component} "
        f"{parity.worst_relative_l2:.1e} relative L2, probability difference {parity.probability_difference:.1e}"
    )
    build_compiled(bundle, engines, plans, threads=options.threads, report=report)


def _dry_run(sources: ModelSources, out: Path, options: BuildOptions) -> None:
    """Print the plan on standard output: sizes in GB (10⁹ bytes)."""
    from .build.estimate import estimate
    from .build.plan import make_plan
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


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """The options that say where weights come from; None means not given."""

    model: Path | None
    sd: str | None
    prediction_type: Literal["epsilon", "v_prediction"] | None
    allow_pickle: bool
    revision: str | None
    offline: bool
    clip: str | None
    trust_torchscript: bool
    head: str | None


def _synthetic(kind: str, options: SourceOptions) -> ModelSources:
    from lare2_ref.synthetic import synthetic

    from .build.staging import BuildError

    if any(value is not None for value in (options.model, options.sd, options.clip, options.head)):
        raise BuildError("--synthetic makes all weights itself; leave out --model, --sd, --clip and --head")
    return synthetic(kind)


def _given(options: SourceOptions) -> ModelSources:
    """Three sources make a model of their own; fewer replace parts of a model folder."""
    from lare2_ref.clip_source import find_clip
    from lare2_ref.head_source import find_head
    from lare2_ref.sd_source import find_stable_diffusion
    from lare2_ref.sources import combine, default_model_folder, open_model_folder

    from .build.staging import BuildError

    sd, clip, head = options.sd, options.clip, options.head
    if sd is None and options.prediction_type is not None:
        raise BuildError("--prediction-type is for a single Stable Diffusion file; give it as --sd too")
    whole = sd is not None and head is not None
    base = (
        None
        if whole and options.model is None
        else open_model_folder(options.model or default_model_folder(), allow_pickle=options.allow_pickle)
    )
    diffusion = None
    if sd is not None:
        diffusion = find_stable_diffusion(
            sd,
            revision=options.revision,
            offline=options.offline,
            allow_pickle=options.allow_pickle,
            prediction_type=options.prediction_type,
        )
    backbone = None
    if clip is not None:
        backbone = find_clip(clip, trust_torchscript=options.trust_torchscript, offline=options.offline)
    return combine(base, sd=diffusion, clip=backbone, head=None if head is None else find_head(head))


@answering_sigterm
def main() -> None:
    """Entry point: known errors become one sentence and exit code 2, Ctrl-C and SIGTERM one and 130 or 143."""
    try:
        app()
    except Lare2Error as error:
        sys.stderr.write(f"build_engines: {printable(str(error))}\n")
        sys.exit(EXIT_USAGE)
    except OSError as error:
        sys.stderr.write(f"build_engines: {printable(reason(error))}; free some space or choose another --out\n")
        sys.exit(EXIT_USAGE)
    except Interrupted as ending:
        sys.stderr.write(f"build_engines: {ending}; finished components are kept and reused by the next run\n")
        sys.exit(ending.code)
