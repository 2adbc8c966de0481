"""CLIPs and heads in every form that users have: the same numbers, or refused with the file and key named."""

import json
import re

import huggingface_hub
import open_clip.pretrained
import pytest
import torch
from safetensors.torch import save_file

from lare2_ref import clip_source, weight_file
from lare2_ref.checkpoints import SourceError
from lare2_ref.clip_source import ClipCheckpoint, find_clip
from lare2_ref.head_source import HeadCheckpoint, find_head
from lare2_ref.sources import OFFICIAL_NOTE, combine, default_model_folder, open_model_folder
from tests.helpers.source_formats import SMALL_CLIP, Archive, Code, official, small_head, small_visual


@pytest.fixture(scope="module")
def visual():
    return small_visual()


def same(module, state):
    loaded = module.state_dict()
    assert all(torch.equal(loaded[key], value.float()) for key, value in state.items() if value.is_floating_point())


@pytest.mark.parametrize("name", ["v6", "v7"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_official_checkpoints_give_head_and_clip(name, wrapped, visual, tmp_path):
    head, state = official(name, visual)
    if wrapped:
        state = {f"module.{key}": value for key, value in state.items()}
    path = tmp_path / "Val_best.pth"
    torch.save(state, path)
    source = find_head(str(path))
    assert source.config() == small_head(name)
    same(source.head(), head)
    sources = combine(open_model_folder(default_model_folder()), sd=None, clip=None, head=source)
    assert sources.clip_config() == SMALL_CLIP
    same(sources.clip_backbone().visual, visual)
    assert sources.calibration == "uncalibrated"
    assert OFFICIAL_NOTE in sources.notes


@pytest.mark.parametrize(
    "facts",
    [{"lare_id": "a" * 64}, {"lare_id": "no id"}, {"lare_id": None}, [], None],
    ids=lambda facts: str(facts)[:20],
)
def test_trained_head_says_what_lare_it_is_for(facts, tmp_path):
    """A build on other LaRE gets a note; what the file says of itself is not trusted to be anything."""
    _, state = official("v6", {})
    text = "{" if facts is None else json.dumps(facts)
    save_file(state, tmp_path / "head.safetensors", metadata={"lare2_rt": text, "format": "pt"})
    source = find_head(str(tmp_path))  # the folder of the run does as well
    assert source.path == tmp_path / "head.safetensors"
    sources = combine(open_model_folder(default_model_folder()), sd=None, clip=None, head=source)
    assert sources.description.endswith(" with head.safetensors")
    good = facts == {"lare_id": "a" * 64}
    assert (OFFICIAL_NOTE in sources.notes) == (not good)
    assert sources.notes_for("a" * 64) == sources.notes
    others = sources.notes_for("b" * 64)[len(sources.notes) :]
    assert len(others) == good
    if good:
        assert others[0].startswith("the head was trained on LaRE aaaaaaaaaaaa and this bundle computes bbbbbbbbbbbb: ")


def test_head_as_safetensors_and_as_a_folder_are_the_same():
    model = default_model_folder()
    folder, file = find_head(str(model / "egre")), find_head(str(model / "egre/model.safetensors"))
    assert folder.config() == file.config()
    same(file.head(), folder.head().state_dict())


@pytest.mark.parametrize("form", ["visual.safetensors", "whole.safetensors", "whole.pt", "half.pt"])
def test_clip_in_every_container(form, visual, tmp_path):
    path = tmp_path / form
    state = {f"visual.{key}": value for key, value in visual.items()} | {"text_projection": torch.zeros(4, 4)}
    if form.startswith("visual"):
        state = dict(visual)
    if form.startswith("half"):
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    save_file(state, path) if form.endswith("safetensors") else torch.save(state, path)
    source = find_clip(str(path))
    assert source.config() == SMALL_CLIP
    expected = {k: v.half() if v.is_floating_point() and form.startswith("half") else v for k, v in visual.items()}
    same(source.backbone().visual, expected)


def test_torchscript_needs_a_known_hash_or_the_users_word(visual, tmp_path, monkeypatch):
    path = tmp_path / "RN50.pt"
    torch.jit.save(torch.jit.script(Archive(visual)), path)
    with pytest.raises(SourceError, match=r"RN50\.pt is a TorchScript archive.*--allow-unverified-torchscript"):
        find_clip(str(path)).config()
    same(ClipCheckpoint(path, trust_torchscript=True).backbone().visual, visual)
    monkeypatch.setattr(weight_file, "OPENAI_ARCHIVES", {weight_file.sha256_of(path)})
    same(find_clip(str(path)).backbone().visual, visual)


def test_the_published_archive_is_open_clips():
    """The hash that we trust is the one in the address that open_clip downloads from."""
    import open_clip.pretrained

    url = open_clip.pretrained.get_pretrained_cfg("RN50", "openai")["url"]
    assert any(f"/{digest}/RN50.pt" in url for digest in weight_file.OPENAI_ARCHIVES)


def test_pickles_with_code_are_refused(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"fc.weight": torch.zeros(2, 2), "x": Code()}, path)
    with pytest.raises(SourceError, match=r"evil\.pth cannot be read as plain tensors"):
        find_head(str(path)).config()
    torch.save({"epoch": 3}, path)
    with pytest.raises(SourceError, match="does not hold a state dict"):
        find_head(str(path)).config()
    path.write_bytes(b"\x80\x04garbage")
    with pytest.raises(SourceError, match="cannot be read"):
        find_head(str(path)).config()
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["v6", "v7"])
def test_misfits_are_named(name, visual, tmp_path):
    _, state = official(name, visual)
    path = tmp_path / "head.safetensors"

    def refused(change, words):
        changed = {key: value.contiguous() for key, value in state.items()}
        change(changed)
        save_file(changed, path)
        with pytest.raises(SourceError, match=words):
            find_head(str(path)).head()

    refused(
        lambda s: s.update({"channel_align.fc.3.weight": s.pop("channel_align.fc.2.weight")}), r"channel_align\.fc\.2"
    )
    refused(lambda s: s.update({"extra.weight": torch.zeros(1)}), r"head\.safetensors has unknown extra\.weight")
    refused(lambda s: s.update({"fc.bias": torch.zeros(3)}), r"fc\.bias has shape \[3\] where \[2\]")
    refused(lambda s: s.pop("fc.weight"), r"'fc\.weight'; give an EGRE head")


SQUARE = "one row for the mean and a square of others are needed"
MISSHAPEN_HEADS = {
    "attn_pool.positional_embedding": [((16,), "where 2 dimensions"), ((16, 128), SQUARE), ((1, 128), SQUARE)],
    "fc.weight": [((2,), "where 2 dimensions"), ((2, 250), r"more than \d+ columns")],
    "channel_align.fc.0.weight": [((16, 4, 1), "where 2 dimensions"), ((0, 4), "without a zero")],
}


@pytest.mark.parametrize("name", ["v6", "v7"])
def test_misshapen_heads_are_named_while_sizes_are_inferred(name, visual, tmp_path):
    _, state = official(name, visual)
    query = "attn_pool.attention.fc_q.weight" if name == "v6" else "attn_pool.attention1.fc_q.weight"
    cases = MISSHAPEN_HEADS | {query: [((63, 128), "a multiple of 8 rows"), ((64,), "where 2 dimensions")]}
    path = tmp_path / "head.safetensors"
    for key, shapes in cases.items():
        for shape, words in shapes:
            save_file({**state, key: torch.zeros(shape)}, path)
            with pytest.raises(
                SourceError, match=rf"head\.safetensors: {re.escape(key)} has shape \[.*{words}.*; give an EGRE"
            ):
                find_head(str(path)).config()


@pytest.mark.parametrize("prefix", ["", "visual."])
def test_misshapen_clips_are_named_while_the_geometry_is_inferred(prefix, visual, tmp_path):
    path = tmp_path / "clip.safetensors"
    for key, shape, words in (
        ("attnpool.positional_embedding", (5,), "where 2 dimensions"),
        ("attnpool.positional_embedding", (7, 256), SQUARE),
        ("conv3.weight", (8, 4), "where 4 dimensions"),
        ("conv3.weight", (7, 4, 3, 3), "an even width"),
        ("layer3.0.conv1.weight", (), "where 4 dimensions"),
    ):
        save_file({f"{prefix}{k}": v for k, v in ({**visual, key: torch.zeros(shape)}).items()}, path)
        with pytest.raises(SourceError, match=rf"clip\.safetensors: {re.escape(prefix + key)} has shape \[.*{words}"):
            find_clip(str(path)).config()
    save_file({f"{prefix}{k}": v for k, v in visual.items() if not k.startswith("layer3.")}, path)
    with pytest.raises(SourceError, match=rf"lacks '{re.escape(prefix)}layer3\.0\.conv1\.weight'"):
        find_clip(str(path)).config()


def test_truncated_heads_and_clips(visual, tmp_path):
    _, state = official("v6", visual)
    for find in (find_head, find_clip):
        for name in ("cut.safetensors", "cut.pth"):
            path = tmp_path / name
            save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
            path.write_bytes(path.read_bytes()[:-1000])
            with pytest.raises(SourceError, match=rf"{re.escape(name)} cannot be read"):
                find(str(path)).config()


def test_a_checkpoint_is_opened_once_for_all_questions_and_once_for_each_network(visual, tmp_path, monkeypatch):
    _, state = official("v6", visual)
    path = tmp_path / "Val_best.pth"
    torch.save(state, path)
    opened = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: opened.append(options) or load(*args, **options))
    head, clip = find_head(str(path)), ClipCheckpoint(path)
    for _ in range(3):
        assert head.has_clip()
        assert (head.config(), clip.config()) == (small_head("v6"), SMALL_CLIP)
    # A CLIP may be a TorchScript archive, a head never: they ask separately.
    assert len(opened) == 2
    head.head(), clip.backbone()
    assert len(opened) == 4
    assert all(options["weights_only"] and options["mmap"] for options in opened)
    torch.save({key: value for key, value in state.items() if not key.startswith("clip_model.")}, path)
    assert not head.has_clip()


def test_a_torchscript_head_is_refused_whoever_is_trusted(visual, tmp_path):
    path = tmp_path / "head.pt"
    torch.jit.save(torch.jit.script(Archive(visual)), path)
    with pytest.raises(SourceError, match=r"head\.pt is a TorchScript archive, which holds code; save its state dict"):
        find_head(str(path)).config()


def test_offline_clip_comes_from_the_cache_or_not_at_all(visual, tmp_path, monkeypatch):
    def download(*args, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path))
    clip_source._fetched.cache_clear()
    source = find_clip("open_clip:RN50/openai", offline=True)
    with pytest.raises(SourceError, match=r"open_clip:RN50/openai is not in the cache; leave out --offline once"):
        source.config()
    plain = tmp_path / ".cache/clip/RN50.pt"
    plain.parent.mkdir(parents=True)
    torch.save({f"visual.{key}": value for key, value in visual.items()}, plain)
    assert source.config() == SMALL_CLIP
    clip_source._fetched.cache_clear()
    repository = tmp_path / "hub/models--timm--resnet50_clip.openai"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    weights = {key: value + 1 if value.is_floating_point() else value for key, value in visual.items()}
    save_file({f"visual.{key}": value for key, value in weights.items()}, snapshot / "open_clip_model.safetensors")
    same(source.backbone().visual, weights)  # the hub comes first, as in open_clip
    with pytest.raises(SourceError, match="the network was asked"):
        find_clip("open_clip:RN50/openai").config()
    clip_source._fetched.cache_clear()


def test_clip_misfits_are_named(visual, tmp_path):
    path = tmp_path / "clip.safetensors"
    save_file({k: v for k, v in visual.items() if k != "layer2.0.conv2.weight"}, path)
    with pytest.raises(SourceError, match=r"lacks layer2\.0\.conv2\.weight"):
        find_clip(str(path)).backbone()
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(SourceError, match="holds no CLIP ResNet"):
        find_clip(str(path)).config()
    with pytest.raises(SourceError, match="neither a folder, a file"):
        find_clip(str(tmp_path / "nothing"))
    with pytest.raises(SourceError, match=r"open_clip has no weights .nope. for .RN50. \(known: openai"):
        find_clip("open_clip:RN50/nope").config()


def test_head_checkpoint_knows_whether_it_has_its_clip(visual, tmp_path):
    _, state = official("v6", visual)
    torch.save({k: v for k, v in state.items() if not k.startswith("clip_model.")}, tmp_path / "head.pth")
    assert not HeadCheckpoint(tmp_path / "head.pth").has_clip()
