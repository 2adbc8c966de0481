"""A build in which nothing is the default: SD 2.x in one file, an official V7 head, 512 pixels, other policies."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lare2_export import cli
from lare2_export.build import bundle as build
from lare2_ref.sources import OFFICIAL_NOTE, load_reference
from lare2_rt import Detector
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.engines.difference import difference
from lare2_rt.pixels.policy import Preprocessing
from tests.helpers.source_formats import (
    SMALL_CLIP,
    official,
    original,
    small_head,
    small_visual,
    tiny_pipeline,
    write_single,
)

LINE = (
    "--sd model.safetensors --head Val_best.pth --class-name forest --timestep 120 --ensemble 1 --image-size 512 "
    "--batch 1 --noise-seed 7 --exif official --alpha white --icc srgb --padding zero --threads 2"
)
POLICY = Preprocessing(exif="official", alpha="white", icc="srgb", padding="zero")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with both files, the head as data-parallel training wrote it."""
    folder = tmp_path_factory.mktemp("weights")
    write_single(original(tiny_pipeline("sd2")), folder / "model.safetensors")
    _, state = official("v7", small_visual())
    torch.save({f"module.{key}": value for key, value in state.items()}, folder / "Val_best.pth")
    return folder


@pytest.fixture
def asked(weights, monkeypatch, capsys):
    """What the command line makes of these options: sources, target, options, and what it said."""
    given = []

    def stop(*arguments, **options):
        given.extend(arguments)
        raise KeyboardInterrupt

    monkeypatch.chdir(weights)
    monkeypatch.setattr(build, "build_bundle", stop)
    monkeypatch.setattr(sys, "argv", ["build_engines.py", *LINE.split()])
    monkeypatch.setattr("lare2_export.build.isolate.start_server", lambda: None)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 130
    monkeypatch.undo()
    monkeypatch.chdir(weights)
    sources, out, options = given
    assert out == Path("engines")
    return sources, options, capsys.readouterr().err


def test_options_and_sources_reach_the_build(asked):
    sources, options, said = asked
    assert (options.prompt, options.timestep, options.ensemble) == ("a photo of a forest", 120, 1)
    assert (options.image_size, options.batches, options.noise_seed) == (512, (1,), 7)
    assert options.policy == POLICY
    assert (sources.sd.name, sources.head.name, sources.clip.name) == (
        "model.safetensors",
        "Val_best.pth",
        "Val_best.pth",
    )
    assert f"note: {OFFICIAL_NOTE}" in said
    assert "note: model.safetensors is taken as Stable Diffusion 2.x predicting v_prediction" in said


@pytest.mark.slow
def test_the_build_is_faithful_and_says_what_it_is_made_of(asked, tmp_path, photos, monkeypatch):
    """Every component and the chain against the reference, in both precisions, and a photograph through the runtime."""
    sources, options, _ = asked
    monkeypatch.setenv("LARE2_CACHE", str(tmp_path / "cache"))
    bundle = build.build_bundle(sources, tmp_path / "engines", options, report=lambda line: None)
    manifest, method = bundle.manifest, bundle.manifest.method
    assert (method.prompt, method.timestep, method.ensemble) == ("a photo of a forest", 120, 1)
    assert (method.image_size, method.latent_shape) == (512, (4, 64, 64))
    assert (method.prediction_type, method.head, method.crop_size) == ("v_prediction", "v7", SMALL_CLIP.image_size)
    assert manifest.policy == POLICY
    assert OFFICIAL_NOTE in manifest.notes
    assert any("predicting v_prediction" in note for note in manifest.notes)
    assert manifest.decision.calibration == "uncalibrated"
    assert {v.precision for several in manifest.components.values() for v in several} == {"fp32", "fp16"}
    notice = (tmp_path / "engines/NOTICE.txt").read_text()
    for source in manifest.sources:
        assert f"{source.role}: {source.name} ({source.licence}; sha256 {source.sha256})" in notice
    assert "use restrictions of the licence's Attachment A" in notice

    reference = load_reference(
        sources, noise=bundle.noise, prompt=options.prompt, timestep=options.timestep, policy=POLICY, image_size=512
    )
    assert reference.egre.config == small_head("v7")
    with Detector.load(tmp_path / "engines") as detector:
        for photo in photos[:2]:
            ours, theirs = detector.detect(photo), reference.predict(photo)
            assert ours.lare.shape == (4, 64, 64)
            assert difference(ours.lare, theirs.lare).relative_l2 <= 3e-5
            assert difference(ours.attention, theirs.attention).relative_l2 <= 1e-5
            assert abs(ours.probability - theirs.probability) <= 1e-5
            assert np.std(ours.lare) > 0
    assert open_bundle(tmp_path / "engines", verify=True).manifest.id == manifest.id
