"""Sources put together: what fits, what is missing, and what a plan makes of them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from lare2_export.build.options import BuildOptions
from lare2_export.build.plan import plan_geometry
from lare2_export.build.staging import BuildError
from lare2_ref.checkpoints import SourceError
from lare2_ref.clip_source import find_clip
from lare2_ref.egre import EgreConfig
from lare2_ref.head_source import find_head
from lare2_ref.sd_source import find_stable_diffusion
from lare2_ref.sources import combine, default_model_folder, open_model_folder
from lare2_ref.synthetic import synthetic
from lare2_ref.weight_choice import WeightChoice
from tests.helpers.source_formats import small_visual


@pytest.fixture
def model(tmp_path):
    """A copy of mini that a test may damage."""
    return shutil.copytree(default_model_folder(), tmp_path / "model")


def test_wrong_clip_width_is_refused_before_any_export(tmp_path):
    path = tmp_path / "clip.safetensors"
    save_file(small_visual(), path)
    sources = combine(open_model_folder(default_model_folder()), sd=None, clip=find_clip(str(path)), head=None)
    with pytest.raises(BuildError, match=r"the head mini .*, the CLIP clip\.safetensors gives 128×4² and 48; use the"):
        plan_geometry(sources, BuildOptions())


def test_three_sources_are_a_model_of_their_own(model):
    """Marks of the model that ships with the project are not theirs, on the reference's command line as in a build."""
    sd, clip, head = (str(place) for place in (model, model / "clip", model / "egre"))
    card = model / "lare2.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"demonstration": True}))
    whole = WeightChoice(sd=sd, clip=clip).sources(head)
    assert (whole.name, whole.description) == ("lare2", "model, clip, egre")
    assert (whole.demonstration, whole.calibration) == (False, "uncalibrated")
    over = WeightChoice(model=model, sd=sd, clip=clip).sources(head)
    assert (over.name, over.demonstration) == ("mini", True)
    assert "with model, clip, egre" in over.description
    assert WeightChoice(clip=clip).sources().description == "mini with clip"
    with pytest.raises(SourceError, match="--clip missing"):
        WeightChoice(sd=sd).sources(head)


def test_offline_is_for_clip_too():
    assert WeightChoice(clip="open_clip:RN50/openai", offline=True).sources().clip.offline


def test_cards_that_make_no_bundle_are_refused_at_once(model):
    card = model / "lare2.json"
    for change, words in (
        ({"name": "My model"}, "the name 'My model'"),
        ({"calibration": "yes"}, "write 'untrained' or 'uncalibrated'"),
    ):
        card.write_text(json.dumps(json.loads((default_model_folder() / "lare2.json").read_text()) | change))
        with pytest.raises(SourceError, match=words):
            open_model_folder(model)


def test_unsupported_prediction_type_is_refused(model):
    path = model / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "sample"}))
    with pytest.raises(BuildError, match="the scheduler of mini has prediction_type 'sample'"):
        plan_geometry(open_model_folder(model), BuildOptions())


def test_locations_that_do_not_exist(tmp_path, monkeypatch):
    with pytest.raises(SourceError, match="use stable-diffusion-v1-5/stable-diffusion-v1-5"):
        find_stable_diffusion("runwayml/stable-diffusion-v1-5")
    with pytest.raises(SourceError, match="neither a folder nor a file nor a model that can be downloaded"):
        find_stable_diffusion("nobody/nothing", offline=True)
    with pytest.raises(SourceError, match="--clip and --head missing"):
        combine(None, sd=find_stable_diffusion(str(tmp_path)), clip=None, head=None)
    with pytest.raises(SourceError, match="has no folder 'unet'"):
        find_stable_diffusion(str(tmp_path)).unet()
    with pytest.raises(SourceError, match="neither a folder nor a file"):
        find_head(str(tmp_path / "nothing"))
    with pytest.raises(SourceError, match=r"lare2\.json cannot be read"):
        open_model_folder(tmp_path)


def test_synthetic_geometry_is_the_real_one():
    """Sizes of SD 1.5, RN50 and V6, without drawing 860 million numbers."""
    sources = synthetic("sd15")
    geometry = plan_geometry(sources, BuildOptions())
    assert geometry.latent == (4, 32, 32)
    assert geometry.egre == EgreConfig()
    assert sum(p.numel() for p in sources.clip_backbone().parameters()) == 38_316_896
    assert sum(p.numel() for p in sources.egre().parameters()) == 2_441_258
    with torch.device("meta"):
        from diffusers import AutoencoderKL, UNet2DConditionModel

        from lare2_ref import synthetic as module

        assert sum(p.numel() for p in UNet2DConditionModel(**module.UNET).parameters()) == 859_520_964
        encoder = AutoencoderKL(**module.VAE)
        parts = (*encoder.encoder.parameters(), *encoder.quant_conv.parameters())
        assert sum(p.numel() for p in parts) == 34_163_664
    roles = [record.role for record in sources.records()]
    assert roles == ["vae", "unet", "scheduler", "text_encoder", "clip", "head"]
    with pytest.raises(SourceError, match="choose sd15"):
        synthetic("sdxl")
