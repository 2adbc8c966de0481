"""Putting a run together: networks, kept CLIP features, and the identity of all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lare2_rt.bundle.opening import Bundle
from lare2_rt.errors import UsageError
from lare2_rt.host.integrity import HashCache
from lare2_rt.tools.features.reader import Features

from ..clip_backbone import ClipBackbone
from ..sources import ModelSources, Role, load_extractor
from .clip_cache import ClipCache, open_clip_cache
from .data import Part, Parts
from .dataset import Geometry
from .loop import Report, Show, show_nothing
from .network import Networks, Trainee, freeze, head_config, new_head
from .options import TrainRequest

LARE_ROLES: tuple[Role, ...] = ("vae", "unet", "scheduler", "text_encoder")


def check_same_stable_diffusion(sources: ModelSources, bundle: Bundle) -> None:
    """LaRE that is computed here must be the bundle's, or the head would meet other maps at run time."""
    cache = HashCache()
    ours = sources.sd.hashes(cache)
    cache.save()
    theirs = {source.role: source.sha256 for source in bundle.manifest.sources}
    for role in LARE_ROLES:
        if ours[role] != theirs[role]:
            raise UsageError(
                f"the {role} of {sources.sd.name} is not the one that {bundle.label} was built from, so its "
                "LaRE would be another",
                remedy="name the same Stable Diffusion with --sd or --model, or another --bundle",
            )


def geometry_of(bundle: Bundle, sources: ModelSources) -> Geometry:
    """Return the bundle's sizes and policies with the window of the CLIP in training."""
    return Geometry(bundle.manifest.method, bundle.manifest.policy, sources.clip_config().image_size)


def build_networks(
    request: TrainRequest,
    sources: ModelSources,
    bundle: Bundle,
    features: Features | None,
    parts: Parts,
    accelerator: Any,  # noqa: ANN401 - accelerate is untyped
    say: Report,
    show: Show = show_nothing,
) -> tuple[Networks, ClipCache | None]:
    """Return the networks of a run, on accelerate's device, and the kept features of a frozen CLIP.

    Raises:
        ImageError, OutputError: while CLIP's features are computed.
    """
    options, device = request.options, accelerator.device
    config = head_config(sources.egre_config(), sources.clip_config(), options, own_clip=request.weights.clip is None)
    head = new_head(config, options.seed)
    clip = sources.clip_backbone().to(device)
    extractor = None
    if features is None or options.computes_lare:
        method = bundle.manifest.method
        extractor = load_extractor(sources, prompt=method.prompt, timestep=method.timestep).to(device)
        freeze(extractor)
    if options.backbone == "trained":
        return Networks(Trainee(head, clip), None, extractor, bundle.noise), None
    freeze(clip)
    networks = Networks(Trainee(head, None), clip, extractor, bundle.noise)
    return networks, _clip_cache(request, parts, clip, sources, bundle, accelerator, say, show)


def _clip_cache(
    request: TrainRequest,
    parts: Parts,
    clip: ClipBackbone,
    sources: ModelSources,
    bundle: Bundle,
    accelerator: Any,  # noqa: ANN401
    say: Report,
    show: Show,
) -> ClipCache | None:
    if not request.clip_cache:
        return None
    kept = [parts.train] if request.options.fixed_view else []
    kept += [parts.validation, *([parts.test] if parts.test is not None else [])]
    items = [item for part in kept for item in part.items]
    geometry = geometry_of(bundle, sources)

    caches = []
    for build in (True, False):  # the others wait for the main process, then read what it has written
        if accelerator.is_main_process == build:
            with show("CLIP features") as shown:

                def step(done: int, total: int, shown: Callable[[int, int], None] = shown) -> None:
                    shown(done, total)
                    if done == total or done % 1024 == 0:
                        say(f"CLIP features of {done} of {total} images")

                caches.append(
                    open_clip_cache(
                        request.out / "clip",
                        items,
                        clip,
                        clip_sha256=sources.clip.sha256(HashCache()),
                        policy=geometry.policy,
                        crop_size=geometry.crop_size,
                        build=build,
                        step=step,
                    )
                )
        accelerator.wait_for_everyone()
    return caches[0]


def run_facts(
    parts: Parts, bundle: Bundle, sources: ModelSources, request: TrainRequest, processes: int
) -> dict[str, Any]:
    """What, beside the options, decides a run's bits."""
    cache = HashCache()
    clip = sources.clip.sha256(cache)
    cache.save()

    def contents(part: Part | None) -> list[tuple[str, int, str]]:
        return [] if part is None else [(item.sha256, item.label, item.source) for item in part.items]

    return {
        "parts": [contents(part) for part in (parts.train, parts.validation)],
        "lare_id": bundle.manifest.lare_id,
        "clip": clip,
        "own_clip": request.weights.clip is None,
        "processes": processes,
        "kept_features": request.clip_cache,
        "computed": request.features is None,
    }
