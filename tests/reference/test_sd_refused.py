"""Stable Diffusion sources that are refused: the sentence names the file, and the key where there is one."""

import json
import re
import shutil
import sys

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from lare2_export import cli
from lare2_ref.checkpoints import SourceError
from lare2_ref.mini import write_mini
from lare2_ref.sd_source import find_stable_diffusion
from tests.helpers.source_formats import Code, original, tiny_pipeline, write_folder, write_single

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT = "cond_stage_model.transformer.text_model."


@pytest.fixture(scope="module")
def sd1():
    return original(tiny_pipeline("sd1"))


@pytest.fixture(scope="module")
def sd2():
    return original(tiny_pipeline("sd2"))


@pytest.fixture(scope="module")
def pickled(tmp_path_factory):
    """A folder with ``.bin`` files only."""
    return write_folder(tiny_pipeline("sd1"), tmp_path_factory.mktemp("pickled") / "folder", "bin")


def refused(state, tmp_path, words, change):
    """Write a changed checkpoint and expect the sentence."""
    changed = dict(state)
    change(changed)
    path = write_single(changed, tmp_path / "model.safetensors")
    with pytest.raises(SourceError, match=rf"model\.safetensors.*{words}"):
        find_stable_diffusion(str(path))


def renamed(old, new):
    return lambda state: state.update({new: state.pop(old)})


MISFITS = {
    "renamed": (
        renamed(f"{UNET}out.0.weight", f"{UNET}out.0.wait"),
        r"has unknown model\.diffusion_model\.out\.0\.wait and lacks what diffusers calls conv_norm_out\.weight",
    ),
    "renamed inside a block": (
        renamed(f"{UNET}input_blocks.1.0.in_layers.0.weight", f"{UNET}input_blocks.1.0.in_layer.0.weight"),
        r"has unknown model\.diffusion_model\.input_blocks\.1\.0\.in_layer\.0\.weight and lacks .*norm1\.weight",
    ),
    "renamed where the sizes are read": (
        renamed(f"{UNET}input_blocks.2.0.in_layers.2.weight", f"{UNET}input_blocks.2.0.in_layers.3.weight"),
        r"lacks 'model\.diffusion_model\.input_blocks\.2\.0\.in_layers\.2\.weight'",
    ),
    "renamed first layer": (
        renamed(f"{UNET}input_blocks.0.0.weight", f"{UNET}input_blocks.0.0.w"),
        r"lacks 'model\.diffusion_model\.input_blocks\.0\.0\.weight'; give a Stable Diffusion 1\.x or 2\.x",
    ),
    "without the decoder's last layer": (
        lambda state: state.pop(f"{VAE}decoder.conv_out.bias"),
        r"lacks what diffusers calls decoder\.conv_out\.bias",
    ),
    "text encoder's bias gone": (
        lambda state: state.pop(f"{TEXT}encoder.layers.1.mlp.fc2.bias"),
        r"lacks what diffusers calls .*layers\.1\.mlp\.fc2\.bias",
    ),
    "unknown beside the networks": (
        lambda state: state.update({"control_model.weight": torch.zeros(1)}),
        r"has unknown control_model\.weight",
    ),
    "unknown inside a network": (
        lambda state: state.update({f"{VAE}encoder.extra.weight": torch.zeros(1)}),
        r"has unknown first_stage_model\.encoder\.extra\.weight;",
    ),
    "misshapen": (
        lambda state: state.update({f"{UNET}time_embed.0.weight": torch.zeros(128, 31)}),
        r"model\.diffusion_model\.time_embed\.0\.weight has shape \[128, 31\] where \[128, 32\]",
    ),
    "misshapen attention of the autoencoder": (
        lambda state: state.update({f"{VAE}encoder.mid.attn_1.q.weight": torch.zeros(64, 63, 1, 1)}),
        r"first_stage_model\.encoder\.mid\.attn_1\.q\.weight has shape \[64, 63\] where \[64, 64\]",
    ),
    "misshapen where the sizes are read": (
        lambda state: state.update({f"{VAE}quant_conv.weight": torch.zeros(7)}),
        r"first_stage_model\.quant_conv\.weight has shape \[7\] where 4 dimensions",
    ),
    "an empty tensor": (
        lambda state: state.update({f"{UNET}out.2.bias": torch.zeros(0)}),
        r"model\.diffusion_model\.out\.2\.bias has shape \[0\] where 1 dimension without a zero",
    ),
    "odd width": (
        lambda state: state.update({f"{UNET}input_blocks.1.0.in_layers.2.weight": torch.zeros(30, 30, 3, 3)}),
        r"input_blocks\.1\.0\.in_layers\.2\.weight has shape .* a multiple of 32",
    ),
    "another vocabulary": (
        lambda state: state.update({f"{TEXT}embeddings.token_embedding.weight": torch.zeros(49_409, 64)}),
        r"token_embedding\.weight has shape .* CLIP's 49408 tokens",
    ),
    "text encoder of another width": (
        lambda state: state.update({f"{TEXT}embeddings.token_embedding.weight": torch.zeros(49_408, 128)}),
        r"the UNet attends to 64 numbers a token and the text encoder gives 128",
    ),
    "inpainting": (
        lambda state: state.update({f"{UNET}input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)}),
        r"is an inpainting checkpoint \(model\.diffusion_model\.input_blocks\.0\.0\.weight takes 9 channels",
    ),
    "instructions in four more channels": (
        lambda state: state.update({f"{UNET}input_blocks.0.0.weight": torch.zeros(32, 8, 3, 3)}),
        r"input_blocks\.0\.0\.weight takes 8 channels, not 4",
    ),
    "SDXL": (
        lambda state: state.update({"conditioner.embedders.0.transformer.text_model.weight": torch.zeros(1)}),
        r"is a Stable Diffusion XL checkpoint",
    ),
    "only the average": (
        lambda state: [state.pop(key) for key in list(state) if key.startswith(UNET)],
        r"holds the UNet only as the training's average \(model_ema\.\*",
    ),
    "nothing": (lambda state: state.clear() or state.update(x=torch.zeros(1)), r"; give a Stable Diffusion"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_checkpoints_that_do_not_fit_are_named(case, sd1, tmp_path):
    change, words = MISFITS[case]
    refused(sd1, tmp_path, words, change)


BLOCK = "cond_stage_model.model.transformer.resblocks."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: state.update({f"{BLOCK}1.attn.in_proj_weight": torch.zeros(190, 64)}),
            r"resblocks\.1\.attn\.in_proj_weight has shape \[62, 64\] where \[64, 64\]",
        ),
        (
            lambda state: state.update({f"{BLOCK}0.attn.in_proj_weight": torch.zeros(190)}),
            r"resblocks\.0\.attn\.in_proj_weight has shape \[190\] where 2 dimensions",
        ),
        (
            lambda state: [state.pop(key) for key in list(state) if f"{BLOCK}1." in key or f"{BLOCK}2." in key],
            r"has 1 .*resblocks\.\* where 2 or more are needed",
        ),
        (renamed(f"{BLOCK}1.ln_1.bias", f"{BLOCK}1.ln_3.bias"), r"has unknown .*resblocks\.1\.ln_3\.bias and lacks"),
    ],
)
def test_text_encoders_of_the_second_generation_are_checked(change, words, sd2, tmp_path):
    refused(sd2, tmp_path, words, change)


def test_damaged_files(sd1, tmp_path):
    path = write_single(sd1, tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SourceError, match=r"model\.safetensors cannot be read .*; download it again"):
        find_stable_diffusion(str(path))
    pickled = write_single(sd1, tmp_path / "model.ckpt")
    pickled.write_bytes(pickled.read_bytes()[: pickled.stat().st_size // 2])
    with pytest.raises(SourceError, match=r"model\.ckpt cannot be read as plain tensors"):
        find_stable_diffusion(str(pickled), allow_pickle=True)


def test_pickles_are_read_on_the_users_word_and_never_run(sd1, tmp_path, capsys):
    path = write_single(sd1, tmp_path / "model.ckpt")
    with pytest.raises(
        SourceError, match=r"model\.ckpt is a pickle.*the same model as \.safetensors, or --allow-pickle"
    ):
        find_stable_diffusion(str(path))
    write_single(sd1, path, callbacks=Code())
    with pytest.raises(SourceError, match=r"model\.ckpt .*save the state dict as safetensors"):
        find_stable_diffusion(str(path), allow_pickle=True)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(SourceError, match=r"model\.ckpt is a TorchScript archive, which holds code; save its state"):
        find_stable_diffusion(str(path), allow_pickle=True)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_pickles_in_folders_too(part, pickled, tmp_path, capsys):
    load = {"unet": lambda source: source.unet(), "text_encoder": lambda source: source.prompt_embeds("a photo")}[part]
    with pytest.raises(SourceError, match=rf"{part} has its weights only in pickles \(.*\.bin\).*--allow-pickle"):
        load(find_stable_diffusion(str(pickled)))
    folder = shutil.copytree(pickled, tmp_path / "folder")
    (weights,) = (folder / part).glob("*.bin")
    torch.save({**torch.load(weights), "x": Code()}, weights)
    with pytest.raises(SourceError, match=rf"{weights.name} cannot be read as plain tensors"):
        load(find_stable_diffusion(str(folder), allow_pickle=True))
    weights.unlink()
    with pytest.raises(SourceError, match=rf"{part} has no weights"):
        load(find_stable_diffusion(str(folder), allow_pickle=True))
    assert "executed" not in capsys.readouterr().out


def test_a_model_folder_takes_pickles_on_the_users_word(pickled, tmp_path):
    from lare2_ref.sources import open_model_folder

    write_mini(tmp_path / "model")
    shutil.rmtree(tmp_path / "model/unet")
    shutil.copytree(pickled / "unet", tmp_path / "model/unet")
    with pytest.raises(SourceError, match="--allow-pickle"):
        open_model_folder(tmp_path / "model").unet()
    assert open_model_folder(tmp_path / "model", allow_pickle=True).unet().config.cross_attention_dim == 64


def test_shards_are_held_against_their_index(tmp_path):
    """diffusers would leave the gap as it is."""
    folder = write_folder(tiny_pipeline("sd1"), tmp_path / "folder", "sharded")
    shard = sorted((folder / "unet").glob("*.safetensors"))[1]
    state = load_file(shard)
    key = min(state)
    save_file({name: value for name, value in state.items() if name != key}, shard, metadata={"format": "pt"})
    with pytest.raises(SourceError, match=rf"{shard.name} lacks {re.escape(key)}, as its index has it"):
        find_stable_diffusion(str(folder)).unet()
    save_file({**state, "extra.bias": torch.zeros(1)}, shard, metadata={"format": "pt"})
    with pytest.raises(SourceError, match=rf"{shard.name} has unknown extra\.bias"):
        find_stable_diffusion(str(folder)).unet()
    shard.unlink()
    with pytest.raises(SourceError, match=rf"{shard.name} cannot be read"):
        find_stable_diffusion(str(folder)).unet()
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../vae/diffusion_pytorch_model.safetensors"}}))
    with pytest.raises(SourceError, match=r"index\.json names '\.\./vae"):
        find_stable_diffusion(str(folder)).unet()


def test_pickles_are_fetched_from_the_hub_only_when_allowed(pickled, tmp_path, monkeypatch):
    asked = []

    def download(location, *, revision, allow_patterns, local_files_only):
        assert (location, revision, local_files_only) == ("somebody/model", "main", True)
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    folder = shutil.copytree(pickled, tmp_path / "folder")
    find_stable_diffusion("somebody/model", revision="main", offline=True)
    assert not any(".bin" in pattern for patterns in asked for pattern in patterns)
    asked.clear()
    save_file({"x": torch.zeros(1)}, folder / "vae/diffusion_pytorch_model.safetensors")
    find_stable_diffusion("somebody/model", revision="main", offline=True, allow_pickle=True)
    assert [pattern for pattern in asked[-1] if ".bin" in pattern] == ["unet/*.bin", "text_encoder/*.bin"]


def test_the_hub_gives_one_set_of_weights_for_each_network(tmp_path, monkeypatch):
    """Of a repository like Stable Diffusion 1.5's, which has five files of weights for the UNet alone."""
    stems = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    ends = (".safetensors", ".fp16.safetensors", ".non_ema.safetensors", ".bin", ".fp16.bin")
    held = [f"{part}/{stem}{end}" for part, stem in stems.items() for end in ends]
    held += [f"{part}/config.json" for part in stems] + ["tokenizer/merges.txt", "tokenizer/vocab.json"]
    held += ["safety_checker/model.safetensors", "v1-5-pruned.ckpt", "v1-5-pruned-emaonly.safetensors", "README.md"]
    commit = tmp_path / "snapshots" / ("0a" * 20)
    fetched = set()

    def download(location, *, revision, allow_patterns, local_files_only):
        for name in huggingface_hub.utils.filter_repo_objects(held, allow_patterns=allow_patterns):
            fetched.add(name)
            (commit / name).parent.mkdir(parents=True, exist_ok=True)
            (commit / name).touch()
        return str(commit)

    def weights():
        return sorted(name for name in fetched if name.endswith((".safetensors", ".bin", ".ckpt")))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_stable_diffusion("somebody/model", allow_pickle=True).revision == "0a" * 20
    assert weights() == sorted(f"{part}/{stem}.safetensors" for part, stem in stems.items())
    assert {"tokenizer/merges.txt", "unet/config.json"} <= fetched
    shutil.rmtree(commit)
    fetched.clear()
    held.remove("unet/diffusion_pytorch_model.safetensors")
    held += [f"unet/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    held.remove("vae/diffusion_pytorch_model.safetensors")
    find_stable_diffusion("somebody/model", revision="main", allow_pickle=True)
    assert weights() == [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]


def test_prediction_type_is_for_single_files(tmp_path):
    with pytest.raises(SourceError) as refused:
        find_stable_diffusion(str(tmp_path), prediction_type="epsilon")
    assert refused.value.remedy.startswith("leave it out")


def run(monkeypatch, capsys, *arguments):
    """Run the build's command line here; returns exit code and both outputs."""
    monkeypatch.setattr(sys, "argv", ["build_engines.py", "--dry-run", "--batch", "1", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, *capsys.readouterr()


def test_the_command_line(sd2, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_single(sd2, tmp_path / "model.ckpt")
    code, _, err = run(monkeypatch, capsys, "--sd", "model.ckpt")
    assert (code, err.count("\n")) == (2, 2)
    assert "build_engines: model.ckpt is a pickle" in err
    code, out, err = run(monkeypatch, capsys, "--sd", "model.ckpt", "--allow-pickle", "--prediction-type", "epsilon")
    assert code == 0
    assert "note: model.ckpt is taken as Stable Diffusion 2.x predicting epsilon: as --prediction-type says" in err
    assert "unet_step" in out
    code, _, err = run(monkeypatch, capsys, "--prediction-type", "epsilon")
    assert code == 2
    assert "give it as --sd too" in err
    code, _, err = run(monkeypatch, capsys, "--offline", "--clip", "open_clip:RN50/cc12m")
    assert code == 2
    assert "open_clip:RN50/cc12m is not in the cache; leave out --offline once" in err
    assert json.dumps([path.name for path in tmp_path.iterdir()]) == '["model.ckpt"]'
